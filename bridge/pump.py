"""The pump: from the outbox to one sink; it forgets only what the sink has acknowledged.

Invariants:
- One batch is on its way at a time, so that a sink gets records in order, and again what it may not have.
- No attempt lasts for ever: one that hangs is given up, and made again.
- A record that is refused for what it is holds up no other.
- A heartbeat goes out between batches, only where nothing waits, and once: that it does not arrive loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import structlog

from bridge.core.encode import heartbeat
from bridge.core.errors import BridgeError, RefusedRecordError, TransientError
from bridge.core.events import Proof, Record
from bridge.core.ports import Clock, Outbox, Sink
from bridge.retry import Backoff, Failure, forever
from bridge.tasks import bounded, together
from bridge.telemetry.histogram import Histogram
from bridge.telemetry.sparingly import Sparingly

BATCH_RECORDS = 1000
BATCH_BYTES = 1024 * 1024
BACKOFF = Backoff(first=0.1, most=30.0)
PATIENCE = 60.0  # seconds; above what a sink itself allows an attempt, which knows best what to do about it
CLOSE_SECONDS = 1.5
SETTLE_SECONDS = 1.5
_SECOND = 1_000_000_000
_log = structlog.get_logger(__name__)

State: TypeAlias = Literal["starting", "ok", "failing"]


@runtime_checkable
class NoticesReader(Protocol):
    """A sink that notices that its reader is gone for good, although there is nothing to publish."""

    async def reader_gone(self) -> None:
        """Wait for that; raise a FatalError then."""


class Heart:
    """Makes the heartbeats of all pumps.

    Args:
        proof: Up to when all that containerd had told is written down, if anything is.
        interval: Seconds from one beat to the next; may be replaced at any time.
    """

    def __init__(self, proof: Callable[[], Proof | None], interval: float) -> None:
        self.interval = interval
        self._proof = proof
        self._beats = 0

    def beat(self, last: Record) -> Record | None:
        """Make one for readers who have everything up to ``last``; None before that is of the epoch that is proven."""
        proof = self._proof()
        if proof is None or proof.epoch != last.epoch:
            return None
        self._beats += 1
        return heartbeat(last, proof.at, self._beats)


class Pump:
    """Moves records to one sink, in order, trying again for as long as trying may help.

    Args:
        name: What the outbox knows the sink by.
        sink: The sink.
        outbox: Where records come from.
        clock: Time and chance.
        patience: After how many seconds an attempt is given up; None where waiting is as it should be.
        heart: What makes heartbeats; None where the sink is to have none.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        outbox: Outbox,
        clock: Clock,
        *,
        patience: float | None = PATIENCE,
        heart: Heart | None = None,
    ) -> None:
        self.name = name
        self._sink = sink
        self._outbox = outbox
        self._clock = clock
        self._patience = patience
        self._sparingly = Sparingly(clock)
        self._heart = heart
        self._last: Record | None = None  # that the sink has
        self._turn = asyncio.Lock()  # held while something is on its way
        self.state: State = "starting"
        self.failure: str | None = None  # what the last attempt failed for, while the state is failing
        self.published = 0
        self.retries = 0
        self.refused = 0
        self.latency = Histogram()  # of batches, from the handing over to the acknowledgement
        self._complained = False

    async def run(self) -> None:
        """Pump until cancelled.

        Raises:
            FatalError: The sink cannot go on.
        """
        structlog.contextvars.bind_contextvars(sink=self.name)  # into every line that the sink writes
        await self._insist(self._sink.start)
        async with together() as tasks:
            if isinstance(self._sink, NoticesReader):
                tasks.create_task(self._sink.reader_gone())
            if self._heart is not None:
                tasks.create_task(self._beat(self._heart))
            while True:
                batch = await self._outbox.read(self.name, BATCH_RECORDS, BATCH_BYTES)
                async with self._turn:
                    await self._deliver(batch)

    @property
    def waiting(self) -> int:
        """How many records the sink has not acknowledged."""
        return self._outbox.depth(self.name)

    async def drained(self) -> None:
        """Wait until the sink has everything that was written down."""
        while self.waiting:
            await self._clock.sleep(0.02)

    async def settle(self) -> None:
        """Before it is cancelled: wait a moment for the acknowledgement of what is on its way, and send nothing more.

        A sink that is failing, or takes longer, is not waited for: what it may have is sent again by its successor.
        """
        if self.state != "failing":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    await self._turn.acquire()  # and keep it

    async def close(self) -> None:
        """Let go of the sink, or give it up."""
        try:
            await bounded(self._sink.close, CLOSE_SECONDS)
        except BridgeError as error:
            _log.warning("sink_close_failed", sink=self.name, error=str(error))

    async def _deliver(self, batch: Sequence[Record]) -> None:
        """Bring the sink what it will have of a batch; where some is refused, the rest is read again with what is told
        of it.
        """
        try:
            await self._insist(partial(self._publish, batch))
        except RefusedRecordError as refused:
            reason = str(refused)
            count = await self._outbox.refuse(self.name, refused.positions, reason)
            self.refused += count
            self._sparingly.say(
                _log.error, ("rejected", reason), "records_rejected", sink=self.name, records=count, reason=reason
            )
        else:
            await self._outbox.acknowledge(self.name, batch)
            self._last = batch[-1]

    async def _publish(self, batch: Sequence[Record]) -> None:
        began = self._clock.now().monotonic
        try:
            await self._sink.publish(batch)
        except RefusedRecordError as refused:
            if any((each.epoch, each.sequence) in refused.positions and each.type != "lost" for each in batch):
                raise
            # Nothing could take its place: what is refused stands for others itself, or was never published.
            raise TransientError(f"rejected: {refused}") from refused
        self.latency.observe((self._clock.now().monotonic - began) / _SECOND)
        self.published += len(batch)

    async def _beat(self, heart: Heart) -> None:
        """Send heartbeats."""
        while True:
            await self._clock.sleep(heart.interval)
            async with self._turn:
                if self.waiting or self._last is None or (beat := heart.beat(self._last)) is None:
                    continue
                try:
                    await bounded(partial(self._sink.publish, [beat]), self._patience)
                except (TransientError, RefusedRecordError) as error:
                    text = str(error)
                    if isinstance(error, TransientError):
                        self.state, self.failure = "failing", text
                    self._sparingly.say(_log.warning, text, "heartbeat_failed", sink=self.name, error=text)
                else:
                    self.state, self.failure = "ok", None

    async def _insist(self, attempt: Callable[[], Awaitable[None]]) -> None:
        await forever(
            lambda: bounded(attempt, self._patience),
            clock=self._clock,
            backoff=BACKOFF,
            before_sleep=self._complain,
        )
        if self._complained:  # else a sink that comes and goes would be told as often as that
            self._complained = False
            _log.info("sink_recovered", sink=self.name)
        self.state, self.failure = "ok", None

    def _complain(self, failure: Failure) -> None:
        text = str(failure.error)
        self.state, self.failure = "failing", text
        self.retries += 1
        told = {"sink": self.name, "error": text, "consecutive": failure.in_a_row}
        self._complained |= self._sparingly.say(_log.warning, text, "sink_publish_failed", **told)
