"""The pump: from the outbox to one sink; it forgets only what the sink has acknowledged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, runtime_checkable

import structlog

from bridge.core.ports import Clock, Outbox, Sink
from bridge.retry import Backoff, Failure, forever
from bridge.tasks import together
from bridge.telemetry.sparingly import Sparingly

BATCH = 1000  # records
BACKOFF = Backoff(first=0.1, most=30.0)
_log = structlog.get_logger(__name__)


@runtime_checkable
class NoticesReader(Protocol):
    """A sink that notices that its reader is gone for good, although there is nothing to publish."""

    async def reader_gone(self) -> None:
        """Wait for that; raise a FatalError then."""


class Pump:
    """Moves records to one sink, in order, trying again for as long as trying may help."""

    def __init__(self, name: str, sink: Sink, outbox: Outbox, clock: Clock) -> None:
        self.name = name
        self._sink = sink
        self._outbox = outbox
        self._clock = clock
        self._sparingly = Sparingly(clock)

    async def run(self) -> None:
        """Pump until cancelled.

        Raises:
            FatalError: The sink cannot go on.
        """
        await self._insist(self._sink.start)
        async with together() as tasks:
            if isinstance(self._sink, NoticesReader):
                tasks.create_task(self._sink.reader_gone())
            await self._publish()

    async def _publish(self) -> None:
        while True:
            batch = await self._outbox.read(self.name, BATCH)
            await self._insist(partial(self._sink.publish, batch))
            await self._outbox.acknowledge(self.name, batch)

    async def drained(self) -> None:
        """Wait until the sink has everything that was written down."""
        while self._outbox.depth(self.name):
            await self._clock.sleep(0.02)

    async def close(self) -> None:
        """Let go of the sink."""
        await self._sink.close()

    async def _insist(self, attempt: Callable[[], Awaitable[None]]) -> None:
        await forever(attempt, clock=self._clock, backoff=BACKOFF, before_sleep=self._complain)

    def _complain(self, failure: Failure) -> None:
        text, failures = str(failure.error), failure.in_a_row
        self._sparingly.say(_log.warning, text, "sink_not_reached", sink=self.name, error=text, failures=failures)
