"""Simulator of containerd: the same services on a unix socket, thousands of running tasks, and faults on demand.

``test_contract.py`` checks that it behaves like containerd 1.6 and 2.4.
"""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import grpc
from google.protobuf.message import Message

from bridge.containerd import methods
from bridge.containerd.http2 import StatusCode
from bridge.containerd.protos import (
    containers_pb2,
    cri_pb2,
    events_pb2,
    health_pb2,
    images_pb2,
    introspection_pb2,
    namespaces_pb2,
    process_pb2,
    tasks_pb2,
    version_pb2,
)
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.core.container_metadata import CRI_KIND_LABEL
from bridge.core.containerd_model import ContainerKey, TaskStatus
from tests.eventually import eventually_async
from tests.simulator import wire
from tests.simulator.faults import ALL, Faults
from tests.simulator.state import SimulatedRpcError, State, stamp

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_SERVER_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Otherwise, gRPC's library cancels some of thousands of calls that begin at once, which containerd does not.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
)
VERSIONS = {"1.6": "1.6.20~ds1", "2.4": "2.4.2+unknown"}

Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, str], Awaitable[Message | bytes]]
Streaming = Callable[[Any, str], AsyncIterator[bytes]]
_REQUESTS: dict[str, type[Message]] = {  # of the methods whose requests have fields
    methods.CONTAINER.path: containers_pb2.GetContainerRequest,
    methods.IMAGE.path: images_pb2.GetImageRequest,
    methods.TASK.path: tasks_pb2.GetRequest,
    methods.WAIT.path: tasks_pb2.WaitRequest,
    methods.CRI_CONTAINERS.path: cri_pb2.ListContainersRequest,
    methods.CRI_STATUS.path: cri_pb2.ContainerStatusRequest,
    methods.CRI_PODS.path: cri_pb2.ListPodSandboxRequest,
    methods.PUBLISH.path: events_pb2.PublishRequest,
    methods.SUBSCRIBE.path: events_pb2.SubscribeRequest,
}


