"""Reading of decoded records; other messages are counted and reported at a limited rate."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

from bridge.core.ports import Clock
from bridge.fleet.documents import Document, ForeignError, decode
from bridge.fleet.messages import Message, Reader, read
from bridge.telemetry.rate_limit import RateLimiter


class Read(NamedTuple):
    """A decoded record, and its JSON as published."""

    document: Document
    data: bytes


async def records(reader: Reader, clock: Clock, tell: Callable[[str], None]) -> AsyncGenerator[Sequence[Read], None]:
    """Yield records, as ``bridge.consumer.messages.read`` yields messages; ``notify`` also gets counts of invalid ones.

    Raises:
        TransientError: The first attempt failed, or a reader that does not follow lost its connection.
        FatalError: The target does not exist or cannot be read.
    """
    foreign = _Foreign(clock, tell)
    async with aclosing(read(reader, clock, tell)) as batches:
        async for batch in batches:
            yield [found for message in batch if (found := foreign.sorted_out(message))]
    foreign.sum_up()


class _Foreign:
    """Counts and reports messages that are not records."""

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
                self._say(f"; the last one, number {message.number} of {message.place}: {error}")
            return None

    def sum_up(self) -> None:
        """Report the messages that were not reported yet."""
        if self._unsaid:
            self._say("")

    def _say(self, more: str) -> None:
        self._unsaid = 0
        messages = "message was" if self._count == 1 else "messages were"
        self._tell(f"{self._count} invalid {messages} skipped{more}")
