"""Races between received events, metadata fetches, task queries and lost connections, each provoked by hooks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerKey,
    Task,
    TaskCreated,
    TaskDeleted,
    TaskPaused,
    TaskResumed,
    TaskStarted,
)
from bridge.core.errors import TransientError, UnreadableError
from bridge.core.time import SECOND, to_seconds
from bridge.watch.event_queue import CAPACITY
from tests.unit.watch.fakes import (
    DB,
    WEB,
    HookedClient,
    exit_event,
    running_watch,
    start_events,
    synced_watch,
)

MANY = [ContainerKey("default", f"c{number}") for number in range(CAPACITY + 808)]


async def test_watch_synchronizes_when_event_flood_delays_first_marker() -> None:
    client = HookedClient()

    async def flood() -> None:
        client.stream.put(*(TaskStarted(key, 3, 5) for key in MANY))

    client.hooks["subscribe"] = flood
    for key in MANY:
        client.run(key, 5)
    async with running_watch(client, marker_timeout=0.5) as running:
        await running.wait_synced()
    assert client.calls["subscribe"] == 1
    assert running.snapshots()[0]["containers"] == len(MANY)


async def test_buffered_events_are_published_after_failed_fetch() -> None:
    client, down = HookedClient(), True
    async with synced_watch(client) as running:
        first = client.stream

        async def fail(_: ContainerKey) -> None:
            if down:
                if not first.held:
                    first.held = True
                    first.put(*start_events(DB, 11), exit_event(DB, 11, 3))
                raise TransientError("down")

        client.hooks["container"] = fail
        first.put(*start_events(WEB, 10))
        await running.eventually(lambda: first.closed)
        down = False
        client.run(WEB, 10)
        await running.wait_synced(2)
    assert [each for each in running.transitions if each[2] == "shop/db"] == [
        ("started", "live", "shop/db"),
        ("exited", "live", "shop/db"),
    ]


@pytest.mark.parametrize("engine", ["engine-1", "engine-2"])
async def test_fetched_metadata_is_kept_when_connection_is_lost(engine: str) -> None:
    client, down, lost = HookedClient(), True, asyncio.Event()
    async with synced_watch(client) as running:
        client.add(DB, "the-name")

        async def fail(key: ContainerKey) -> None:
            if key == WEB and down:
                await lost.wait()
                raise TransientError("down")

        client.hooks["container"] = fail
        client.stream.put(*start_events(WEB, 10), *start_events(DB, 11), exit_event(DB, 11, 3))
        await running.eventually(lambda: client.calls["container"] >= 2)
        await asyncio.sleep(1)
        client.remove(DB)
        client.containerd.id, down = engine, False
        client.stream.end()
        await asyncio.sleep(0)
        lost.set()
        await running.wait_synced(2)
    names = [each["container"]["name"] for each in running.documents if each["id"] == "shop/db"]
    assert names == ["the-name", "the-name"]


async def test_exit_status_is_kept_when_connection_is_lost() -> None:
    """The result of Tasks.Wait waits behind an event whose metadata is not fetched yet."""
    client, released = HookedClient(), asyncio.Event()
    client.run(WEB, 10)
    async with synced_watch(client) as running:
        client.hooks["container"] = lambda _: released.wait()
        client.stream.put(*start_events(DB, 11))
        await running.eventually(lambda: client.calls["container"])
        client.state.stop_without_event(WEB, 7)
        await asyncio.sleep(1)
        client.remove_task(WEB)
        client.stream.end()
        await running.eventually(lambda: client.calls["subscribe"] == 2)
        released.set()
        await running.wait_synced(2)
    assert [each["exit"]["status"] for each in running.documents if each["id"] == "web" and each["exit"]] == [7]


async def test_exit_of_next_task_is_not_that_of_lost_one() -> None:
    """Tasks.Wait names a container: it returns the exit of whichever task the container has."""
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:

        async def exit_next(_: str) -> None:
            client.stream.put(TaskStarted(WEB, running.clock.now().wall, 20), exit_event(WEB, 20, 7))
            await asyncio.sleep(1)

        client.run(WEB, 20)
        client.state.stop_without_event(WEB, 7)
        client.hooks["tasks"] = exit_next
        client.stream.end()
        await running.wait_synced(2)
    exits = [each for each in running.documents if each["type"] == "exited"]
    assert {each["container"]["pid"]: each["exit"]["status"] for each in exits} == {10: None, 20: 7}


async def test_exit_is_waited_for_once_while_outbox_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit that was made before the exit is processed after the next task has exited, too."""
    client, writable = HookedClient({WEB: 10}), asyncio.Event()
    async with synced_watch(client, audit_interval=30) as running:
        await running.eventually(lambda: client.calls["wait_for_exit"] == 1)
        append = running.outbox.append

        async def hang(*args: Any) -> None:
            await writable.wait()
            await append(*args)

        monkeypatch.setattr(running.outbox, "append", hang)
        running.watch.request_snapshot("on_demand")
        await asyncio.sleep(40)
        client.state.stop_without_event(WEB, 137)
        await asyncio.sleep(1)
        client.run(WEB, 20)
        client.state.stop_without_event(WEB, 7)
        writable.set()
        await running.eventually(lambda: "exited" in [each[0] for each in running.transitions])
    exits = [each for each in running.documents if each["type"] == "exited"]
    assert (exits[0]["container"]["pid"], exits[0]["exit"]["status"]) == (10, 137)


