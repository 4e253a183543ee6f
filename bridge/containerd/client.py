"""containerd as a ``Source``: every call bounded in time, every failure translated, records however many.

A path that never led to containerd is a mistake of whoever gave it (``UnreachableError``); one that did may lead there
again, whatever is found meanwhile (``TransientError``): containerd recreates its socket when it starts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar
from weakref import WeakSet

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpc import StatusCode

from bridge.containerd import decode, rpc
from bridge.containerd.connection import Connection
from bridge.containerd.endpoint import Peer, probe, socket_path
from bridge.containerd.failures import RefusedError
from bridge.containerd.protos import containers_pb2, health_pb2, introspection_pb2, namespaces_pb2, tasks_pb2
from bridge.containerd.protos.events_pb2 import PublishRequest
from bridge.containerd.stream import DEFAULT_BUFFER_BYTES, EventStream
from bridge.core.errors import BridgeError, TransientError, UnreachableError, UnreadableError
from bridge.core.identity import Scope, everything
from bridge.core.labels import LabelRules
from bridge.core.model import ContainerKey, Engine, Metadata, Task, TaskEnd, TaskStatus

_Answer = TypeVar("_Answer", bound=Message)

_UNREACHED = frozenset({StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED})
_FOR_EVER = 100 * 365 * 86400.0  # seconds: a deadline that gRPC can reckon with


@dataclass(frozen=True)
class Timeouts:
    """How long a call may take, in seconds.

    ``call`` is for what containerd answers from memory or with one look into its database, or by asking one shim, for
    which it takes 2 s at most. ``listing`` is generous: containerd gives each shim that hangs 2 s, one after the other,
    and loads the spec of every container.
    """

    connect: float = 10.0
    call: float = 10.0
    listing: float = 120.0


class ContainerdClient:
    """Implements ``bridge.core.ports.Source``; to be used on one event loop.

    ``rules`` and ``scope`` may be replaced at any time: they hold for what is read from then on.
    """

    def __init__(
        self,
        address: str,
        rules: LabelRules,
        *,
        scope: Scope = everything,
        timeouts: Timeouts | None = None,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    ) -> None:
        """Connect to nothing yet.

        Raises:
            UnreachableError: ``address`` is neither ``PATH`` nor ``unix:PATH`` nor ``unix://PATH``.
        """
        self.path = socket_path(address)
        self.rules = rules
        self.scope = scope
        self._timeouts = timeouts or Timeouts()
        self._buffer_bytes = buffer_bytes
        self._connection: Connection | None = None
        self._peer: Peer | None = None
        self._was_containerd = False
        self._streams: WeakSet[EventStream] = WeakSet()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # --- who answers ---

    async def engine(self) -> Engine:
        """Connect where that is needed, and tell which containerd answers; follows a socket that was replaced.

        Raises:
            UnreachableError: The path is no containerd's, or is forbidden, and never was another.
            TransientError: containerd does not answer now.
        """
        try:
            peer = await self._connect()
            version = await self._call(rpc.VERSION, Empty())
            server = await self._server()
            pid = server.proxied_pid if server.HasField("proxied_pid") else peer.pid
            engine = Engine(id=server.uuid, version=version.version, api=self.path, pid=pid)
        except BridgeError as error:
            raise self._judged(error) from error
        self._was_containerd = True
        return engine

    def _judged(self, error: BridgeError) -> BridgeError:
        if self._was_containerd:
            return error if isinstance(error, TransientError) else TransientError(str(error))
        if isinstance(error, RefusedError) and error.code is StatusCode.UNIMPLEMENTED:
            text = f"{self.path} is not containerd's socket: another gRPC server responds; use containerd's socket"
            return UnreachableError(text)
        return error

    async def _connect(self) -> Peer:
        peer = await probe(self.path, self._timeouts.connect)
        if peer != self._peer or self._connected().broken:
            await self._disconnect()
            self._peer = peer
        return peer

    async def _server(self) -> introspection_pb2.ServerResponse:
        """Return who the server is; the UUID is "" for a daemon that does not tell (whalewatcher's rule)."""
        try:
            return await self._call(rpc.SERVER, Empty())
        except RefusedError as error:
            if error.code is StatusCode.UNIMPLEMENTED:
                return introspection_pb2.ServerResponse()
            raise

    async def health(self) -> bool:
        """Ask the standard gRPC health service whether containerd serves."""
        answer = await self._call(rpc.HEALTH, health_pb2.HealthCheckRequest())
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    # --- events ---

    async def subscribe(self) -> EventStream:
        """Start receiving events; that it works is known only when a mark came back."""
        stream = EventStream(self.path, buffer_bytes=self._buffer_bytes)
        self._streams.add(stream)
        return stream

    async def mark(self, nonce: str, number: int) -> None:
        """Publish a mark, which comes back on every stream that works.

        ``nonce`` is to be of letters and digits, 76 at most (containerd's rule for topics).

        Raises:
            TransientError: It was not published; where containerd, or a proxy before it, refuses, the text says so.
        """
        topic = f"{decode.MARK_TOPIC}{nonce}/{number}"
        request = PublishRequest(topic=topic, event={"type_url": Empty.DESCRIPTOR.full_name})
        try:
            await self._call(rpc.PUBLISH, request, rpc.MARK_NAMESPACE)
        except RefusedError as error:
            if error.code in (StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED, StatusCode.UNIMPLEMENTED):
                raise TransientError(f"{error}; cannot verify the subscription: allow Events.Publish") from error
            raise

    # --- listings ---

    async def namespaces(self) -> Sequence[str]:
        """List all namespaces, also those without containers."""
        answer = await self._call(rpc.NAMESPACES, namespaces_pb2.ListNamespacesRequest())
        return [namespace.name for namespace in answer.namespaces]

    async def containers(self, namespace: str) -> AsyncIterator[Metadata]:
        """List a namespace's records, however many and however large; none for a namespace that does not exist.

        All in one message first, as that is ten times cheaper; where that would be too large, one by one.
        """
        if not rpc.is_namespace(namespace):
            return
        request = containers_pb2.ListContainersRequest()
        seconds = self._timeouts.listing
        try:
            answer = await self._call(rpc.CONTAINERS, request, namespace, seconds)
        except RefusedError as error:
            if error.code is not StatusCode.RESOURCE_EXHAUSTED:
                raise
        else:
            for record in answer.containers:
                yield decode.metadata(namespace, record, self.rules, self.scope)
            return
        async for message in self._connected().stream(rpc.CONTAINERS_STREAM, request, namespace, seconds):
            yield decode.metadata(namespace, message.container, self.rules, self.scope)

    async def tasks(self, namespace: str) -> Sequence[Task]:
        """List a namespace's tasks; one that is left out or UNKNOWN may live all the same."""
        if not rpc.is_namespace(namespace):
            return []
        request = tasks_pb2.ListTasksRequest()
        answer = await self._call(rpc.TASKS, request, namespace, self._timeouts.listing)
        return [decode.task(namespace, process) for process in answer.tasks]

    # --- single ones ---

    async def container(self, key: ContainerKey) -> Metadata | None:
        """Return a container's record as it is now; None where there is none.

        Raises:
            TransientError: containerd cannot be reached.
            UnreadableError: It can, but does not give this record.
        """
        try:
            answer = await self._get(rpc.CONTAINER, containers_pb2.GetContainerRequest(id=key.id), key)
        except RefusedError as error:
            if error.code in _UNREACHED:
                raise
            raise UnreadableError(str(error)) from error
        return None if answer is None else decode.metadata(key.namespace, answer.container, self.rules, self.scope)

    async def task(self, key: ContainerKey) -> Task | None:
        """Return a container's task as it is now; None is containerd's word that there is none.

        Raises:
            TransientError: containerd or the shim gave no answer, which proves nothing.
        """
        answer = await self._get(rpc.TASK, tasks_pb2.GetRequest(container_id=key.id), key)
        task = await self._without_record(key) if answer is None else decode.task(key.namespace, answer.process)
        if task is not None and task.status is TaskStatus.UNKNOWN:
            raise TransientError(
                f"containerd at {self.path} does not know the state of {key}: its shim gives no answer"
            )
        return task

    async def _without_record(self, key: ContainerKey) -> Task | None:
        """Return a task that containerd did not find: it looks for the record first, which can be gone before it."""
        request = containers_pb2.GetContainerRequest(id=key.id)
        if not _is_possible(key) or await self._get(rpc.CONTAINER, request, key) is not None:
            return None
        return next((task for task in await self.tasks(key.namespace) if task.key == key), None)

    async def wait(self, key: ContainerKey) -> TaskEnd | None:
        """Wait for the end of a container's task, for as long as it takes; None where there is no task.

        Raises:
            TransientError: The connection ended, or containerd or the shim gave no answer.
        """
        answer = await self._get(rpc.WAIT, tasks_pb2.WaitRequest(container_id=key.id), key, seconds=_FOR_EVER)
        return None if answer is None else TaskEnd(answer.exit_status, decode.nanoseconds(answer.exited_at))

    async def _get(
        self, method: rpc.Method[_Answer], request: Message, key: ContainerKey, *, seconds: float | None = None
    ) -> _Answer | None:
        if not _is_possible(key):
            return None
        try:
            return await self._call(method, request, key.namespace, seconds)
        except RefusedError as error:
            if error.code is StatusCode.NOT_FOUND:
                return None
            raise

    # --- the connection ---

    async def _call(
        self, method: rpc.Method[_Answer], request: Message, namespace: str = "", seconds: float | None = None
    ) -> _Answer:
        return await self._connected().call(method, request, namespace, seconds or self._timeouts.call)

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self.path)
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def close(self) -> None:
        """End all connections and subscriptions; harmless when repeated."""
        for stream in list(self._streams):
            stream.close()
        await self._disconnect()


def _is_possible(key: ContainerKey) -> bool:
    return bool(key.id) and rpc.is_namespace(key.namespace)
