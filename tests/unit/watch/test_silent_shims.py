"""The container watch while shims send no events, or not all: start checks, waits, and what they cost."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerKey,
    Event,
    Task,
    TaskCreated,
    TaskExited,
    TaskStarted,
    TaskStatus,
)
from bridge.core.errors import BridgeError, TransientError
from bridge.watch.listing import find_tasks
from tests.unit.watch.fakes import DB, WEB, HookedClient, start_events, synced_watch


async def test_silent_run_is_published_with_exit_status() -> None:
    client = HookedClient()
    async with synced_watch(client) as running:
        client.stream.put(ContainerCreated(WEB, running.clock.now().wall, "busybox", "silent"))
        client.run(WEB, 10)
        with capture_logs() as logs:
            await asyncio.sleep(5)
            await running.eventually(lambda: len(running.transitions) == 1)
        client.state.stop_without_event(WEB, 7)
        client.remove_task(WEB)
        await running.eventually(lambda: len(running.transitions) == 2)
    assert running.transitions == [("started", "inferred", "web"), ("exited", "inferred", "web")]
    assert running.documents[-1]["exit"]["status"] == 7
    assert client.calls["wait_for_exit"] == 1
    (line,) = (each for each in logs if each["event"] == "start_event_missing")
    assert (line["namespace"], line["id"], line["runtime"]) == ("default", "web", "runc")


async def test_exit_is_waited_for_when_creation_is_not_reported() -> None:
    client = HookedClient()
    client.add(WEB)
    async with synced_watch(client) as running:
        client.stream.put(TaskStarted(WEB, running.clock.now().wall, 10))
        await running.eventually(lambda: running.transitions and client.calls["wait_for_exit"] == 1)


async def test_run_that_is_over_already_is_not_waited_for() -> None:
    client = HookedClient()
    client.add(WEB)
    async with synced_watch(client) as running:
        now = running.clock.now().wall
        client.stream.put(TaskStarted(WEB, now, 10), TaskExited(WEB, now + 1, "", 10, 0, now + 1))
        await running.eventually(lambda: len(running.transitions) == 2)
    assert client.calls["wait_for_exit"] == 0


async def test_reported_containers_cause_no_start_checks() -> None:
    client = HookedClient()
    async with synced_watch(client) as running:
        calls = dict(client.calls)
        keys = [ContainerKey("default", f"c{number}") for number in range(100)]
        for key in keys:
            client.run(key, 10)
            client.stream.put(*start_events(key, 10))
        await running.eventually(lambda: len(running.transitions) == len(keys))
        await asyncio.sleep(600)
    assert client.calls["tasks"] == calls["tasks"]
    assert client.calls["task"] == len(keys), "start_events() are old, so each start is queried"
    assert client.calls["wait_for_exit"] == len(keys)


async def test_unstarted_containers_are_checked_with_few_listings() -> None:
    client = HookedClient()
    events: list[Event] = []
    async with synced_watch(client) as running:
        for number in range(1_000):
            key = ContainerKey("default", f"c{number}")
            client.add(key)
            events.append(ContainerCreated(key, running.clock.now().wall, "busybox", "runc"))
        client.stream.put(*events)
        await running.eventually(lambda: client.calls["container"] == 1_000)
        listings = client.calls["tasks"]
        await asyncio.sleep(1_000)
    assert client.calls["tasks"] - listings == 7
    assert client.calls["task"] == 0
    assert running.transitions == []


@pytest.mark.parametrize(("running", "calls"), [(9, {"tasks": 1}), (10, {"task": 2})], ids=["listing", "queries"])
async def test_tasks_are_found_in_the_cheaper_way(running: int, calls: dict[str, int]) -> None:
    client = HookedClient()
    client.run(WEB, 5)
    other = ContainerKey("default", "other")
    client.add(other)
    found = await find_tasks(client, [WEB, other], {"default": running, "shop": 100}, asyncio.Semaphore(16))
    assert found == [Task(WEB, 5, TaskStatus.RUNNING), None]
    assert client.calls == calls


async def test_failed_listing_leaves_other_namespaces_to_be_found() -> None:
    async def fail(namespace: str) -> None:
        if namespace == "shop":
            raise TransientError("busy")

    client = HookedClient()
    client.hooks["tasks"] = fail
    client.run(WEB, 5)
    failed, found = await find_tasks(client, [DB, WEB], {}, asyncio.Semaphore(16))
    assert isinstance(failed, BridgeError)
    assert found == Task(WEB, 5, TaskStatus.RUNNING)


async def test_failed_exit_wait_is_repeated_with_growing_delay() -> None:
    client, waited_at = HookedClient({WEB: 10}), list[float]()

    async def fail(_: ContainerKey) -> None:
        waited_at.append(asyncio.get_running_loop().time())
        if len(waited_at) <= 4:
            raise TransientError("the shim does not respond")
        client.state.stop_without_event(WEB, 3)

    client.hooks["wait_for_exit"] = fail
    async with synced_watch(client) as running:
        client.stream.put(TaskStarted(WEB, running.clock.now().wall, 10))
        await running.eventually(lambda: len(running.transitions) == 2)
    assert running.documents[-1]["exit"]["status"] == 3
    assert len(waited_at) == 5
    assert 15 <= waited_at[-1] - waited_at[0] <= 30


async def test_task_killed_before_its_start_is_waited_for_once() -> None:
    client = HookedClient()
    async with synced_watch(client) as running:
        client.state.create(WEB)
        client.stream.put(TaskCreated(WEB, running.clock.now().wall, client.state.create_task(WEB)))
        await running.eventually(lambda: client.calls["wait_for_exit"] == 1)
        client.state.exit(WEB)
        await asyncio.sleep(10)
    assert client.calls["wait_for_exit"] == 1


async def test_next_task_with_the_same_pid_is_waited_for() -> None:
    """The next task has started by the time that the result of the wait for the earlier one is processed."""
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:
        await asyncio.sleep(1)
        task, now = client.state.stop_without_event(WEB, 3), running.clock.now().wall
        running.clock.advance(3e-9)
        client.run(WEB, 10)
        exited = TaskExited(WEB, now, "", 10, 3, now)
        client.stream.put(exited, TaskCreated(WEB, now + 1, 10), TaskStarted(WEB, now + 2, 10))
        task.exited_at = now
        await asyncio.sleep(10)
        client.state.stop_without_event(WEB, 7)
        client.remove_task(WEB)
        await running.eventually(lambda: len(running.transitions) == 4)
    exits = [each["exit"]["status"] for each in running.documents if each["type"] == "exited"]
    assert exits == [3, 7]
    assert client.calls["wait_for_exit"] == 2


async def test_every_task_is_waited_for() -> None:
    keys = [ContainerKey("default", f"c{number}") for number in range(3_000)]
    client = HookedClient({key: number for number, key in enumerate(keys, 1)})
    async with synced_watch(client) as running:
        await running.eventually(lambda: client.calls["wait_for_exit"] == len(keys))
        for key in keys:
            client.state.stop_without_event(key, 3)
        await running.eventually(lambda: sum(each[0] == "exited" for each in running.transitions) == len(keys))
    assert {each["exit"]["status"] for each in running.documents if each["type"] == "exited"} == {3}


async def test_event_processed_after_disconnect_starts_no_call() -> None:
    client = HookedClient()
    client.add(WEB)
    async with synced_watch(client) as running:
        started = TaskStarted(WEB, running.clock.now().wall, 10)
        client.stream.drain = lambda: [started]  # type: ignore[method-assign] # it arrives at the last moment
        client.stream.end()
        await running.wait_synced(2)
    assert running.transitions == [("started", "live", "web"), ("exited", "inferred", "web")]
    assert client.calls["wait_for_exit"] == 0
