"""A subscription to containerd's events: a dedicated thread reads them and passes them to the event loop in batches.

containerd keeps an unbounded queue for a slow subscriber, so the thread reads every event immediately and never waits
for the loop. A synchronous gRPC stream with ``SingleThreadedUnaryStream`` is the cheapest way to read events in Python:
no other thread and no event loop is involved. The thread wakes the loop once per batch, not once per event, and the
loop decodes events when it takes a batch.

The queue needs no lock: only the thread appends and counts received bytes, only the loop removes and counts taken
bytes. The thread appends before it checks whether a wake-up is pending, and the loop clears the wake-up before it
checks whether events are queued, so no event is missed.

``RawEventStream`` returns containerd's bytes, for the proxy; ``ContainerdEventStream`` returns decoded events.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc.experimental import ChannelOptions

from bridge.containerd import decode, envelope_batches
from bridge.containerd.methods import SUBSCRIBE, channel_options, target
from bridge.containerd.protos.events_pb2 import SubscribeRequest
from bridge.containerd.rpc_errors import from_rpc_error
from bridge.core.containerd_model import Event
from bridge.core.errors import StreamOverflowError, TransientError

FILTERS = (r'topic~="^/(tasks|containers|namespaces|whalebridge)/"',)

DEFAULT_BUFFER_BYTES = 128 * 1024 * 1024
EVENT_OVERHEAD_BYTES = 64  # Python's overhead for the bytes object of an event
MAX_BATCH_EVENTS = 4096  # decoding takes the event loop about 10 ms
LINGER_SECONDS = 0.005
_JOIN_SECONDS = 1.0
# A wait that takes longer than _CAUGHT_UP_SECONDS shows that all events were read. The thread then sleeps, and reads
# the events that arrived meanwhile together: under load, waiting for each event costs as much as reading it.
_CAUGHT_UP_SECONDS = 0.0001
_NAP_SECONDS = 0.002


def linger(events: int, seconds: float) -> float:
    """Return how many seconds the next batch collects events, after a batch of ``events`` in ``seconds``.

    A single event is passed on immediately. A batch costs as much as a hundred events: at moderate rates the next batch
    collects about four events, for at most 20 ms, and at high rates it collects events for up to 100 ms.
    """
    rate = events / max(seconds, 0.001)
    if rate < 50:  # noqa: PLR2004 (events per second)
        return LINGER_SECONDS
    return max(min(4 / rate, 0.02), min(rate / 50_000, 0.1))


class RawEventStream:
    """A subscription that returns undecoded envelopes; create, use and close it on one event loop."""

    def __init__(self, path: str, *, buffer_bytes: int = DEFAULT_BUFFER_BYTES) -> None:
        self._path = path
        self._buffer_bytes = buffer_bytes
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._wakeup_pending = False
        self._queue: deque[bytes] = deque()
        self._received_bytes = 0  # written by the thread only
        self._taken_bytes = 0  # written by the loop only
        self._last_batch_at = -1.0
        self._next_batch_at = 0.0  # earliest time
        self._batched: bool | None = None  # unknown until the first message
        self._failure: TransientError | None = None
        options = [*channel_options(), (ChannelOptions.SingleThreadedUnaryStream, 1)]
        self._channel = grpc.insecure_channel(target(path), options=options)
        self._call = self._subscribe()
        self._thread = threading.Thread(target=self._run, name="containerd-events", daemon=True)
        self._thread.start()

    def _subscribe(self) -> Any:
        method: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(SUBSCRIBE.path)
        return method(SubscribeRequest(filters=FILTERS).SerializeToString(), metadata=(envelope_batches.HEADER,))

    async def raw_batch(self) -> Sequence[bytes]:
        """Wait for envelopes and return the queued ones in order, at least one and at most ``MAX_BATCH_EVENTS``.

        Raises:
            StreamOverflowError: The queue exceeded its limit and was dropped.
            TransientError: The stream ended, and all received envelopes have been returned.
        """
        while True:
            failure = self._failure  # read first, because the thread appends nothing after it sets this
            if failure is not None and (not self._queue or isinstance(failure, StreamOverflowError)):
                self._queue.clear()
                raise type(failure)(*failure.args)
            if not self._queue:
                await self._wait_for_events()
            elif self._is_batch_due():
                return self._take_batch()
            else:
                await asyncio.sleep(self._next_batch_at - self._loop.time())

    async def _wait_for_events(self) -> None:
        self._wakeup_pending = False
        self._arrived.clear()
        if not self._queue and self._failure is None:
            await self._arrived.wait()

    def _is_batch_due(self) -> bool:
        return len(self._queue) >= MAX_BATCH_EVENTS or self._loop.time() >= self._next_batch_at

    def _take_batch(self) -> list[bytes]:
        taken = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH_EVENTS))]
        self._taken_bytes += _total_size(taken)
        now = self._loop.time()
        self._last_batch_at, elapsed = now, now - self._last_batch_at
        self._next_batch_at = now + linger(len(taken), elapsed)
        return taken

    def close(self) -> None:
        """End the subscription and its thread, without a call to containerd; idempotent."""
        self._call.cancel()
        self._thread.join(_JOIN_SECONDS)

    # --- in the thread ---

    def _run(self) -> None:
        try:
            self._receive()
            failure = TransientError(f"containerd at {self._path} ended the event stream")
        except grpc.RpcError as error:
            failure = self._end_error(error)
        except DecodeError:
            failure = TransientError(f"proxy at {self._path}: unreadable message on the event stream")
            self._call.cancel()
        self._failure = self._failure or failure
        self._channel.close()
        self._wake()

    def _receive(self) -> None:
        """Receive events until the stream ends; an overflow cancels the stream."""
        returned = time.monotonic()
        for message in self._call:
            waited = time.monotonic() - returned
            for raw in self._split_message(message):
                self._received_bytes += len(raw) + EVENT_OVERHEAD_BYTES
                if self._failure is None and self._received_bytes - self._taken_bytes > self._buffer_bytes:
                    self._overflow()
                if self._failure is None:
                    self._queue.append(raw)
            if not self._wakeup_pending:
                self._wake()
            if waited > _CAUGHT_UP_SECONDS:
                time.sleep(_NAP_SECONDS)
            returned = time.monotonic()

    def _split_message(self, message: bytes) -> Sequence[bytes]:
        if self._batched is None:
            self._batched = envelope_batches.supports_batches(self._call.initial_metadata())
        return envelope_batches.unbatch(message) if self._batched else (message,)

    def _overflow(self) -> None:
        """Cancel the subscription: an unread subscription would fill containerd's memory instead of ours."""
        self._failure = StreamOverflowError(
            f"containerd at {self._path}: event queue exceeded {self._buffer_bytes} bytes"
        )
        self._call.cancel()

    def _end_error(self, error: grpc.RpcError) -> TransientError:
        if self._call.cancelled():
            return TransientError(f"containerd at {self._path}: the event stream was closed")
        failure = from_rpc_error(error, SUBSCRIBE.purpose, self._path)
        if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED:  # sent by the proxy when its own buffer overflows
            return StreamOverflowError(str(failure))
        return TransientError(str(failure))

    def _wake(self) -> None:
        self._wakeup_pending = True
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._arrived.set)


class ContainerdEventStream(RawEventStream):
    """Implements ``bridge.core.ports.EventStream``."""

    async def batch(self) -> Sequence[Event]:
        """Return the next batch as ``raw_batch`` does, decoded."""
        return [decode.event(raw) for raw in await self.raw_batch()]

    def drain(self) -> Sequence[Event]:
        """Return the events that were queued when the stream was closed; none after an overflow."""
        queued, self._queue = self._queue, deque()
        return [] if isinstance(self._failure, StreamOverflowError) else [decode.event(raw) for raw in queued]


def _total_size(raws: Iterable[bytes]) -> int:
    return sum(len(raw) + EVENT_OVERHEAD_BYTES for raw in raws)
