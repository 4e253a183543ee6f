"""containerd as an ``EngineClient``.

Invariants:
- Every call except those that wait for exits has a deadline, and every failure is translated into one of our errors.
- Listings have no size limit.
- A path that never led to containerd is a configuration error (``UnreachableError``). A path that did lead to
  containerd may do so again (``TransientError``): containerd recreates its socket when it starts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar
from weakref import WeakSet

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from bridge.clock import SystemClock
from bridge.containerd import decode, methods
from bridge.containerd.connection import Connection
from bridge.containerd.event_stream import DEFAULT_BUFFER_BYTES, ContainerdEventStream
from bridge.containerd.http2 import StatusCode
from bridge.containerd.protos import (
    containers_pb2,
    cri_pb2,
    health_pb2,
    images_pb2,
    introspection_pb2,
    namespaces_pb2,
    tasks_pb2,
)
from bridge.containerd.protos.events_pb2 import PublishRequest
from bridge.containerd.rpc_errors import RpcError
from bridge.containerd.socket_probe import Peer, probe, socket_path
from bridge.containerd.wait_calls import ContainerdWaitCalls
from bridge.core.container_metadata import POD_UID_LABEL
from bridge.core.containerd_model import ContainerKey, Engine, Image, Labels, Metadata, RecordedExit, Task, TaskStatus
from bridge.core.errors import BridgeError, TransientError, UnreachableError, UnreadableError
from bridge.core.filters import ContainerPredicate, match_all
from bridge.core.label_rules import LabelRules
from bridge.core.ports import Clock
from bridge.task_groups import with_timeout

_Response = TypeVar("_Response", bound=Message)

_UNREACHABLE_CODES = frozenset({StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED})


@dataclass(frozen=True)
class Timeouts:
    """Timeouts of calls, in seconds.

    ``call`` is for calls that containerd serves from memory, with one database read, or with one request to a shim,
    which containerd limits to 2 s. ``listing`` is longer: containerd waits up to 2 s for each shim that hangs, one
    after the other, and loads the spec of every container.
    """

    connect: float = 10.0
    call: float = 10.0
    listing: float = 120.0


class ContainerdClient:
    """Implements ``bridge.core.ports.EngineClient``; for use on one event loop.

    ``rules`` and ``container_filter`` may be replaced at any time; the new values apply to later reads.
    ``proxy_denied_calls`` is the number of calls that whalebridge's proxy had denied at the last marker, None if there
    is no proxy.
    """

    def __init__(
        self,
        address: str,
        rules: LabelRules,
        *,
        container_filter: ContainerPredicate = match_all,
        timeouts: Timeouts | None = None,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        clock: Clock | None = None,
    ) -> None:
        """Check the address; the first call connects.

        Raises:
            UnreachableError: ``address`` is neither ``PATH`` nor ``unix:PATH`` nor ``unix://PATH``.
        """
        self.path = socket_path(address)
        self.rules = rules
        self.container_filter = container_filter
        self.proxy_denied_calls: int | None = None
        self._timeouts = timeouts or Timeouts()
        self._buffer_bytes = buffer_bytes
        self._clock = clock or SystemClock()
        self._connection: Connection | None = None
        self._peer: Peer | None = None
        self._was_containerd = False
        self._proxied = False
        self._streams: WeakSet[ContainerdEventStream] = WeakSet()
        self._wait_calls: WeakSet[ContainerdWaitCalls] = WeakSet()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # --- the server ---

    async def engine(self) -> Engine:
        """Connect if necessary, also to a socket that was replaced, and return the identity of containerd.

        Raises:
            UnreachableError: The path is not containerd's socket or not accessible, and never was containerd's.
            TransientError: containerd does not respond at the moment.
        """
        try:
            peer = await self._connect()
            version = await self._call(methods.VERSION, Empty())
            server = await self._get_server()
            self._proxied = server.HasField("proxied_pid")
            pid = server.proxied_pid if self._proxied else peer.pid
            engine = Engine(id=server.uuid, version=version.version, api=self.path, pid=pid)
        except BridgeError as error:
            raise self._classified(error) from error
        self._was_containerd = True
        return engine

    def _classified(self, error: BridgeError) -> BridgeError:
        if self._was_containerd:
            return error if isinstance(error, TransientError) else TransientError(str(error))
        if isinstance(error, RpcError) and error.code is StatusCode.UNIMPLEMENTED:
            text = f"{self.path} is not containerd's socket: another gRPC server responds; use containerd's socket"
            return UnreachableError(text)
        return error

    async def _connect(self) -> Peer:
        peer = await probe(self.path, self._timeouts.connect, self._clock)
        if peer != self._peer:
            await self._disconnect()
            self._peer = peer
        return peer

    async def _get_server(self) -> introspection_pb2.ServerResponse:
        """Return the server's identity; the UUID is "" for a daemon without one (whalewatcher's rule)."""
        try:
            return await self._call(methods.SERVER, Empty())
        except RpcError as error:
            if error.code is StatusCode.UNIMPLEMENTED:
                return introspection_pb2.ServerResponse()
            raise

    async def health(self) -> bool:
        """Return whether containerd is serving, according to the standard gRPC health service."""
        response = await self._call(methods.HEALTH, health_pb2.HealthCheckRequest())
        return response.status == health_pb2.HealthCheckResponse.SERVING

    # --- events ---

    async def subscribe(self) -> ContainerdEventStream:
        """Start receiving events; only a marker that came back confirms the subscription."""
        stream = ContainerdEventStream(self.path, buffer_bytes=self._buffer_bytes)
        self._streams.add(stream)
        return stream

    async def publish_marker(self, nonce: str, number: int) -> None:
        """Publish a marker event, which every working stream receives.

        ``nonce`` has at most 76 letters and digits (containerd's rule for topics).

        Raises:
            TransientError: The marker was not published. The message says so if containerd or a proxy denies the call.
        """
        topic = f"{decode.MARKER_TOPIC_PREFIX}{nonce}/{number}"
        request = PublishRequest(topic=topic, event={"type_url": Empty.DESCRIPTOR.full_name})
        try:
            response = await self._call(methods.PUBLISH, request, methods.MARKER_NAMESPACE)
        except RpcError as error:
            if error.code in (StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED, StatusCode.UNIMPLEMENTED):
                raise TransientError(f"{error}; cannot verify the subscription: allow Events.Publish") from error
            raise
        if response.HasField("proxy_denied_calls"):
            self.proxy_denied_calls = response.proxy_denied_calls

    # --- listings ---

    async def namespaces(self) -> Sequence[str]:
        """Return all namespaces, including those without containers."""
        response = await self._call(methods.NAMESPACES, namespaces_pb2.ListNamespacesRequest())
        return [namespace.name for namespace in response.namespaces]

    async def containers(self, namespace: str) -> AsyncIterator[Metadata]:
        """Yield the metadata of a namespace's containers; nothing for a namespace that does not exist.

        Requests all of them in one message, which is ten times cheaper, and one by one if that message is too large.
        """
        if not methods.is_valid_namespace(namespace):
            return
        request = containers_pb2.ListContainersRequest()
        seconds = self._timeouts.listing
        try:
            response = await self._call(methods.CONTAINERS, request, namespace, seconds)
        except RpcError as error:
            if error.code is not StatusCode.RESOURCE_EXHAUSTED:
                raise
        else:
            for container in response.containers:
                yield decode.metadata(namespace, container, self.rules, self.container_filter)
            return
        async for message in self._get_connection().stream(methods.CONTAINERS_STREAM, request, namespace, seconds):
            yield decode.metadata(namespace, message.container, self.rules, self.container_filter)

    async def tasks(self, namespace: str) -> Sequence[Task]:
        """Return a namespace's tasks; a task that is missing or UNKNOWN may still be running."""
        if not methods.is_valid_namespace(namespace):
            return []
        request = tasks_pb2.ListTasksRequest()
        response = await self._call(methods.TASKS, request, namespace, self._timeouts.listing)
        return [decode.task(namespace, process) for process in response.tasks]

    # --- single containers ---

    async def container(self, key: ContainerKey) -> Metadata | None:
        """Return a container's current metadata; None if there is no such container.

        Raises:
            TransientError: containerd cannot be reached.
            UnreadableError: containerd cannot return this container's metadata.
        """
        try:
            response = await self._get_or_none(methods.CONTAINER, containers_pb2.GetContainerRequest(id=key.id), key)
        except RpcError as error:
            raise _classified_error(error) from error
        return (
            None
            if response is None
            else decode.metadata(key.namespace, response.container, self.rules, self.container_filter)
        )

    async def task(self, key: ContainerKey) -> Task | None:
        """Return a container's current task; None if containerd reports that there is no task.

        Raises:
            TransientError: containerd or the shim did not respond, so the state is unknown.
        """
        response = await self._get_or_none(methods.TASK, tasks_pb2.GetRequest(container_id=key.id), key)
        task = (
            await self._find_task_without_metadata(key)
            if response is None
            else decode.task(key.namespace, response.process)
        )
        if task is not None and task.status is TaskStatus.UNKNOWN:
            raise TransientError(f"containerd at {self.path}: state of {key} is unknown; its shim does not respond")
        return task

    async def _find_task_without_metadata(self, key: ContainerKey) -> Task | None:
        """Return a task whose container metadata was deleted first: Tasks.Get looks the metadata up before the task."""
        request = containers_pb2.GetContainerRequest(id=key.id)
        if not methods.is_valid_key(key) or await self._get_or_none(methods.CONTAINER, request, key) is not None:
            return None
        return next((task for task in await self.tasks(key.namespace) if task.key == key), None)

    # --- images ---

    async def image(self, namespace: str, name: str, seconds: float) -> Image | None:
        """Return what the name of an image points to; None if there is no such image.

        Raises:
            TransientError: containerd cannot be reached, or did not respond within the time.
            UnreadableError: containerd fails, or the proxy denies the call.
        """
        if "\ufffd" in name or not methods.is_valid_namespace(namespace):  # the name is not text: see ``decode.text``
            return None
        try:
            response = await self._call(
                methods.IMAGE, images_pb2.GetImageRequest(name=name.encode()), namespace, seconds
            )
        except RpcError as error:
            if error.code is StatusCode.NOT_FOUND:
                return None
            raise _classified_error(error) from error
        return decode.image(response.image)

    # --- CRI ---

    async def exited_containers(self, seconds: float) -> Sequence[ContainerKey] | None:
        """Return the containers that CRI knows to have exited, in the order of creation; None if there is no CRI.

        Raises:
            TransientError: CRI did not respond within the time, or is not initialized yet.
            UnreadableError: CRI fails, or the proxy denies the call.
        """
        try:
            response = await self._call(methods.CRI_CONTAINERS, methods.CRI_CONTAINERS_REQUEST, "", seconds)
        except RpcError as error:
            if error.code is StatusCode.UNIMPLEMENTED:
                return None
            raise _classified_cri_error(error) from error
        return decode.exited_containers(response)

    async def recorded_exit(self, key: ContainerKey, seconds: float) -> RecordedExit | None:
        """Return CRI's record of a container that has exited; None if CRI has none. Errors as above."""
        request = cri_pb2.ContainerStatusRequest(container_id=key.id)
        try:
            response = await self._call(methods.CRI_STATUS, request, "", seconds)
        except RpcError as error:
            if error.code in (StatusCode.NOT_FOUND, StatusCode.UNIMPLEMENTED):
                return None
            raise _classified_cri_error(error) from error
        return decode.recorded_exit(key, response.status) if response.status.id == key.id else None

    async def pod_labels(self, uids: Collection[str], seconds: float) -> Mapping[str, Labels]:
        """Return the own labels of CRI's pods by uid, at least of these; empty if there is no CRI. Errors as above.

        Requests all pods in one message, and one by one if that message is too large, as annotations can make it.
        """
        selector = [cri_pb2.Label(key=POD_UID_LABEL.encode(), value=uid.encode()) for uid in uids]
        single = len(selector) == 1
        request = cri_pb2.ListPodSandboxRequest(filter={"label_selector": selector} if single else None)
        try:
            response = await self._call(methods.CRI_PODS, request, "", seconds)
        except RpcError as error:
            if error.code is StatusCode.UNIMPLEMENTED:
                return {}
            if error.code is StatusCode.RESOURCE_EXHAUSTED and not single:
                return await with_timeout(lambda: self._pod_labels_of_each(uids, seconds), seconds, self._clock)
            raise _classified_cri_error(error) from error
        return decode.pod_labels(response, self.rules)

    async def _pod_labels_of_each(self, uids: Collection[str], seconds: float) -> Mapping[str, Labels]:
        labels: dict[str, Labels] = {}
        for uid in uids:
            labels |= await self.pod_labels([uid], seconds)
        return labels

    def wait_calls(self) -> ContainerdWaitCalls:
        """Return calls that wait for exits; they are closed with the client."""
        calls = ContainerdWaitCalls(self.path, proxied=self._proxied)
        self._wait_calls.add(calls)
        return calls

    async def _get_or_none(
        self, method: methods.Method[_Response], request: Message, key: ContainerKey
    ) -> _Response | None:
        if not methods.is_valid_key(key):
            return None
        try:
            return await self._call(method, request, key.namespace)
        except RpcError as error:
            if error.code is StatusCode.NOT_FOUND:
                return None
            raise

    # --- the connection ---

    async def _call(
        self, method: methods.Method[_Response], request: Message, namespace: str = "", seconds: float | None = None
    ) -> _Response:
        return await self._get_connection().call(method, request, namespace, seconds or self._timeouts.call)

    def _get_connection(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self.path, self._clock)
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def close(self) -> None:
        """Close all connections and subscriptions; idempotent."""
        for stream in list(self._streams):
            stream.close()
        for calls in list(self._wait_calls):
            calls.close()
        await self._disconnect()


def _classified_error(error: RpcError) -> BridgeError:
    """Return the error, as one that a retry cannot fix unless containerd cannot be reached."""
    return error if error.code in _UNREACHABLE_CODES else UnreadableError(str(error))


def _classified_cri_error(error: RpcError) -> BridgeError:
    """Return the error, as one that a retry cannot fix unless CRI may respond later.

    While CRI is not initialized, containerd 1.6 returns UNKNOWN, and 2.4 UNAVAILABLE.
    """
    return error if error.code is StatusCode.UNKNOWN else _classified_error(error)
