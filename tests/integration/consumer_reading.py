"""Shared helpers of the reader tests: read to the end, and follow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import msgspec

from bridge.clock import SystemClock
from bridge.consumer.record_reader import Message, Reader, read
from bridge.core.records import Record
from tests.eventually import eventually_async


async def read_to_end(reader: Reader) -> list[Message]:
    """Return all messages of a reader that stops at the end."""
    messages: list[Message] = []
    async with asyncio.timeout(90):  # longer than the timeout of one step of a reader
        async for batch in read(reader, SystemClock()):
            messages += batch
    return messages


class FollowedMessages:
    """Messages and notices that a reader has returned so far."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.notices: list[str] = []
        self.started = asyncio.Event()

    async def wait_count(self, count: int) -> list[Message]:
        """Wait for at least ``count`` messages."""
        await eventually_async(lambda: len(self.messages) >= count)
        return self.messages


@contextlib.asynccontextmanager
async def follow(reader: Reader) -> AsyncIterator[FollowedMessages]:
    """Follow with a reader; entered after its first batch. On exit, no task of the reader is left."""
    followed = FollowedMessages()

    async def follow() -> None:
        async with contextlib.aclosing(read(reader, SystemClock(), followed.notices.append)) as batches:
            async for batch in batches:
                followed.messages += batch
                followed.started.set()

    before = asyncio.all_tasks()
    task = asyncio.ensure_future(follow())
    started = asyncio.ensure_future(followed.started.wait())
    try:
        await asyncio.wait({task, started}, timeout=90, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        assert followed.started.is_set()
        yield followed
    finally:
        started.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(20):
                await task
        if left := asyncio.all_tasks() - before - {task}:
            await asyncio.wait(left, timeout=20)
        pending = [each for each in left if not each.done()]
        assert not pending, pending


def record_data(messages: Sequence[Message] | Sequence[Record]) -> list[bytes]:
    return [each.data for each in messages]


def sequences(messages: Sequence[Message]) -> list[int]:
    return [msgspec.json.decode(each.data)["sequence"] for each in messages]
