"""Simulator of containerd: the same services on a unix socket, thousands of running tasks, and faults on demand.

``test_contract.py`` checks that it behaves like containerd 1.6 and 2.4.
"""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from bridge.containerd.protos import (
    containers_pb2,
    events_pb2,
    health_pb2,
    introspection_pb2,
    namespaces_pb2,
    process_pb2,
    tasks_pb2,
    version_pb2,
)
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.core.containerd_model import ContainerKey, TaskStatus
from tests.eventually import eventually_async
from tests.simulator import wire
from tests.simulator.faults import ALL, Faults
from tests.simulator.state import SimulatedRpcError, State, stamp

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
VERSIONS = {"1.6": "1.6.20~ds1", "2.4": "2.4.2+unknown"}

Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, str], Awaitable[Message | bytes]]


class SimulatedContainerd:
    """A simulated containerd of ``version`` at the socket path ``address``; as a context manager, it is started."""

    def __init__(self, address: str | Path, version: str = "2.4") -> None:
        self.address = str(address)
        self.version = version
        self.id = str(uuid.uuid4())
        self.state = State()
        self.faults = Faults()
        self.calls: list[str] = []
        self._server: grpc.aio.Server | None = None
        self._subscriptions: set[asyncio.Queue[Envelope | None]] = set()

    async def start(self) -> None:
        """Listen on a new socket."""
        self._server = grpc.aio.server(options=[("grpc.max_send_message_length", MAX_MESSAGE_BYTES)])
        for service, methods in self._services().items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        self._server.add_insecure_port(f"unix:{self.address}")
        await self._server.start()

    def end_streams(self) -> None:
        """End all subscriptions."""
        for queue in self._subscriptions:
            queue.put_nowait(None)

    async def stop(self) -> None:
        """Stop as if killed; the state is kept."""
        server, self._server = self._server, None
        if server is not None:
            self.faults.release()
            self.end_streams()
            await eventually_async(lambda: not self._subscriptions)
            await server.stop(None)
            with suppress(FileNotFoundError):
                os.unlink(self.address)

    async def restart(self) -> None:
        """Stop, and start again."""
        await self.stop()
        await self.start()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    # --- services ---

    def _services(self) -> dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]:
        return {
            "containerd.services.version.v1.Version": {"Version": self._unary("Version.Version", None, self._version)},
            "containerd.services.introspection.v1.Introspection": {
                "Server": self._unary("Introspection.Server", None, self._server_id)
            },
            "grpc.health.v1.Health": {"Check": self._unary("Health.Check", None, self._health)},
            "containerd.services.namespaces.v1.Namespaces": {
                "List": self._unary("Namespaces.List", None, self._namespaces)
            },
            "containerd.services.containers.v1.Containers": {
                "Get": self._unary("Containers.Get", containers_pb2.GetContainerRequest, self._container),
                "List": self._unary("Containers.List", None, self._containers),
                "ListStream": self._streaming("Containers.ListStream", None, self._containers_stream),
            },
            "containerd.services.tasks.v1.Tasks": {
                "Get": self._unary("Tasks.Get", tasks_pb2.GetRequest, self._task),
                "List": self._unary("Tasks.List", None, self._tasks),
                "Wait": self._unary("Tasks.Wait", tasks_pb2.WaitRequest, self._wait),
            },
            "containerd.services.events.v1.Events": {
                "Publish": self._unary("Events.Publish", events_pb2.PublishRequest, self._publish),
                "Subscribe": self._streaming("Events.Subscribe", events_pb2.SubscribeRequest, self._subscribe),
            },
        }

    def _unary(self, name: str, request: type[Message] | None, handler: Unary) -> grpc.RpcMethodHandler[Any, Any]:
        async def handle(request_message: Any, context: Context) -> bytes:
            try:
                namespace = await self._begin_call(name, context)
                response = await handler(request_message, namespace)
            except SimulatedRpcError as error:
                await context.abort(error.code, error.details)
            self.faults.hooks.get(name, _no_op)()
            if name in self.faults.unreadable_responses:
                return b"\xff"
            return response if isinstance(response, bytes) else response.SerializeToString()

        return grpc.unary_unary_rpc_method_handler(handle, request and request.FromString)

    def _streaming(
        self, name: str, request: type[Message] | None, handler: Callable[[Any, str], AsyncIterator[bytes]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        async def handle(request_message: Any, context: Context) -> AsyncIterator[bytes]:
            try:
                namespace = await self._begin_call(name, context)
                async for message in handler(request_message, namespace):
                    yield message
            except SimulatedRpcError as error:
                await context.abort(error.code, error.details)

        return grpc.unary_stream_rpc_method_handler(handle, request and request.FromString)

    async def _begin_call(self, name: str, context: Context) -> str:
        """Count a call, apply the faults, and return the call's namespace."""
        self.calls.append(name)
        namespace = dict(context.invocation_metadata() or ()).get("containerd-namespace", "")
        for method in (name, ALL):
            if method in self.faults.hanging:
                await self.faults.hanging[method].wait()
            for scope in (str(namespace), ALL):
                if (method, scope) in self.faults.errors:
                    raise self.faults.errors[method, scope]
        return str(namespace)

    # --- version, identity, health ---

    async def _version(self, _: object, __: str) -> Message:
        return version_pb2.VersionResponse(version=VERSIONS[self.version])

    async def _server_id(self, _: object, __: str) -> Message:
        return introspection_pb2.ServerResponse(uuid=self.id)

    async def _health(self, _: object, __: str) -> Message:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    # --- namespaces, containers, tasks ---

    async def _namespaces(self, _: object, __: str) -> Message:
        return namespaces_pb2.ListNamespacesResponse(namespaces=[{"name": name} for name in self.state.namespaces])

    def _encoded_containers(self, namespace: str) -> list[bytes]:
        return [wire.field(1, container.encode()) for container in self.state.namespaces.get(namespace, {}).values()]

    async def _container(self, request: containers_pb2.GetContainerRequest, namespace: str) -> bytes:
        return wire.field(1, self.state.container(ContainerKey(namespace, request.id)).encode())

    async def _containers(self, _: object, namespace: str) -> bytes:
        response = b"".join(self._encoded_containers(namespace))
        if len(response) > MAX_MESSAGE_BYTES:
            details = f"trying to send message larger than max ({len(response)} vs. {MAX_MESSAGE_BYTES})"
            raise SimulatedRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, details)
        return response

    async def _containers_stream(self, _: object, namespace: str) -> AsyncIterator[bytes]:
        for message in self._encoded_containers(namespace):
            yield message

    async def _tasks(self, _: object, namespace: str) -> Message:
        response = tasks_pb2.ListTasksResponse()
        for container in self.state.namespaces.get(namespace, {}).values():
            key = ContainerKey(namespace, container.id)
            if container.task is None or key in self.faults.unlisted_tasks:
                continue
            try:
                response.tasks.append(await self._process(key))
            except SimulatedRpcError:
                continue
        return response

    async def _task(self, request: tasks_pb2.GetRequest, namespace: str) -> Message:
        return tasks_pb2.GetResponse(process=await self._process(ContainerKey(namespace, request.container_id)))

    async def _process(self, key: ContainerKey) -> process_pb2.Process:
        task = self.state.task(key)
        if key not in self.faults.hung_shims:
            return task.to_proto(key.id)
        await asyncio.sleep(self.faults.shim_timeout_seconds)
        if self.version != "1.6":
            raise SimulatedRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, "context deadline exceeded")
        process = process_pb2.Process(id=key.id, status=process_pb2.Status.Name(TaskStatus.UNKNOWN))
        process.exited_at.CopyFrom(stamp(type(process.exited_at), None))
        return process

    async def _wait(self, request: tasks_pb2.WaitRequest, namespace: str) -> Message:
        task = self.state.task(ContainerKey(namespace, request.container_id))
        await task.exited.wait()
        response = tasks_pb2.WaitResponse(exit_status=task.exit_status)
        response.exited_at.CopyFrom(stamp(type(response.exited_at), task.exited_at))
        return response

    # --- events ---

    async def _publish(self, request: events_pb2.PublishRequest, namespace: str) -> bytes:
        if not self.faults.drop_published:
            self.state.publish_any(namespace, request.topic, request.event.type_url, request.event.value)
        return b""

    async def _subscribe(self, request: events_pb2.SubscribeRequest, _: str) -> AsyncIterator[bytes]:
        matches = _parse_filters(request)
        queue: asyncio.Queue[Envelope | None] = asyncio.Queue()  # unbounded, as in containerd
        with self._subscribed(queue):
            while (envelope := await queue.get()) is not None:
                if matches(envelope.topic):
                    yield envelope.SerializeToString()
        if self._server is None:
            raise SimulatedRpcError(grpc.StatusCode.UNAVAILABLE, "the simulator is stopping")

    @contextmanager
    def _subscribed(self, queue: asyncio.Queue[Envelope | None]) -> Iterator[None]:
        self._subscriptions.add(queue)
        self.state.listeners.add(queue.put_nowait)
        try:
            yield
        finally:
            self._subscriptions.discard(queue)
            self.state.listeners.discard(queue.put_nowait)


def _parse_filters(request: events_pb2.SubscribeRequest) -> Callable[[str], bool]:
    """Parse the only kind of filter that the bridge uses: ``topic~="REGEX"``."""
    patterns = [re.compile(match[1]) for text in request.filters if (match := re.fullmatch(r'topic~="(.*)"', text))]
    if len(patterns) != len(request.filters):
        raise SimulatedRpcError(grpc.StatusCode.INVALID_ARGUMENT, f"unsupported filters: {request.filters}")
    return lambda topic: not patterns or any(pattern.search(topic) for pattern in patterns)


def _no_op() -> None:
    pass
