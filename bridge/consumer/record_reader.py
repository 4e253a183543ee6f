"""Reads messages and records: the interface of readers, retries after interruptions, and invalid messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Literal, NamedTuple, Protocol, TypeAlias

from bridge.consumer.record_decoder import DecodedRecord, InvalidMessageError, decode
from bridge.core.errors import TransientError
from bridge.core.ports import Clock
from bridge.retry import Backoff
from bridge.telemetry.rate_limit import RateLimiter

BACKOFF = Backoff(initial=0.2, maximum=5.0)
RESUMED = "reading resumed"
"""What ``notify`` gets when an interruption has ended."""


class Message(NamedTuple):
    """One message: its bytes, its location and number, so that a user can find it, and its key on Kafka."""

    data: bytes
    location: str
    number: int
    key: bytes = b""


class ReadRecord(NamedTuple):
    """A decoded record, its JSON as published, and the message that it was in."""

    record: DecodedRecord
    data: bytes
    message: Message


StartPosition: TypeAlias = Literal["beginning", "end"] | datetime
"""Where reading starts: at the oldest message, after the newest, or at a time (possibly a little before)."""


class Reader(Protocol):
    """Reads messages from one sink's target; after an interruption, it continues where it stopped.

    It leaves no state at the target, and changes nothing there. Files have no positions.
    """

    follow: bool
    """Whether the reader waits for more messages at the end."""
    total: int | None
    """How many messages there were to the end when reading began, with those that are not there any more; None if that
    is not known, as for files."""
    position: dict[str, int]
    """Where to continue after the messages returned so far; may be set before reading. Empty: at the start position."""

    def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Yield messages in stored order, as they arrive.

        Raises:
            TransientError: The target cannot be reached, or the connection was lost.
            FatalError: The target does not exist or cannot be read.
        """


async def read(
    reader: Reader, clock: Clock, notify: Callable[[str], None] = lambda _: None
) -> AsyncGenerator[Sequence[Message], None]:
    """Yield messages; a reader that follows continues after an interruption.

    ``notify`` is called with the reason of an interruption, and when reading resumes.

    Raises:
        TransientError: The first attempt failed, or a reader that does not follow lost its connection.
        FatalError: The target does not exist or cannot be read.
    """
    failures, reached = 0, False
    while True:
        try:
            async with aclosing(reader.batches()) as batches:
                async for batch in batches:
                    if failures:
                        notify(RESUMED)
                    failures, reached = 0, True
                    yield batch
        except TransientError as error:
            if not (reached and reader.follow):
                raise
            failures += 1
            if failures == 1:
                notify(f"{error}; retrying")
        else:
            return
        await clock.sleep(BACKOFF.delay(failures, clock.random()))


async def read_records(
    reader: Reader, clock: Clock, notify: Callable[[str], None]
) -> AsyncGenerator[Sequence[ReadRecord], None]:
    """Yield records, as ``read`` yields messages; ``notify`` also gets the number of invalid messages, rate-limited.

    Raises:
        TransientError: The first attempt failed, or a reader that does not follow lost its connection.
        FatalError: The target does not exist or cannot be read.
    """
    invalid = _InvalidMessages(clock, notify)
    async with aclosing(read(reader, clock, notify)) as batches:
        async for batch in batches:
            yield [record for message in batch if (record := invalid.filter(message))]
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
            return ReadRecord(*decode(message.data), message)
        except InvalidMessageError as error:
            self._count += 1
            self._suppressed += 1
            if self._rate_limiter.allow("invalid") is not None:
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
