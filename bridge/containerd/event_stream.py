"""A subscription to containerd's events: they are read into memory as they arrive, and passed on in batches.

containerd keeps an unbounded queue for a slow subscriber, so events are read at once, even if the caller is busy.
They are decoded when they are taken. When the connection ends, all events that containerd had written to the socket
are returned before the error.

``RawEventStream`` returns containerd's bytes, for the proxy; ``ContainerdEventStream`` returns decoded events.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError

from bridge.containerd import decode, envelope_batches
from bridge.containerd.http2 import Call, GrpcConnection, Metadata, Status, StatusCode
from bridge.containerd.methods import SUBSCRIBE
from bridge.containerd.protos.events_pb2 import SubscribeRequest
from bridge.containerd.rpc_errors import from_status
from bridge.core.containerd_model import Event
from bridge.core.errors import StreamOverflowError, TransientError

FILTERS = (r'topic~="^/(tasks|containers|namespaces|whalebridge)/"',)

DEFAULT_BUFFER_BYTES = 128 * 1024 * 1024
EVENT_OVERHEAD_BYTES = 64  # Python's overhead for the bytes object of an event
MAX_BATCH_EVENTS = 4096  # decoding takes the event loop about 10 ms
LINGER_SECONDS = 0.005
# While a batch collects events, the socket is read at intervals: waking up for each event costs as much as processing
# it. A unix socket holds some 250 events or 200 KiB, so an interval should bring less, for containerd not to wait.
_EVENTS_PER_READ = 100
_BYTES_PER_READ = 64 * 1024
_MIN_READ_INTERVAL = 0.002
_MAX_READ_INTERVAL = 0.02


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
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._last_batch_at = -1.0
        self._next_batch_at = 0.0  # earliest time
        self._last_read_at = self._loop.time()
        self._read_interval = _MAX_READ_INTERVAL
        self._events_read = 0  # by the read that is running
        self._failure: TransientError | None = None
        self._connection = GrpcConnection(path, self._after_read)
        request = SubscribeRequest(filters=FILTERS).SerializeToString()
        self._connection.start(_Subscription(self, path), SUBSCRIBE.path, request, (envelope_batches.HEADER,))

    async def raw_batch(self) -> Sequence[bytes]:
        """Wait for envelopes and return the queued ones in order, at least one and at most ``MAX_BATCH_EVENTS``.

        Raises:
            StreamOverflowError: The queue exceeded its limit and was dropped.
            TransientError: The stream ended, and all received envelopes have been returned.
        """
        while True:
            if self._queue and self._is_batch_due():
                return self._take_batch()
            if self._failure is not None:
                raise type(self._failure)(*self._failure.args)
            self._arrived.clear()
            await self._arrived.wait()

    def _is_batch_due(self) -> bool:
        return (
            self._loop.time() >= self._next_batch_at
            or len(self._queue) >= MAX_BATCH_EVENTS
            or self._failure is not None
        )

    def _take_batch(self) -> list[bytes]:
        taken = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH_EVENTS))]
        self._queued_bytes -= sum(len(raw) + EVENT_OVERHEAD_BYTES for raw in taken)
        now = self._loop.time()
        self._last_batch_at, elapsed = now, now - self._last_batch_at
        seconds = linger(len(taken), elapsed)
        self._next_batch_at = now + seconds
        self._connection.pause(min(seconds, self._read_interval))
        return taken

    def close(self) -> None:
        """End the subscription, after what has arrived by now; idempotent."""
        self._connection.close()

    # --- from the connection ---

    def receive(self, envelopes: Iterable[bytes]) -> None:
        """Queue envelopes; beyond the limit, end the subscription, which would fill containerd's memory if unread."""
        for envelope in envelopes:
            self._queue.append(envelope)
            self._queued_bytes += len(envelope) + EVENT_OVERHEAD_BYTES
            self._events_read += 1
        if self._queued_bytes > self._buffer_bytes:
            self._queue.clear()
            self.fail(
                StreamOverflowError(f"containerd at {self._path}: event queue exceeded {self._buffer_bytes} bytes")
            )

    def fail(self, failure: TransientError) -> None:
        """End the subscription with an error, unless it has ended; the queued events are returned first."""
        self._failure = self._failure or failure
        self._connection.abort()
        self._arrived.set()

    def _after_read(self, size: int) -> float:
        """Wake the reader if a batch is due; return the seconds until the socket is read again."""
        now = self._loop.time()
        if size:
            share = max(self._events_read / _EVENTS_PER_READ, size / _BYTES_PER_READ)
            interval = (now - self._last_read_at) / share
            self._read_interval = min(max(interval, _MIN_READ_INTERVAL), _MAX_READ_INTERVAL)
        self._last_read_at = now
        self._events_read = 0
        if self._queue and self._is_batch_due():
            self._arrived.set()
        elif now < self._next_batch_at:
            return min(self._next_batch_at - now, self._read_interval)
        return self._read_interval if size else 0


class _Subscription(Call):
    """The call of a stream."""

    __slots__ = ("_batched", "_path", "_stream")

    def __init__(self, stream: RawEventStream, path: str) -> None:
        super().__init__()
        self._stream = stream
        self._path = path
        self._batched = False

    def receive_metadata(self, metadata: Metadata) -> None:
        self._batched = envelope_batches.supports_batches(metadata)

    def receive_message(self, message: bytes) -> None:
        try:
            self._stream.receive(envelope_batches.unbatch(message) if self._batched else (message,))
        except DecodeError:
            self._stream.fail(TransientError(f"proxy at {self._path}: unreadable message on the event stream"))

    def end(self, status: Status) -> None:
        self._stream.fail(self._failure(status))

    def _failure(self, status: Status) -> TransientError:
        if status.code is StatusCode.OK:
            return TransientError(f"containerd at {self._path} ended the event stream")
        if status.code is StatusCode.CANCELLED:
            return TransientError(f"containerd at {self._path}: the event stream was closed")
        error = from_status(*status, SUBSCRIBE.purpose, self._path)
        if status.code is StatusCode.RESOURCE_EXHAUSTED:  # sent by the proxy when its own buffer overflows
            return StreamOverflowError(str(error))
        return TransientError(str(error))


class ContainerdEventStream(RawEventStream):
    """Implements ``bridge.core.ports.EventStream``."""

    async def batch(self) -> Sequence[Event]:
        """Return the next batch as ``raw_batch`` does, decoded."""
        return [decode.event(raw) for raw in await self.raw_batch()]

    def drain(self) -> Sequence[Event]:
        """Return the events that had arrived when the stream was closed; none after an overflow."""
        queued, self._queue = self._queue, deque()
        return [decode.event(raw) for raw in queued]
