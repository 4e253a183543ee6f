"""A client of the simulated containerd in the same process, on a `Clock`: the real client without gRPC and threads."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from bridge.containerd import decode, methods
from bridge.containerd.client import ContainerdClient
from bridge.containerd.connection import Connection
from bridge.containerd.event_stream import ContainerdEventStream
from bridge.containerd.http2 import StatusCode
from bridge.containerd.methods import Method
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.containerd.protos.tasks_pb2 import WaitRequest
from bridge.containerd.rpc_errors import RpcError, from_status, unreadable_response
from bridge.containerd.socket_probe import Peer
from bridge.containerd.wait_calls import ContainerdWaitCalls, OnEnd
from bridge.core.containerd_model import ContainerKey, Event, ExitStatus
from bridge.core.errors import BridgeError, StreamOverflowError, TransientError
from bridge.core.filters import ContainerPredicate, match_all
from bridge.core.label_rules import LabelRules
from bridge.core.ports import Clock
from tests.simulator.containerd import SimulatedContainerd
from tests.simulator.state import SimulatedRpcError, State

T = TypeVar("T")
R = TypeVar("R", bound=Message)


class InProcessStream(ContainerdEventStream):
    """A subscription of the state's events, without a thread; nothing is returned while it is `held`.

    containerd does not confirm a subscription: it begins after ``delay`` seconds.
    """

    def __init__(self, state: State, *, delay: float = 0, buffer_events: int = 1_000_000) -> None:
        self.closed = self.held = False
        self._events: list[Event] = []
        self._error: TransientError | None = None
        self._changed = asyncio.Event()
        self._buffer_events = buffer_events
        self._listeners = state.listeners
        if delay:
            asyncio.get_running_loop().call_later(delay, self._subscribe_listener)
        else:
            self._subscribe_listener()

    def put(self, *events: Event) -> None:
        """Receive events, also such as containerd would not send now."""
        if self._error is None:
            self._events += events
        if len(self._events) > self._buffer_events:
            self._events.clear()
            self.end(StreamOverflowError("event queue exceeded"))
        self._changed.set()

    def end(self, error: TransientError | None = None) -> None:
        """End the stream."""
        self._error = self._error or error or TransientError("stream ended")
        self._changed.set()
        self._unsubscribe()

    @property
    def backlog(self) -> int:
        """Return the number of events that were not taken yet."""
        return len(self._events)

    async def batch(self) -> Sequence[Event]:
        while self.held or not self._events:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        return self.drain()

    def close(self) -> None:
        self.closed = True
        self._unsubscribe()

    def drain(self) -> Sequence[Event]:
        events, self._events = self._events, []
        return events

    def _on_envelope(self, envelope: Envelope | None) -> None:
        if envelope is None:
            self.end()
        else:
            self.put(decode.event(envelope.SerializeToString()))

    def _subscribe_listener(self) -> None:
        if not self.closed and self._error is None:
            self._listeners.append(self._on_envelope)

    def _unsubscribe(self) -> None:
        if self._on_envelope in self._listeners:
            self._listeners.remove(self._on_envelope)


class InProcessConnection(Connection):
    """Calls the simulated containerd; responses pass through their wire format, and errors through the translation.

    ``killed``: the process of the client was killed, so that nothing happens any more.
    """

    killed = False

    def __init__(self, containerd: SimulatedContainerd, clock: Clock) -> None:
        self._containerd = containerd
        self._clock = clock
        self._path = containerd.address

    async def call(self, method: Method[R], request: Message, namespace: str, seconds: float) -> R:
        if self.killed:
            await asyncio.Event().wait()
        with self._translated(method):
            raw = await self._within(seconds, self._containerd.call(method.path, request, namespace))
            return method.response_type.FromString(raw)

    async def stream(self, method: Method[R], request: Message, namespace: str, seconds: float) -> AsyncIterator[R]:
        with self._translated(method):
            messages = self._containerd.stream(method.path, request, namespace)
            while (raw := await self._within(seconds, anext(messages, None))) is not None:
                yield method.response_type.FromString(raw)

    async def _within(self, seconds: float, response: Awaitable[T]) -> T:
        """Return a response, which counts as a call in flight until then."""
        task = asyncio.ensure_future(response)
        self._containerd.calls_in_flight[task] = None
        try:
            async with self._clock.timeout(seconds if seconds < math.inf else None):
                return await task
        finally:
            del self._containerd.calls_in_flight[task]

    @contextmanager
    def _translated(self, method: Method[R]) -> Iterator[None]:
        try:
            yield
        except SimulatedRpcError as error:
            raise from_status(error.code, error.details, method.purpose, self._path) from None
        except TimeoutError:
            raise from_status(StatusCode.DEADLINE_EXCEEDED, "timeout", method.purpose, self._path) from None
        except DecodeError as error:
            raise unreadable_response(method.path, self._path) from error

    def close(self) -> None:
        """Do nothing: the callers cancel their calls."""


class InProcessWaitCalls(ContainerdWaitCalls):
    """Pending calls of ``client.wait_for_exit``."""

    def __init__(self, client: InProcessClient) -> None:
        super().__init__(client.path)
        self._client = client
        self._tasks: dict[asyncio.Task[None], None] = {}  # in order, unlike a set

    def start(self, key: ContainerKey, on_end: OnEnd) -> None:
        if not self._closed:
            task = asyncio.ensure_future(self._wait(key, on_end))
            self._tasks[task] = None
            task.add_done_callback(self._tasks.pop)

    async def _wait(self, key: ContainerKey, on_end: OnEnd) -> None:
        try:
            result: ExitStatus | BridgeError | None = await self._client.wait_for_exit(key)
        except BridgeError as error:
            result = error
        if not self._closed:
            on_end(result)

    def close(self) -> None:
        super().close()
        for task in self._tasks:
            task.cancel()


class InProcessClient(ContainerdClient):
    """A client of ``containerd``; `stream` is the newest subscription."""

    stream: InProcessStream

    def __init__(
        self,
        containerd: SimulatedContainerd,
        clock: Clock,
        rules: LabelRules | None = None,
        *,
        container_filter: ContainerPredicate = match_all,
        subscription_delay: Callable[[], float] = lambda: 0,
    ) -> None:
        super().__init__(containerd.address, rules or LabelRules.keep_all(), container_filter=container_filter)
        self.containerd = containerd
        self._subscription_delay = subscription_delay
        self._connection: InProcessConnection = InProcessConnection(containerd, clock)

    async def subscribe(self) -> InProcessStream:
        self.stream = InProcessStream(self.containerd.state, delay=self._subscription_delay())
        return self.stream

    def wait_calls(self) -> InProcessWaitCalls:
        return InProcessWaitCalls(self)

    async def wait_for_exit(self, key: ContainerKey) -> ExitStatus | None:
        """Wait for the exit of a container's task; return None if there is no task."""
        request = WaitRequest(container_id=key.id)
        try:
            response = await self._connection.call(methods.WAIT, request, key.namespace, math.inf)
        except RpcError as error:
            if error.code is StatusCode.NOT_FOUND:
                return None
            raise
        return ExitStatus(response.exit_status, decode.nanoseconds(response.exited_at))

    def kill(self) -> None:
        """End the process of the client."""
        self._connection.killed = True
        if hasattr(self, "stream"):
            self.stream.close()

    async def _connect(self) -> Peer:
        if self.containerd.down:
            raise TransientError(f"cannot connect to containerd at {self.path}: connection refused")
        return Peer(1, 1, 812)

    async def _disconnect(self) -> None:
        """Keep the connection, which needs no channel."""
