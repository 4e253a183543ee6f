"""What readers hand over: records, decoded; what is none is counted and told of once in a while."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

from bridge.core.ports import Clock
from bridge.fleet.documents import Document, ForeignError, decode
from bridge.fleet.messages import Message, Reader, read
from bridge.telemetry.rate_limit import RateLimiter


class Read(NamedTuple):
    """A record that was read: what it says, and its own JSON, as it was published."""

    document: Document
    data: bytes


async def records(reader: Reader, clock: Clock, tell: Callable[[str], None]) -> AsyncGenerator[Sequence[Read], None]:
    """Read records, as ``bridge.fleet.messages.read`` reads messages; ``tell`` also hears of what is no record.

    Raises:
        TransientError: The place could not be reached at the first attempt, or was lost by a reader that does not
            follow.
        FatalError: It is not there, or cannot be read.
    """
    foreign = _Foreign(clock, tell)
    async with aclosing(read(reader, clock, tell)) as batches:
        async for batch in batches:
            yield [found for message in batch if (found := foreign.sorted_out(message))]
    foreign.sum_up()


class _Foreign:
    """Sorts out what is no record."""

    def __init__(self, clock: Clock, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._limiter = RateLimiter(clock)
        self._count = 0
        self._unsaid = 0

    def sorted_out(self, message: Message) -> Read | None:
        try:
            return Read(*decode(message.data))
        except ForeignError as error:
            self._count += 1
            self._unsaid += 1
            if self._limiter.allow("foreign") is not None:
                self._say(f"; the last, number {message.number} of {message.place}, is {error}")
            return None

    def sum_up(self) -> None:
        """Tell what is still unsaid at the end."""
        if self._unsaid:
            self._say("")

    def _say(self, more: str) -> None:
        self._unsaid = 0
        left_out = "message was no record of whalebridge and was" if self._count == 1 else "messages were no records"
        left_out += "" if self._count == 1 else " of whalebridge and were"
        self._tell(f"{self._count} {left_out} left out{more}")
