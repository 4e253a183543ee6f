"""Races between receiving, looking up, asking and losing the connection, each brought about on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from bridge.core.errors import TransientError, UnreadableError
from bridge.core.model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerKey,
    Event,
    Task,
    TaskCreated,
    TaskDeleted,
    TaskPaused,
    TaskResumed,
    TaskStarted,
    TaskStatus,
)
from tests.unit.watch.fakes import FakeSource, FakeStream, record
from tests.unit.watch.test_watch import DB, WEB, exit_, start, watching

MANY = [ContainerKey("default", f"c{number}") for number in range(9000)]  # more than the intake holds


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_flood_before_the_first_mark_is_back() -> None:
    class Flooded(FakeSource):
        async def subscribe(self) -> FakeStream:
            stream = await super().subscribe()
            stream.put(*(TaskStarted(key, 3, 5) for key in MANY))
            return stream

    source = Flooded()
    for key in MANY:
        source.run(key, 5)
    async with watching(source, mark_timeout=0.5) as running:
        await running.live()
    assert running.frames()[0]["containers"] == len(MANY)


async def test_what_the_stream_still_holds_when_a_look_up_fails_is_told_later() -> None:
    class Lingering(FakeStream):
        async def batch(self) -> Sequence[Event]:
            await asyncio.sleep(0.05)
            return await super().batch()

    class Slow(FakeSource):
        async def subscribe(self) -> FakeStream:
            self.stream = Lingering()
            return self.stream

    source, failing = Slow(), True
    async with watching(source) as running:
        await running.live()

        async def fails(_: ContainerKey) -> None:
            if failing:
                raise TransientError("down")

        source.before_record = fails
        first = source.stream
        first.put(*start(WEB, 10))
        await running.eventually(lambda: source.calls["container"] >= 1)
        first.put(*start(DB, 11), exit_(DB, 11, 3))
        failing = False
        source.run(WEB, 10)
        await running.live(2)
    assert [told for told in running.told if told[2] == "shop/db"] == [
        ("started", "live", "shop/db"),
        ("exited", "live", "shop/db"),
    ]


@pytest.mark.parametrize("engine", ["engine-1", "engine-2"])
async def test_records_that_were_fetched_before_the_connection_was_lost_are_kept(engine: str) -> None:
    source, down, lost = FakeSource(), True, asyncio.Event()
    async with watching(source) as running:
        await running.live()
        source.records[DB] = record(DB, "the-name")

        async def fails(key: ContainerKey) -> None:
            if key == WEB and down:
                await lost.wait()
                raise TransientError("down")

        source.before_record = fails
        source.stream.put(*start(WEB, 10), *start(DB, 11), exit_(DB, 11, 3))
        await running.eventually(lambda: source.calls["container"] >= 2)
        await turns()
        del source.records[DB]
        source.id, down = engine, False
        source.stream.end(TransientError("gone"))
        await turns()
        lost.set()
        await running.live(2)
    names = [each["container"]["name"] for each in running.documents if each["id"] == "shop/db"]
    assert names == ["the-name", "the-name"]


async def test_a_container_adopted_between_audits_is_told_by_the_next() -> None:
    source, failing = FakeSource(), True
    source.run(DB, 11)

    async def fails(namespace: str) -> None:
        if failing and namespace == "shop":
            raise TransientError("busy")

    source.before_listing = fails
    async with watching(source, first_audit=0.2, audit_interval=0.2) as running:
        await running.live()
        failing = False
        source.stream.put(TaskPaused(DB, running.clock.now().wall))
        await running.eventually(lambda: source.calls["task"] >= 1)
        source.stream.put(TaskResumed(DB, running.clock.now().wall))
        await running.live(2)
    assert running.told == [("present", "snapshot", "shop/db")]


async def test_one_record_that_cannot_be_read_stops_nothing() -> None:
    source = FakeSource()
    source.run(WEB, 10)

    async def refuses(key: ContainerKey) -> None:
        if key == DB:
            raise UnreadableError("containerd failed to get a container: UNKNOWN: unmarshal")

    source.before_record = refuses
    async with watching(source, first_audit=0.2, audit_interval=0.2) as running:
        await running.live()
        source.stream.put(*start(DB, 11), exit_(WEB, 10, 3))
        source.run(DB, 11)
        await running.eventually(lambda: len(running.told) == 3)
        source.run(ContainerKey("shop", "silent"), 12)
        await running.live(2)
    assert running.told[1:3] == [("started", "live", "shop/db"), ("exited", "live", "web")]
    assert running.documents[3]["container"]["labels"] is None
    assert [frame["reason"] for frame in running.frames()] == ["start", "audit"]


async def test_no_more_questions_at_a_time_than_allowed() -> None:
    source, asked, most = FakeSource(), 0, 0
    keys = MANY[:100]
    for key in keys:
        source.run(key, 5)

    answer = asyncio.Event()

    async def hangs(_: ContainerKey) -> None:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        await answer.wait()
        asked -= 1

    async with watching(source) as running:
        await running.live()
        source.before_task = hangs
        for key in keys:
            source.stream.put(TaskResumed(key, 1))
            await turns(5)
        assert asked == 16
        answer.set()
        await running.eventually(lambda: source.calls["task"] >= 100)
    assert most == 16


async def test_a_short_life_is_not_told_under_its_successors_name() -> None:
    source = FakeSource()
    async with watching(source) as running:
        await running.live()
        may_answer = asyncio.Event()

        async def waits(_: ContainerKey) -> None:
            await may_answer.wait()

        source.before_record = waits
        now = running.clock.now().wall - 10
        source.stream.put(
            ContainerCreated(WEB, now + 1, "busybox", "runc"),
            TaskCreated(WEB, now + 2, 10),
            TaskStarted(WEB, now + 3, 10),
            exit_(WEB, 10),
            TaskDeleted(WEB, now + 4, "", 10, 0, 8),
            ContainerDeleted(WEB, now + 5),
            ContainerCreated(WEB, now + 6, "busybox", "runc"),
            TaskCreated(WEB, now + 7, 12),
            TaskStarted(WEB, now + 8, 12),
        )
        source.records[WEB] = msgspec.structs.replace(record(WEB, "second"), created_at=now + 6)
        await running.eventually(lambda: source.calls["container"] >= 2)
        may_answer.set()
        await running.eventually(lambda: len(running.told) == 3)
    assert [each["container"]["name"] for each in running.documents if each["id"]] == ["web", "web", "second"]


async def test_what_was_received_is_told_when_the_bridge_stops() -> None:
    source = FakeSource()
    async with watching(source) as running:
        await running.live()

        async def slow(key: ContainerKey) -> None:
            if key == WEB:
                await asyncio.sleep(0.1)

        source.before_record = slow
        source.records[WEB] = record(WEB, "slow")
        source.stream.put(*start(WEB, 10), *start(DB, 11), exit_(DB, 11, 3))
        await running.eventually(lambda: source.calls["container"] >= 2)
    assert [told[0] for told in running.told] == ["started", "started", "exited"]
    assert running.documents[2]["container"]["name"] == "slow"


async def test_a_start_between_the_listing_and_the_mark_has_a_name_and_a_kind() -> None:
    class Racing(FakeSource):
        async def tasks(self, namespace: str) -> Sequence[Task]:
            listed = await super().tasks(namespace)
            for key, pid in ((WEB, 10), (DB, 11)):
                if key.namespace == namespace and key not in self.running:
                    self.stream.put(TaskCreated(key, 1, pid), TaskStarted(key, 2, pid))
                    self.running[key] = Task(key, pid, TaskStatus.RUNNING)
            return listed

    source = Racing()
    source.records[WEB] = record(WEB, "the-name")
    source.records[DB] = msgspec.structs.replace(record(DB, "sandbox"), in_scope=False)
    async with watching(source) as running:
        await running.live()
    assert {each["id"] for each in running.documents if each["id"]} == {"web"}
    assert {each["container"]["name"] for each in running.documents if each["id"]} == {"the-name"}


async def test_losses_do_not_make_snapshots_without_end() -> None:
    source = FakeSource()
    async with watching(source) as running:
        await running.live()
        before = running.clock.now().monotonic
        for number in range(3):
            running.watch.requests.ask("overflow")
            await running.live(2 + number)
        assert running.clock.now().monotonic - before > 50e9