async def test_audit_publishes_preexisting_container_found_by_query() -> None:
    client, busy = HookedClient(), True
    client.run(DB, 11)

    async def fail(namespace: str) -> None:
        if busy and namespace == "shop":
            raise TransientError("busy")

    client.hooks["containers"] = fail
    async with synced_watch(client, first_audit_delay=30, audit_interval=300) as running:
        busy = False
        client.stream.put(TaskPaused(DB, running.clock.now().wall))
        await running.eventually(lambda: client.calls["task"] >= 1)
        client.stream.put(TaskResumed(DB, running.clock.now().wall))
        await running.wait_synced(2)
    assert running.transitions == [("present", "snapshot", "shop/db")]


async def test_unreadable_metadata_does_not_stop_watch() -> None:
    client = HookedClient({WEB: 10})

    async def fail_to_decode(key: ContainerKey) -> None:
        if key == DB:
            raise UnreadableError("containerd failed to get a container: UNKNOWN: unmarshal")

    client.hooks["container"] = fail_to_decode
    async with synced_watch(client, first_audit_delay=30, audit_interval=300) as running:
        client.stream.put(*start_events(DB, 11), exit_event(WEB, 10, 3))
        client.run(DB, 11)
        await running.eventually(lambda: len(running.transitions) == 3)
        client.run(ContainerKey("shop", "without-events"), 12)
        await running.wait_synced(2)
    assert running.transitions[1:3] == [("started", "live", "shop/db"), ("exited", "live", "web")]
    assert running.documents[3]["container"]["labels"] is None
    assert [snapshot["reason"] for snapshot in running.snapshots()] == ["start", "audit"]


async def test_task_queries_are_limited_to_maximum() -> None:
    client, concurrent, maximum = HookedClient(), 0, 0
    keys = MANY[:100]
    for key in keys:
        client.run(key, 5)

    released = asyncio.Event()

    async def hang(_: ContainerKey) -> None:
        nonlocal concurrent, maximum
        concurrent += 1
        maximum = max(maximum, concurrent)
        await released.wait()
        concurrent -= 1

    async with synced_watch(client) as running:
        client.hooks["task"] = hang
        for key in keys:
            client.stream.put(TaskResumed(key, 1))
            await asyncio.sleep(0.01)
        assert concurrent == 16
        released.set()
        await running.eventually(lambda: client.calls["task"] >= 100)
    assert maximum == 16


