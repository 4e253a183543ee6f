"""Races between receiving, looking up, asking and losing the connection, each brought about on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from bridge.core.containerd_model import (
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
from bridge.core.errors import TransientError, UnreadableError
from tests.unit.watch.fakes import FakeEngineClient, FakeStream, make_metadata
from tests.unit.watch.test_watch import DB, WEB, exit_event, running_watch, start_events

MANY = [ContainerKey("default", f"c{number}") for number in range(9000)]  # more than the intake holds


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_watch_synchronizes_when_event_flood_delays_first_marker() -> None:
    class Flooded(FakeEngineClient):
        async def subscribe(self) -> FakeStream:
            stream = await super().subscribe()
            stream.put(*(TaskStarted(key, 3, 5) for key in MANY))
            return stream

    source = Flooded()
    for key in MANY:
        source.run(key, 5)
    async with running_watch(source, marker_timeout=0.5) as running:
        await running.wait_synced()
    assert running.snapshots()[0]["containers"] == len(MANY)


async def test_buffered_events_are_published_after_failed_fetch() -> None:
    class Lingering(FakeStream):
        async def batch(self) -> Sequence[Event]:
            await asyncio.sleep(0.05)
            return await super().batch()

    class Slow(FakeEngineClient):
        async def subscribe(self) -> FakeStream:
            self.stream = Lingering()
            return self.stream

    source, failing = Slow(), True
    async with running_watch(source) as running:
        await running.wait_synced()

        async def fails(_: ContainerKey) -> None:
            if failing:
                raise TransientError("down")

        source.before_container = fails
        first = source.stream
        first.put(*start_events(WEB, 10))
        await running.eventually(lambda: source.calls["container"] >= 1)
        first.put(*start_events(DB, 11), exit_event(DB, 11, 3))
        failing = False
        source.run(WEB, 10)
        await running.wait_synced(2)
    assert [told for told in running.transitions if told[2] == "shop/db"] == [
        ("started", "live", "shop/db"),
        ("exited", "live", "shop/db"),
    ]


@pytest.mark.parametrize("engine", ["engine-1", "engine-2"])
async def test_fetched_metadata_is_kept_when_connection_is_lost(engine: str) -> None:
    source, down, lost = FakeEngineClient(), True, asyncio.Event()
    async with running_watch(source) as running:
        await running.wait_synced()
        source.metadata[DB] = make_metadata(DB, "the-name")

        async def fails(key: ContainerKey) -> None:
            if key == WEB and down:
                await lost.wait()
                raise TransientError("down")

        source.before_container = fails
        source.stream.put(*start_events(WEB, 10), *start_events(DB, 11), exit_event(DB, 11, 3))
        await running.eventually(lambda: source.calls["container"] >= 2)
        await turns()
        del source.metadata[DB]
        source.id, down = engine, False
        source.stream.end(TransientError("gone"))
        await turns()
        lost.set()
        await running.wait_synced(2)
    names = [each["container"]["name"] for each in running.documents if each["id"] == "shop/db"]
    assert names == ["the-name", "the-name"]


async def test_audit_publishes_preexisting_container_found_meanwhile() -> None:
    source, failing = FakeEngineClient(), True
    source.run(DB, 11)

    async def fails(namespace: str) -> None:
        if failing and namespace == "shop":
            raise TransientError("busy")

    source.before_listing = fails
    async with running_watch(source, first_audit_delay=0.2, audit_interval=0.2) as running:
        await running.wait_synced()
        failing = False
        source.stream.put(TaskPaused(DB, running.clock.now().wall))
        await running.eventually(lambda: source.calls["task"] >= 1)
        source.stream.put(TaskResumed(DB, running.clock.now().wall))
        await running.wait_synced(2)
    assert running.transitions == [("present", "snapshot", "shop/db")]


async def test_unreadable_metadata_does_not_stop_watch() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)

    async def fail_to_decode(key: ContainerKey) -> None:
        if key == DB:
            raise UnreadableError("containerd failed to get a container: UNKNOWN: unmarshal")

    source.before_container = fail_to_decode
    async with running_watch(source, first_audit_delay=0.2, audit_interval=0.2) as running:
        await running.wait_synced()
        source.stream.put(*start_events(DB, 11), exit_event(WEB, 10, 3))
        source.run(DB, 11)
        await running.eventually(lambda: len(running.transitions) == 3)
        source.run(ContainerKey("shop", "silent"), 12)
        await running.wait_synced(2)
    assert running.transitions[1:3] == [("started", "live", "shop/db"), ("exited", "live", "web")]
    assert running.documents[3]["container"]["labels"] is None
    assert [frame["reason"] for frame in running.snapshots()] == ["start", "audit"]


async def test_task_queries_are_limited_to_maximum() -> None:
    source, asked, most = FakeEngineClient(), 0, 0
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

    async with running_watch(source) as running:
        await running.wait_synced()
        source.before_task = hangs
        for key in keys:
            source.stream.put(TaskResumed(key, 1))
            await turns(5)
        assert asked == 16
        answer.set()
        await running.eventually(lambda: source.calls["task"] >= 100)
    assert most == 16


async def test_short_run_is_published_without_name_of_next_container() -> None:
    source = FakeEngineClient()
    async with running_watch(source) as running:
        await running.wait_synced()
        may_answer = asyncio.Event()

        async def waits(_: ContainerKey) -> None:
            await may_answer.wait()

        source.before_container = waits
        now = running.clock.now().wall - 10
        source.stream.put(
            ContainerCreated(WEB, now + 1, "busybox", "runc"),
            TaskCreated(WEB, now + 2, 10),
            TaskStarted(WEB, now + 3, 10),
            exit_event(WEB, 10),
            TaskDeleted(WEB, now + 4, "", 10, 0, 8),
            ContainerDeleted(WEB, now + 5),
            ContainerCreated(WEB, now + 6, "busybox", "runc"),
            TaskCreated(WEB, now + 7, 12),
            TaskStarted(WEB, now + 8, 12),
        )
        source.metadata[WEB] = msgspec.structs.replace(make_metadata(WEB, "second"), created_at=now + 6)
        await running.eventually(lambda: source.calls["container"] >= 2)
        may_answer.set()
        await running.eventually(lambda: len(running.transitions) == 3)
    assert [each["container"]["name"] for each in running.documents if each["id"]] == ["web", "web", "second"]


async def test_received_events_are_published_on_shutdown() -> None:
    source = FakeEngineClient()
    async with running_watch(source) as running:
        await running.wait_synced()

        async def slow(key: ContainerKey) -> None:
            if key == WEB:
                await asyncio.sleep(0.1)

        source.before_container = slow
        source.metadata[WEB] = make_metadata(WEB, "slow")
        source.stream.put(*start_events(WEB, 10), *start_events(DB, 11), exit_event(DB, 11, 3))
        await running.eventually(lambda: source.calls["container"] >= 2)
    assert [told[0] for told in running.transitions] == ["started", "started", "exited"]
    assert running.documents[2]["container"]["name"] == "slow"


async def test_start_between_listing_and_marker_has_name_and_kind() -> None:
    class Racing(FakeEngineClient):
        async def tasks(self, namespace: str) -> Sequence[Task]:
            listed = await super().tasks(namespace)
            for key, pid in ((WEB, 10), (DB, 11)):
                if key.namespace == namespace and key not in self.running:
                    self.stream.put(TaskCreated(key, 1, pid), TaskStarted(key, 2, pid))
                    self.running[key] = Task(key, pid, TaskStatus.RUNNING)
            return listed

    source = Racing()
    source.metadata[WEB] = make_metadata(WEB, "the-name")
    source.metadata[DB] = msgspec.structs.replace(make_metadata(DB, "sandbox"), in_scope=False)
    async with running_watch(source) as running:
        await running.wait_synced()
    assert {each["id"] for each in running.documents if each["id"]} == {"web"}
    assert {each["container"]["name"] for each in running.documents if each["id"]} == {"the-name"}


async def test_repeated_losses_take_rate_limited_snapshots() -> None:
    source = FakeEngineClient()
    async with running_watch(source) as running:
        await running.wait_synced()
        before = running.clock.now().monotonic
        for number in range(3):
            running.watch.requests.request("overflow")
            await running.wait_synced(2 + number)
        assert running.clock.now().monotonic - before > 50e9
