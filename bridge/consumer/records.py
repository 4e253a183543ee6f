"""Reading of decoded records; other messages are counted and reported at a limited rate."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

from bridge.consumer.messages import Message, Reader, read
from bridge.consumer.schema import DecodedRecord, InvalidMessageError, decode
from bridge.core.ports import Clock
from bridge.telemetry.rate_limit import RateLimiter


class ReadRecord(NamedTuple):
    """A decoded record, and its JSON as published."""

    record: DecodedRecord
    data: bytes


async def read_records(
    reader: Reader, clock: Clock, notify: Callable[[str], None]
) -> AsyncGenerator[Sequence[ReadRecord], None]:
    """Yield records, as ``bridge.consumer.messages.read`` yields messages; ``notify`` also gets counts of invalid ones.

    Raises:
        TransientError: The first attempt failed, or a reader that does not follow lost its connection.
        FatalError: The target does not exist or cannot be read.
    """
    invalid = _InvalidMessages(clock, notify)
    async with aclosing(read(reader, clock, notify)) as batches:
        async for batch in batches:
            yield [found for message in batch if (found := invalid.filter(message))]
    invalid.report()


class _InvalidMessages:
    """Counts and reports messages that are not records."""

    def __init__(self, clock: Clock, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._rate_limiter = RateLimiter(clock)
        self._count = 0
        self._suppressed = 0

    def filter(self, message: Message) -> ReadRecord | None:
        try:
            return ReadRecord(*decode(message.data))
        except InvalidMessageError as error:
            self._count += 1
            self._suppressed += 1
            if self._rate_limiter.allow("foreign") is not None:
                self._report_count(f"; the last one, number {message.number} of {message.location}: {error}")
            return None

    def report(self) -> None:
        """Report the messages that were not reported yet."""
        if self._suppressed:
            self._report_count("")

    def _report_count(self, details: str) -> None:
        self._suppressed = 0
        messages = "message was" if self._count == 1 else "messages were"
        self._notify(f"{self._count} invalid {messages} skipped{details}")