async def test_short_run_is_published_without_name_of_next_container() -> None:
    client = HookedClient()
    async with synced_watch(client) as running:
        released = asyncio.Event()

        async def hang(_: ContainerKey) -> None:
            await released.wait()

        client.hooks["container"] = hang
        now = running.clock.now().wall - 10
        client.stream.put(
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
        client.add(WEB, "second", created_at=now + 6)
        await running.eventually(lambda: client.calls["container"] >= 2)
        released.set()
        await running.eventually(lambda: len(running.transitions) == 3)
    assert [each["container"]["name"] for each in running.documents if each["id"]] == ["web", "web", "second"]


async def test_metadata_is_used_when_clock_was_set_back_since_creation() -> None:
    client = HookedClient()
    async with synced_watch(client) as running:
        client.add(WEB, "named", created_at=running.clock.now().wall + 7200 * SECOND)
        client.run(WEB, 10)
        client.stream.put(*start_events(WEB, 10))
        await running.eventually(lambda: len(running.transitions) == 1)
    assert running.documents[-1]["container"]["name"] == "named"


async def test_received_events_are_published_on_shutdown() -> None:
    client = HookedClient()
    async with synced_watch(client) as running:

        async def delay(key: ContainerKey) -> None:
            if key == WEB:
                await asyncio.sleep(0.1)

        client.hooks["container"] = delay
        client.add(WEB, "slow")
        client.stream.put(*start_events(WEB, 10), *start_events(DB, 11), exit_event(DB, 11, 3))
        await running.eventually(lambda: client.calls["container"] >= 2)
    assert [each[0] for each in running.transitions] == ["started", "started", "exited"]
    assert running.documents[2]["container"]["name"] == "slow"


async def test_start_between_listing_and_marker_has_name_and_kind() -> None:
    client, started = HookedClient(), set[int]()
    tasks = client.tasks

    async def start_after_listing(namespace: str) -> Sequence[Task]:
        listed = await tasks(namespace)
        for key, pid in ((WEB, 10), (DB, 11)):
            if key.namespace == namespace and pid not in started:
                started.add(pid)
                client.stream.put(TaskCreated(key, 1, pid), TaskStarted(key, 2, pid))
                client.run(key, pid)
        return listed

    client.tasks = start_after_listing  # type: ignore[method-assign]
    client.add(WEB, "the-name")
    client.add(DB)
    client.out_of_scope.add(DB.id)
    async with running_watch(client) as running:
        await running.wait_synced()
    assert {each["id"] for each in running.documents if each["id"]} == {"web"}
    assert {each["container"]["name"] for each in running.documents if each["id"]} == {"the-name"}


async def test_pause_between_snapshots_grows_when_losses_are_repeated() -> None:
    async with synced_watch(HookedClient()) as running:

        async def pause_after_losses(count: int) -> list[int]:
            """Return the seconds between snapshots when each is followed by another loss at once."""
            times = [running.clock.now().monotonic]
            for _ in range(count):
                running.watch.request_snapshot("overflow")
                await running.wait_synced(len(running.snapshots()) + 1)
                times.append(running.clock.now().monotonic)
            return [round(to_seconds(after - before) / 30) * 30 for before, after in pairwise(times)]

        assert await pause_after_losses(6) == [0, 30, 60, 120, 240, 240]
        await running.clock.sleep(500)
        assert await pause_after_losses(2) == [0, 30]


@pytest.mark.parametrize("seconds", [0, 1])
async def test_snapshot_on_demand_does_not_wait_for_pause_after_losses(seconds: float) -> None:
    """The snapshot is requested together with one after another loss, or later."""
    async with synced_watch(HookedClient()) as running:
        for number in range(4):
            running.watch.request_snapshot("overflow")
            await running.wait_synced(2 + number)
        before = running.clock.now().monotonic
        running.watch.request_snapshot("overflow")
        if seconds:
            await running.clock.sleep(seconds)
        running.watch.request_snapshot("on_demand")
        await running.wait_synced(6)
        assert running.clock.now().monotonic - before < 60 * SECOND
