"""One subscription to containerd's events: read in a thread of its own, handed to the event loop in batches.

containerd keeps an unbounded queue for a slow subscriber, so the thread takes whatever comes, at once, and never waits
for the loop. A synchronous gRPC stream with ``SingleThreadedUnaryStream`` is the cheapest way to read one from Python:
no other thread and no event loop takes part in receiving an event. The loop is woken once a batch, not once an event;
decoding is done there, when a batch is asked for.

The hand-over needs no lock: the thread alone appends and counts what it received, the loop alone takes and counts what
it took. The thread appends before it looks whether a wake-up is under way, the loop forgets the wake-up before it looks
whether something is there; so nothing is overlooked.

``RawStream`` hands over containerd's bytes, for the proxy, which passes them on; ``EventStream`` what they mean.
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

from bridge.containerd import decode, packing
from bridge.containerd.failures import refusal
from bridge.containerd.protos.events_pb2 import SubscribeRequest
from bridge.containerd.rpc import SUBSCRIBE, channel_options, target
from bridge.core.errors import StreamOverflowError, TransientError
from bridge.core.model import Event

FILTERS = (r'topic~="^/(tasks|containers|namespaces|whalebridge)/"',)

DEFAULT_BUFFER_BYTES = 128 * 1024 * 1024
ITEM_BYTES = 64  # what Python needs to hold an event's bytes, besides the bytes
BATCH_EVENTS = 4096  # decoding so many keeps the event loop busy for some 10 ms
LINGER_SECONDS = 0.005
_JOIN_SECONDS = 1.0
# Whoever had to wait for an event has read all there was. What comes during a nap is then read at once: waiting for
# each event of a flood anew costs as much as reading it.
_CAUGHT_UP_SECONDS = 0.0001
_NAP_SECONDS = 0.002


def linger(events: int, seconds: float) -> float:
    """Return for how many seconds the next batch gathers, after one of so many events in so many seconds.

    A single event is handed over at once. A batch costs as much as a hundred events: where they come often it waits for
    some four of them, for 20 ms at the most, and in a flood for 100 ms.
    """
    rate = events / max(seconds, 0.001)
    if rate < 50:  # noqa: PLR2004 (a second)
        return LINGER_SECONDS
    return max(min(4 / rate, 0.02), min(rate / 50_000, 0.1))


class RawStream:
    """A subscription, as bytes; to be made, used and closed on one event loop."""

    def __init__(self, path: str, *, buffer_bytes: int = DEFAULT_BUFFER_BYTES) -> None:
        self._path = path
        self._buffer_bytes = buffer_bytes
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._wakeup_due = False
        self._held: deque[bytes] = deque()
        self._received = 0  # written by the thread only
        self._taken = 0  # written by the loop only
        self._last_batch = -1.0
        self._next_batch = 0.0  # not before that
        self._packed: bool | None = None  # unknown before the first message
        self._failure: TransientError | None = None
        options = [*channel_options(), (ChannelOptions.SingleThreadedUnaryStream, 1)]
        self._channel = grpc.insecure_channel(target(path), options=options)
        self._call = self._subscribe()
        self._thread = threading.Thread(target=self._drain, name="containerd-events", daemon=True)
        self._thread.start()

    def _subscribe(self) -> Any:
        method: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(SUBSCRIBE.path)
        return method(SubscribeRequest(filters=FILTERS).SerializeToString(), metadata=(packing.HEADER,))

    async def raw_batch(self) -> Sequence[bytes]:
        """Wait for envelopes; return those that there are, in order, at least one and at most ``BATCH_EVENTS``.

        Raises:
            StreamOverflowError: More was received than may be held; what was held is dropped.
            TransientError: The stream ended; whatever was received before has been returned.
        """
        while True:
            failure = self._failure  # looked at first: nothing is appended after it is set
            if failure is not None and (not self._held or isinstance(failure, StreamOverflowError)):
                self._held.clear()
                raise type(failure)(*failure.args)
            if not self._held:
                await self._more()
            elif self._is_due():
                return self._take()
            else:
                await asyncio.sleep(self._next_batch - self._loop.time())

    async def _more(self) -> None:
        self._wakeup_due = False
        self._arrived.clear()
        if not self._held and self._failure is None:
            await self._arrived.wait()

    def _is_due(self) -> bool:
        return len(self._held) >= BATCH_EVENTS or self._loop.time() >= self._next_batch

    def _take(self) -> list[bytes]:
        taken = [self._held.popleft() for _ in range(min(len(self._held), BATCH_EVENTS))]
        self._taken += _size(taken)
        now = self._loop.time()
        self._last_batch, elapsed = now, now - self._last_batch
        self._next_batch = now + linger(len(taken), elapsed)
        return taken

    def close(self) -> None:
        """End the subscription and its thread; harmless when repeated. Cancelling asks nothing of containerd."""
        self._call.cancel()
        self._thread.join(_JOIN_SECONDS)

    # --- in the thread ---

    def _drain(self) -> None:
        try:
            self._receive()
            failure = TransientError(f"containerd at {self._path} ended the event stream")
        except grpc.RpcError as error:
            failure = self._ended(error)
        except DecodeError:
            failure = TransientError(f"the proxy at {self._path} sent an unreadable message")
            self._call.cancel()
        self._failure = self._failure or failure
        self._channel.close()
        self._wake()

    def _receive(self) -> None:
        """Take events until the stream ends; after an overflow that is soon."""
        returned = time.monotonic()
        for message in self._call:
            waited = time.monotonic() - returned
            for raw in self._envelopes(message):
                self._received += len(raw) + ITEM_BYTES
                if self._failure is None and self._received - self._taken > self._buffer_bytes:
                    self._overflow()
                if self._failure is None:
                    self._held.append(raw)
            if not self._wakeup_due:
                self._wake()
            if waited > _CAUGHT_UP_SECONDS:
                time.sleep(_NAP_SECONDS)
            returned = time.monotonic()

    def _envelopes(self, message: bytes) -> Sequence[bytes]:
        if self._packed is None:
            self._packed = packing.is_packed(self._call.initial_metadata())
        return packing.unpack(message) if self._packed else (message,)

    def _overflow(self) -> None:
        """Give the subscription up: to leave it unread would fill containerd's memory instead of ours."""
        self._failure = StreamOverflowError(
            f"more than {self._buffer_bytes} bytes of events from containerd at {self._path} were waiting"
        )
        self._call.cancel()

    def _ended(self, error: grpc.RpcError) -> TransientError:
        if self._call.cancelled():
            return TransientError(f"the event stream of containerd at {self._path} was closed")
        refused = refusal(error, SUBSCRIBE.doing, self._path)
        if refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED:  # the proxy's word: its buffer, not ours, was too small
            return StreamOverflowError(str(refused))
        return TransientError(str(refused))

    def _wake(self) -> None:
        self._wakeup_due = True
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be woken
            self._loop.call_soon_threadsafe(self._arrived.set)


class EventStream(RawStream):
    """Implements ``bridge.core.ports.Stream``."""

    async def batch(self) -> Sequence[Event]:
        """Do as ``raw_batch``, with what the envelopes mean."""
        return [decode.event(raw) for raw in await self.raw_batch()]

    def rest(self) -> Sequence[Event]:
        """Return what was received before it was closed and has not been handed over; nothing after an overflow."""
        held, self._held = self._held, deque()
        return [] if isinstance(self._failure, StreamOverflowError) else [decode.event(raw) for raw in held]


def _size(raws: Iterable[bytes]) -> int:
    return sum(len(raw) + ITEM_BYTES for raw in raws)
