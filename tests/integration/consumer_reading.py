"""Shared helpers of the reader tests: read to the end, and follow."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from random import Random

import msgspec

from bridge import consumer
from bridge.clock import SystemClock
from bridge.consumer import Source, State
from bridge.consumer.record_decoder import Position
from bridge.consumer.record_reader import Message, Reader, read
from bridge.core.ports import Sink
from bridge.core.records import Record
from tests.documentation import ROOT
from tests.eventually import eventually_async
from tests.integration.resuming_consumer import PROCESSING_SECONDS
from tests.sample_records import control_record, record
from tests.scale import scaled

KILLS = scaled(reduced=4, full=100)
MAX_CHANGES_PER_PROCESS = 50
RESUMED_RECORDS = 60 * KILLS  # more than it can read before the last kill


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


async def check_resumption(url: str, directory: Path) -> None:
    """Check that a process that is killed at random, and starts with its saved state, equals one that is not."""
    expected = [(change.source, change.record.position) async for change in consumer.follow(url, wait=False)]
    chance, changes = Random(7), directory / "changes"  # noqa: S311
    command = [sys.executable, "-m", "tests.integration.resuming_consumer", url, str(directory)]
    for _ in range(KILLS):
        size = changes.stat().st_size if changes.exists() else 0
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
        if chance.random() < 0.9:  # otherwise, it is killed at its start
            await eventually_async(lambda: changes.exists() and changes.stat().st_size > size)  # noqa: B023
        await asyncio.sleep(chance.uniform(0, MAX_CHANGES_PER_PROCESS * PROCESSING_SECONDS))
        assert process.returncode is None
        process.kill()
        await process.wait()
    assert changes.stat().st_size < len(expected) * 50  # it was not at the end before it was killed for the last time
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    assert await process.wait() == 0
    lines = changes.read_bytes().splitlines()
    results = [msgspec.json.decode(line, type=tuple[Source, Position]) for line in lines]
    for source in {source for source, _ in expected}:  # partitions may be read in another order
        assert [each for each in results if each[0] == source] == [each for each in expected if each[0] == source]
    assert len(results) == len(expected)
    print(f"{len(results)} changes of a process that was killed {KILLS} times")


async def check_start_from_table(create_sink: Callable[[], Sink], url: str, table_url: str) -> None:
    """Check that a state topic or bucket, and the records after it, are the same state as all records."""
    sink = create_sink()
    await sink.start()
    snapshot = [record(number, "present", id_=f"{number}") for number in range(2, 12)]
    batch = [control_record(1, "snapshot_started"), *snapshot, control_record(12, "snapshot_completed")]
    await sink.publish([*batch, record(13, "exited", id_="3"), record(14, "paused", id_="4"), record(15, id_="new")])
    table = await consumer.load_table(table_url)
    assert {each.id for each in table.containers()} == {each.subject for each in [*snapshot, record(1, id_="new")]} - {
        record(1, id_="3").subject
    }
    await sink.publish([record(16, "exited", id_="5"), record(17, id_="newer")])
    await sink.close()
    everything = State()
    for state in (table, everything):
        async for _ in consumer.follow(url, state, wait=False):
            pass
    assert sorted(table.containers()) == sorted(everything.containers())
    assert [each.complete for each in table.sources()] == [True]


def record_data(messages: Sequence[Message] | Sequence[Record]) -> list[bytes]:
    return [each.data for each in messages]


def sequences(messages: Sequence[Message]) -> list[int]:
    return [msgspec.json.decode(each.data)["sequence"] for each in messages]
