"""What is read before anything is known of it: messages, where reading begins, and reading on after trouble."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Literal, NamedTuple, Protocol, TypeAlias

from bridge.core.errors import TransientError
from bridge.core.ports import Clock
from bridge.retry import Backoff

BACKOFF = Backoff(first=0.2, most=5.0)


class Message(NamedTuple):
    """One message: its bytes, and where it stood, for a person who has to look for it."""

    data: bytes
    place: str
    number: int


Begin: TypeAlias = Literal["beginning", "end"] | datetime
"""Where reading begins: at the oldest or after the newest message, or at a moment, or not long before it."""


class Reader(Protocol):
    """Reads one place, once or again: where it was interrupted, it goes on.

    It leaves nothing behind at the place, and changes nothing there.
    """

    follow: bool
    """Whether it waits for more at the end, instead of ending."""

    def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Read messages, in the order in which they stand there, as they come.

        Raises:
            TransientError: The place cannot be reached, or not any more.
            FatalError: It is not there, or cannot be read.
        """


async def read(
    reader: Reader, clock: Clock, tell: Callable[[str], None] = lambda _: None
) -> AsyncGenerator[Sequence[Message], None]:
    """Read, and where it follows, go on after an interruption: ``tell`` is called with what it was, and with its end.

    Raises:
        TransientError: The place could not be reached at the first attempt, or was lost by a reader that does not
            follow.
        FatalError: It is not there, or cannot be read.
    """
    failures, reached = 0, False
    while True:
        try:
            async with aclosing(reader.batches()) as batches:
                async for batch in batches:
                    if failures:
                        tell("reading goes on")
                    failures, reached = 0, True
                    yield batch
        except TransientError as error:
            if not (reached and reader.follow):
                raise
            failures += 1
            if failures == 1:
                tell(f"{error}; waiting for it")
        else:
            return
        await clock.sleep(BACKOFF.delay(failures, clock.random()))
