"""The container watch while shims send no events, or not all: start checks, waits, and what they cost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerKey,
    Event,
    ExitStatus,
    Ignored,
    Task,
    TaskStarted,
    TaskStatus,
)
from bridge.core.errors import BridgeError, TransientError
from bridge.watch.listing import find_tasks
from tests.unit.watch.fakes import FakeEngineClient, make_metadata
from tests.unit.watch.test_watch import DB, WEB, RunningWatch, running_watch, start_events

SECOND = 1_000_000_000


class WaitingClient(FakeEngineClient):
    """A containerd that counts listings of tasks, and whose tasks exit when the test sets their exit status."""

    def __init__(self) -> None:
        super().__init__()
        self.exits: dict[ContainerKey, asyncio.Future[ExitStatus]] = {}

    async def tasks(self, namespace: str) -> Sequence[Task]:
        self.calls["tasks"] += 1
        return await super().tasks(namespace)

    async def wait_for_exit(self, key: ContainerKey) -> ExitStatus | None:
        self.calls["wait"] += 1
        return await self.exits.setdefault(key, asyncio.get_running_loop().create_future())


async def advance(running: RunningWatch, seconds: float) -> None:
    """Advance the clock, and wake the watch with an event that means nothing."""
    running.clock.nanoseconds += int(seconds * SECOND)
    running.client.stream.put(Ignored("/tasks/exec-added", known=True))
    for _ in range(50):
        await asyncio.sleep(0)


async def test_silent_run_is_published_with_exit_status() -> None:
    client = WaitingClient()
    async with running_watch(client) as running:
        await running.wait_synced()
        client.stream.put(ContainerCreated(WEB, running.clock.now().wall, "busybox", "silent"))
        client.run(WEB, 10)
        await advance(running, 0)
        with capture_logs() as logs:
            await advance(running, 3)
            await advance(running, 2)
            await running.eventually(lambda: len(running.transitions) == 1)
        client.exits[WEB].set_result(ExitStatus(7, 8))
        del client.running[WEB]
        await advance(running, 0)
        await advance(running, 2)
        await running.eventually(lambda: len(running.transitions) == 2)
    assert running.transitions == [("started", "inferred", "web"), ("exited", "inferred", "web")]
    assert running.documents[-1]["exit"]["status"] == 7
    assert client.calls["wait"] == 1
    assert [each for each in logs if each["event"] == "start_event_missing"] == [
        {"event": "start_event_missing", "log_level": "warning", "namespace": "default", "id": "web", "runtime": "runc"}
    ]


async def test_exit_is_waited_for_when_creation_is_not_reported() -> None:
    client = WaitingClient()
    client.metadata[WEB] = make_metadata(WEB)
    async with running_watch(client) as running:
        await running.wait_synced()
        client.stream.put(TaskStarted(WEB, running.clock.now().wall, 10))
        await running.eventually(lambda: running.transitions and client.calls["wait"] == 1)


async def test_reported_containers_cause_no_start_checks() -> None:
    client = WaitingClient()
    async with running_watch(client) as running:
        await running.wait_synced()
        calls = dict(client.calls)
        keys = [ContainerKey("default", f"c{number}") for number in range(100)]
        for key in keys:
            client.run(key, 10)
            client.stream.put(*start_events(key, 10))
        await running.eventually(lambda: len(running.transitions) == len(keys))
        for _ in range(10):
            await advance(running, 60)
    assert client.calls["tasks"] == calls["tasks"]
    assert client.calls["task"] == len(keys), "start_events() are old, so each start is queried"
    assert client.calls["wait"] == len(keys)


async def test_unstarted_containers_are_checked_with_few_listings() -> None:
    client = WaitingClient()
    events: list[Event] = []
    async with running_watch(client) as running:
        await running.wait_synced()
        for number in range(1_000):
            key = ContainerKey("default", f"c{number}")
            client.metadata[key] = make_metadata(key)
            events.append(ContainerCreated(key, running.clock.now().wall, "busybox", "runc"))
        client.stream.put(*events)
        await advance(running, 0)
        await running.eventually(lambda: client.calls["container"] == 1_000)
        listings = client.calls["tasks"]
        for _ in range(1_000):
            await advance(running, 1)
    assert client.calls["tasks"] - listings == 7
    assert client.calls["task"] == 0
    assert running.transitions == []


@pytest.mark.parametrize(("running", "calls"), [(9, {"tasks": 1}), (10, {"task": 2})], ids=["listing", "queries"])
async def test_tasks_are_found_in_the_cheaper_way(running: int, calls: dict[str, int]) -> None:
    client = WaitingClient()
    client.running[WEB] = Task(WEB, 5, TaskStatus.RUNNING)
    other = ContainerKey("default", "other")
    found = await find_tasks(client, [WEB, other], {"default": running, "shop": 100}, asyncio.Semaphore(16))
    assert found == [client.running[WEB], None]
    assert client.calls == calls


async def test_failed_listing_leaves_other_namespaces_to_be_found() -> None:
    class FailingClient(WaitingClient):
        async def tasks(self, namespace: str) -> Sequence[Task]:
            if namespace == "shop":
                raise TransientError("busy")
            return await super().tasks(namespace)

    client = FailingClient()
    client.running[WEB] = Task(WEB, 5, TaskStatus.RUNNING)
    failed, found = await find_tasks(client, [DB, WEB], {}, asyncio.Semaphore(16))
    assert isinstance(failed, BridgeError)
    assert found == client.running[WEB]
