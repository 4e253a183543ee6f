"""What the tests of readers share: reading to the end, and following along."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import msgspec

from bridge.clock import SystemClock
from bridge.consumer.reading import Message, Reader, read
from bridge.core.records import Record
from tests.eventually import eventually_async


async def read_to_end(reader: Reader) -> list[Message]:
    """All that a reader finds which ends at the end."""
    found: list[Message] = []
    async with asyncio.timeout(90):  # more than a reader has for a step
        async for batch in read(reader, SystemClock()):
            found += batch
    return found


class FollowedMessages:
    """What a reader has found so far, and what it has told of."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.notices: list[str] = []
        self.started = asyncio.Event()

    async def wait_count(self, count: int) -> list[Message]:
        """Wait for so many messages."""
        await eventually_async(lambda: len(self.messages) >= count)
        return self.messages


@contextlib.asynccontextmanager
async def follow(reader: Reader) -> AsyncIterator[FollowedMessages]:
    """Follow along; entered when reading has begun. Nothing of it goes on afterwards."""
    found = FollowedMessages()

    async def follow() -> None:
        async with contextlib.aclosing(read(reader, SystemClock(), found.notices.append)) as batches:
            async for batch in batches:
                found.messages += batch
                found.started.set()

    before = asyncio.all_tasks()
    task = asyncio.ensure_future(follow())
    beginning = asyncio.ensure_future(found.started.wait())
    try:
        await asyncio.wait({task, beginning}, timeout=90, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        assert found.started.is_set()
        yield found
    finally:
        beginning.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(20):
                await task
        if left := asyncio.all_tasks() - before - {task}:
            await asyncio.wait(left, timeout=20)
        going_on = [each for each in left if not each.done()]
        assert not going_on, going_on


def record_data(messages: Sequence[Message] | Sequence[Record]) -> list[bytes]:
    return [each.data for each in messages]


def sequences(messages: Sequence[Message]) -> list[int]:
    return [msgspec.json.decode(each.data)["sequence"] for each in messages]