class SimulatedContainerd:
    """A simulated containerd of ``version``; as a context manager, it serves gRPC on a socket at the path ``address``.

    ``tests/simulator/client.py`` is a client without gRPC, which needs no socket.
    """

    def __init__(self, address: str | Path = "/run/c.sock", version: str = "2.4", state: State | None = None) -> None:
        self.address = str(address)
        self.version = version
        self.id = str(uuid.uuid4()) if state is None else "engine-1"
        self.state = State() if state is None else state
        self.faults = Faults()
        self.calls: list[str] = []
        self.down = False
        self.calls_in_flight: dict[asyncio.Future[Any], None] = {}  # of clients in the same process
        self._server: grpc.aio.Server | None = None
        self._handlers: dict[str, Unary | Streaming] = {
            methods.VERSION.path: self._version,
            methods.SERVER.path: self._server_id,
            methods.HEALTH.path: self._health,
            methods.NAMESPACES.path: self._namespaces,
            methods.CONTAINER.path: self._container,
            methods.CONTAINERS.path: self._containers,
            methods.CONTAINERS_STREAM.path: self._containers_stream,
            methods.IMAGE.path: self._image,
            methods.TASK.path: self._task,
            methods.TASKS.path: self._tasks,
            methods.WAIT.path: self._wait,
            methods.CRI_CONTAINERS.path: self._cri_containers,
            methods.CRI_STATUS.path: self._cri_status,
            methods.CRI_PODS.path: self._cri_pods,
            methods.PUBLISH.path: self._publish,
            methods.SUBSCRIBE.path: self._subscribe,
        }

    # --- the services, on any transport ---

    async def call(self, path: str, request: Any, namespace: str) -> bytes:
        """Serve a unary call of the method at ``path``; the request is decoded already."""
        name = await self._begin_call(path, namespace)
        response: Message | bytes = await cast(Unary, self._handlers[path])(request, namespace)
        self.faults.hooks.get(name, _no_op)()
        if name in self.faults.unreadable_responses:
            return b"\xff"
        return response if isinstance(response, bytes) else response.SerializeToString()

    async def stream(self, path: str, request: Any, namespace: str) -> AsyncIterator[bytes]:
        """Serve a call that returns a stream."""
        await self._begin_call(path, namespace)
        async for message in cast(Streaming, self._handlers[path])(request, namespace):
            yield message

    async def _begin_call(self, path: str, namespace: str) -> str:
        """Count a call, and apply the faults; return its name, as in ``Tasks.List``."""
        name = path.rpartition(".")[2].replace("/", ".")
        self.calls.append(name)
        if self.down:
            raise SimulatedRpcError(StatusCode.UNAVAILABLE, "connection refused")
        for method in (name, ALL):
            if method in self.faults.hanging:
                await self.faults.hanging[method].wait()
            for scope in (namespace, ALL):
                if (method, scope) in self.faults.errors:
                    raise self.faults.errors[method, scope]
        return name

    def disconnect(self) -> None:
        """End all streams, and the calls in flight of clients in the same process, as if containerd were killed."""
        self.state.end_streams()
        for call in list(self.calls_in_flight):
            call.cancel()

    # --- the socket ---

    async def start(self) -> None:
        """Listen on a new socket."""
        self._server = grpc.aio.server(options=_SERVER_OPTIONS)
        for path in self._handlers:
            service, name = path[1:].split("/")
            handlers = {name: self._rpc_handler(path)}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self._server.add_insecure_port(f"unix:{self.address}")
        await self._server.start()

    async def stop(self) -> None:
        """Stop as if killed; the state is kept."""
        server, self._server = self._server, None
        if server is not None:
            self.faults.release()
            self.state.end_streams()
            await eventually_async(lambda: not self.state.listeners)
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

    def _rpc_handler(self, path: str) -> grpc.RpcMethodHandler[Any, Any]:
        async def call(request: Any, context: Context) -> bytes:
            try:
                return await self.call(path, request, _namespace(context))
            except SimulatedRpcError as error:
                await context.abort(grpc.StatusCode[error.code.name], error.details)

        async def stream(request: Any, context: Context) -> AsyncIterator[bytes]:
            try:
                async for message in self.stream(path, request, _namespace(context)):
                    yield message
            except SimulatedRpcError as error:
                await context.abort(grpc.StatusCode[error.code.name], error.details)

        decode = _REQUESTS[path].FromString if path in _REQUESTS else None
        if path in (methods.CONTAINERS_STREAM.path, methods.SUBSCRIBE.path):
            return grpc.unary_stream_rpc_method_handler(stream, decode)
        return grpc.unary_unary_rpc_method_handler(call, decode)

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
        _check_size(len(response))
        return response

    async def _containers_stream(self, _: object, namespace: str) -> AsyncIterator[bytes]:
        for message in self._encoded_containers(namespace):
            yield message

    async def _image(self, request: images_pb2.GetImageRequest, namespace: str) -> Message:
        return images_pb2.GetImageResponse(image=self.state.image(namespace, request.name.decode()))

    async def _tasks(self, _: object, namespace: str) -> Message:
        response = tasks_pb2.ListTasksResponse()
        for container in list(self.state.namespaces.get(namespace, {}).values()):
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
            raise SimulatedRpcError(StatusCode.DEADLINE_EXCEEDED, "context deadline exceeded")
        process = process_pb2.Process(id=key.id, status=process_pb2.Status.Name(TaskStatus.UNKNOWN))
        process.exited_at.CopyFrom(stamp(type(process.exited_at), None))
        return process

    async def _wait(self, request: tasks_pb2.WaitRequest, namespace: str) -> Message:
        task = self.state.task(ContainerKey(namespace, request.container_id))
        await task.exited.wait()
        response = tasks_pb2.WaitResponse(exit_status=task.exit_status)
        response.exited_at.CopyFrom(stamp(type(response.exited_at), task.exited_at))
        return response

    # --- CRI ---

    async def _cri_containers(self, request: cri_pb2.ListContainersRequest, _: str) -> Message | bytes:
        self._require_cri()
        return cri_pb2.ListContainersResponse(
            containers=[
                cri_pb2.Container(id=each.id, state=each.cri_status.state, created_at=each.created_at)
                for each in self.state.namespaces.get("k8s.io", {}).values()
                if CRI_KIND_LABEL in each.labels and each.cri_status.state == request.filter.state.state
            ]
        )

    async def _cri_status(self, request: cri_pb2.ContainerStatusRequest, _: str) -> Message | bytes:
        self._require_cri()
        key = ContainerKey("k8s.io", request.container_id)
        if key in self.faults.hung_records:
            await asyncio.Event().wait()
        container = self.state.container(key)
        if CRI_KIND_LABEL not in container.labels:
            raise SimulatedRpcError(StatusCode.NOT_FOUND, f"container {container.id} not found")
        response = cri_pb2.ContainerStatusResponse(status=container.cri_status)
        response.status.id = container.id
        return response

    async def _cri_pods(self, request: cri_pb2.ListPodSandboxRequest, _: str) -> Message | bytes:
        self._require_cri()
        selected = {each.key.decode(): each.value.decode() for each in request.filter.label_selector}.items()
        pods = [pod for pod in self.state.pods if selected <= pod.items()]
        items = [
            cri_pb2.PodSandbox(
                id=f"sandbox-{number}",
                created_at=number,
                labels=[{"key": key.encode(), "value": value.encode()} for key, value in pod.items()],
            )
            for number, pod in enumerate(pods, 1)
        ]
        response = cri_pb2.ListPodSandboxResponse(items=reversed(items))
        _check_size(response.ByteSize())
        return response

    def _require_cri(self) -> None:
        if not self.state.has_cri:
            details = "unknown service runtime.v1.RuntimeService"
            raise SimulatedRpcError(StatusCode.UNIMPLEMENTED, details)

    # --- events ---

    async def _publish(self, request: events_pb2.PublishRequest, namespace: str) -> bytes:
        if not self.faults.drop_published:
            self.state.publish_any(namespace, request.topic, request.event.type_url, request.event.value)
        return b""

    async def _subscribe(self, request: events_pb2.SubscribeRequest, _: str) -> AsyncIterator[bytes]:
        matches = _parse_filters(request)
        queue: asyncio.Queue[Envelope | None] = asyncio.Queue()  # unbounded, as in containerd
        self.state.listeners.append(queue.put_nowait)
        try:
            while (envelope := await queue.get()) is not None:
                if matches(envelope.topic):
                    yield envelope.SerializeToString()
        finally:
            self.state.listeners.remove(queue.put_nowait)
        if self._server is None:
            raise SimulatedRpcError(StatusCode.UNAVAILABLE, "the simulator is stopping")


def _check_size(size: int) -> None:
    if size > MAX_MESSAGE_BYTES:
        details = f"trying to send message larger than max ({size} vs. {MAX_MESSAGE_BYTES})"
        raise SimulatedRpcError(StatusCode.RESOURCE_EXHAUSTED, details)


def _parse_filters(request: events_pb2.SubscribeRequest) -> Callable[[str], bool]:
    """Parse the only kind of filter that the bridge uses: ``topic~="REGEX"``."""
    patterns = [re.compile(match[1]) for text in request.filters if (match := re.fullmatch(r'topic~="(.*)"', text))]
    if len(patterns) != len(request.filters):
        raise SimulatedRpcError(StatusCode.INVALID_ARGUMENT, f"unsupported filters: {request.filters}")
    return lambda topic: not patterns or any(pattern.search(topic) for pattern in patterns)


def _namespace(context: Context) -> str:
    return str(dict(context.invocation_metadata() or ()).get(methods.NAMESPACE_HEADER, ""))


def _no_op() -> None:
    pass
