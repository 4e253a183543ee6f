"""The watch against a containerd that does as the test says: the races that real ones hit now and then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerKey,
    ContainerUpdated,
    Engine,
    Event,
    ExitStatus,
    Ignored,
    Marker,
    Task,
    TaskCreated,
    TaskExited,
    TaskPaused,
    TaskStarted,
    TaskStatus,
    Undecodable,
)
from bridge.core.errors import FatalError, StreamOverflowError, TransientError
from bridge.watch import ContainerWatch
from bridge.watch.audit import EVENT_DELAY_SECONDS
from tests.eventually import eventually_async
from tests.unit.watch.fakes import FakeClock, FakeEngineClient, RecordingOutbox, make_metadata, settings

WEB = ContainerKey("default", "web")
DB = ContainerKey("shop", "db")
BOOT = "5f3c9a1e-0000"


class RunningWatch:
    """A watch that runs, and what it told."""

    def __init__(self, source: FakeEngineClient, **changed: object) -> None:
        self.source = source
        self.clock = FakeClock()
        self.outbox = RecordingOutbox()
        self.watch = ContainerWatch(source, self.outbox, self.clock, settings(**changed), BOOT)
        self.task = asyncio.create_task(self.watch.run())

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(each.data) for each in self.outbox.records]

    @property
    def transitions(self) -> list[tuple[str, str, str]]:
        """Transitions and rows: type, origin, id."""
        return [(each["type"], each["origin"], each["id"]) for each in self.documents if each["id"]]

    def snapshots(self, type_: str = "snapshot_completed") -> list[dict[str, Any]]:
        return [each["snapshot"] for each in self.documents if each["type"] == type_]

    async def eventually(self, fits: Callable[[], object]) -> None:
        """Let the watch go on until something is so."""
        await eventually_async(fits, meanwhile=lambda: self.task.done() and self.task.result())

    async def wait_synced(self, snapshots: int = 1) -> None:
        await self.eventually(lambda: len(self.snapshots()) >= snapshots)


@contextlib.asynccontextmanager
async def running_watch(source: FakeEngineClient, **changed: object) -> AsyncIterator[RunningWatch]:
    running = RunningWatch(
        source, **{"first_audit_delay": 1e6, "audit_interval": 1e6, "marker_interval": 1e9, **changed}
    )
    try:
        yield running
    finally:
        running.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, FatalError, TransientError):
            await running.task


def start_events(key: ContainerKey, pid: int) -> list[Any]:
    return [ContainerCreated(key, 1, "busybox", "runc"), TaskCreated(key, 2, pid), TaskStarted(key, 3, pid)]


def exit_event(key: ContainerKey, pid: int, status: int = 0) -> TaskExited:
    return TaskExited(key, 9, "", pid, status, 8)


async def test_first_snapshot_contains_running_containers() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    source.run(DB, 11, TaskStatus.PAUSED)
    source.run(ContainerKey("moby", "x"), 12)
    source.run(ContainerKey("default", "over"), 13, TaskStatus.STOPPED)
    async with running_watch(source) as running:
        await running.wait_synced()
    assert sorted(running.transitions) == [("present", "snapshot", "shop/db"), ("present", "snapshot", "web")]
    started, completed = running.documents[0]["snapshot"], running.snapshots()[0]
    assert started == completed
    assert (started["reason"], started["since"], started["containers"]) == ("start", None, 2)
    assert started["namespaces"] == ["default", "shop"]


async def test_exit_between_subscribe_and_listing_is_published() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)

    async def exit_web(_: str) -> None:
        source.stream.put(exit_event(WEB, 10, 3))

    source.before_listing = exit_web
    async with running_watch(source) as running:
        await running.wait_synced()
    assert [each[0] for each in running.transitions] == ["started", "exited"]
    assert running.documents[2]["exit"]["status"] == 3
    assert running.snapshots()[0]["containers"] == 0


async def test_stale_pause_in_listing_is_resolved_by_task_query() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)

    async def pauses(_: str) -> None:
        source.stream.put(TaskPaused(WEB, 5))

    async def is_paused(key: ContainerKey) -> None:
        source.running[key] = Task(key, 10, TaskStatus.PAUSED)

    source.before_listing, source.before_task = pauses, is_paused
    async with running_watch(source) as running:
        await running.wait_synced()
    assert running.transitions == [("present", "snapshot", "web")]
    assert running.documents[1]["container"]["paused"] is True


async def test_stale_query_result_is_repeated_when_exit_arrives() -> None:
    """While containerd is asked, the container dies: its death is the live one, with its status."""
    source = FakeEngineClient()
    source.run(WEB, 10)
    async with running_watch(source) as running:
        await running.wait_synced()

        async def exit_web(_: ContainerKey) -> None:
            if source.calls["task"] == 1:
                source.stream.put(exit_event(WEB, 10, 7))
                for _turn in range(20):
                    await asyncio.sleep(0)
                source.running.clear()

        source.before_task = exit_web
        pause = TaskPaused(WEB, running.clock.now().wall)
        source.stream.put(pause, pause)
        await running.eventually(lambda: len(running.transitions) == 3)
    assert running.transitions[1:] == [("paused", "live", "web"), ("exited", "live", "web")]
    assert running.documents[-1]["exit"] == {"status": 7, "at": "1970-01-01T00:00:00.000000008Z", "oom": False}


async def test_restart_in_gap_is_published_as_two_incarnations() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    source.run(DB, 11)
    async with running_watch(source) as running:
        await running.wait_synced()
        source.run(WEB, 20)
        del source.running[DB]
        source.stream.end(TransientError("gone"))
        await running.wait_synced(2)
    assert sorted(running.transitions[2:5]) == [
        ("exited", "inferred", "shop/db"),
        ("exited", "inferred", "web"),
        ("started", "inferred", "web"),
    ]
    assert running.transitions[5:] == [("present", "snapshot", "web")]
    assert running.snapshots()[1]["reason"] == "reconnect"
    assert running.snapshots()[1]["since"] is not None
    assert [each["sequence"] for each in running.documents] == list(range(1, len(running.documents) + 1))


async def test_failed_namespace_is_reported_and_left_unchanged() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    source.run(DB, 11)
    async with running_watch(source) as running:
        await running.wait_synced()

        async def fails(namespace: str) -> None:
            if namespace == "shop":
                raise TransientError("busy")

        source.before_listing = fails
        del source.running[DB]
        source.stream.end(TransientError("gone"))
        await running.wait_synced(2)
    frame = running.snapshots()[1]
    assert (frame["failed"], frame["partial"]) == (["shop"], True)
    assert ("exited", "inferred", "shop/db") not in running.transitions
    assert running.transitions.count(("present", "snapshot", "shop/db")) == 2


async def test_audit_publishes_lost_events() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    async with running_watch(source, first_audit_delay=0.05, audit_interval=0.05) as running:
        await running.wait_synced()
        source.run(WEB, 20)
        source.run(DB, 30)
        await running.wait_synced(2)
        await asyncio.sleep(0.2)  # two more audits: nothing to tell
    assert [frame["reason"] for frame in running.snapshots()] == ["start", "audit"]
    inferred = [(type_, id_) for type_, origin, id_ in running.transitions if origin == "inferred"]
    assert sorted(inferred) == [("exited", "web"), ("started", "shop/db"), ("started", "web")]
    assert running.documents[-2]["container"]["labels"] == {"tier": "front"}


async def test_watch_reconnects_within_two_seconds_of_containerd_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one is live within 5 s of its return."""
    source = FakeEngineClient()
    pauses: list[float] = []
    engine = source.engine

    async def away() -> Engine:
        if len(pauses) < 50:
            raise TransientError("nobody listens")
        return await engine()

    monkeypatch.setattr(source, "engine", away)
    async with running_watch(source) as running:
        sleep = running.clock.sleep

        async def pause(seconds: float) -> None:
            pauses.append(seconds)
            await sleep(seconds)

        monkeypatch.setattr(running.clock, "sleep", pause)
        await running.wait_synced()
        assert 1 < max(pauses[:50]) <= 2


def meanwhile(running: RunningWatch, monkeypatch: pytest.MonkeyPatch, *events: Event) -> list[float]:
    """Have events come while an audit waits for some; what is returned grows with each audit that waits."""
    audits: list[float] = []
    sleep = running.clock.sleep

    async def wait(seconds: float) -> None:
        if seconds == EVENT_DELAY_SECONDS:
            audits.append(seconds)
            received = running.watch._event_queue.put_count
            running.source.stream.put(*events)
            await running.eventually(lambda: running.watch._event_queue.popped_count >= received + len(events))
        await sleep(seconds)

    monkeypatch.setattr(running.clock, "sleep", wait)
    return audits


async def test_audit_waits_for_events_still_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    source = FakeEngineClient()
    async with running_watch(source, first_audit_delay=0.05, audit_interval=0.05) as running:
        audits = meanwhile(running, monkeypatch, *start_events(DB, 30))
        await running.wait_synced()
        source.run(DB, 30)
        await running.eventually(lambda: running.transitions)
        await asyncio.sleep(0.2)  # two more audits: nothing to tell
    assert len(audits) == 1
    assert source.calls["task"] <= 1, "only the start, which came late, may have been asked about"
    assert running.transitions == [("started", "live", "shop/db")]
    assert [frame["reason"] for frame in running.snapshots()] == ["start"]


@pytest.mark.parametrize("lost", ["start", "exit"])
async def test_audit_publishes_lost_events_despite_unrelated_event(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    async with running_watch(source, first_audit_delay=0.05) as running:
        meanwhile(running, monkeypatch, ContainerUpdated(DB if lost == "start" else WEB, 7, "busybox", {}))
        await running.wait_synced()
        if lost == "start":
            source.run(DB, 30)
        else:
            del source.running[WEB]
        await running.wait_synced(2)
    told = ("started", "inferred", "shop/db") if lost == "start" else ("exited", "inferred", "web")
    assert told in running.transitions
    assert running.snapshots()[1]["containers"] == (2 if lost == "start" else 0)


async def test_metadata_is_fetched_before_container_is_deleted() -> None:
    """A container that is gone before its events are decided on is told with its labels all the same."""
    source = FakeEngineClient()
    async with running_watch(source) as running:
        await running.wait_synced()
        source.metadata[WEB] = make_metadata(WEB, "shop-web")
        source.stream.put(*start_events(WEB, 10), exit_event(WEB, 10), ContainerDeleted(WEB, 10))

        async def vanishes(_: ContainerKey) -> None:
            pass

        source.before_container = vanishes
        await running.eventually(lambda: len(running.transitions) == 2)
    assert {each["container"]["name"] for each in running.documents[2:]} == {"shop-web"}
    assert source.calls["container"] == 1


async def test_start_uses_event_fields_when_metadata_is_gone() -> None:
    source = FakeEngineClient()
    async with running_watch(source) as running:
        await running.wait_synced()
        source.stream.put(*start_events(WEB, 10), exit_event(WEB, 10))
        await running.eventually(lambda: len(running.transitions) == 2)
    container = running.documents[-1]["container"]
    assert (container["name"], container["labels"], container["image"]) == ("web", None, "busybox")


async def test_failed_metadata_fetch_is_repeated_on_next_connection() -> None:
    source = FakeEngineClient()
    async with running_watch(source) as running:
        await running.wait_synced()
        source.metadata[WEB] = make_metadata(WEB, "late")

        async def fails(_: ContainerKey) -> None:
            if source.calls["container"] <= 3:
                raise TransientError("busy")

        source.before_container = fails
        source.running[WEB] = Task(WEB, 10, TaskStatus.RUNNING)
        source.stream.put(*start_events(WEB, 10))
        await running.wait_synced(2)
    assert running.transitions == [("started", "live", "web"), ("present", "snapshot", "web")]
    assert running.documents[3]["container"]["name"] == "late"


async def test_engine_change_ends_containers_of_previous_engine() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    async with running_watch(source) as running:
        await running.wait_synced()
        source.id = "engine-2"
        source.running = {DB: Task(DB, 5, TaskStatus.RUNNING)}
        source.metadata = {DB: make_metadata(DB)}
        source.stream.end(TransientError("gone"))
        await running.wait_synced(3)
    engines = [each["engine"]["id"] for each in running.documents]
    assert engines == ["engine-1"] * 6 + ["engine-2"] * 3
    old, new = running.documents[:6], running.documents[6:]
    assert [each["type"] for each in old[3:]] == ["snapshot_started", "exited", "snapshot_completed"]
    assert new[0]["epoch"] > old[0]["epoch"]
    assert [each["sequence"] for each in new] == [1, 2, 3]
    assert new[0]["snapshot"]["reason"] == "start"


@pytest.mark.parametrize("wait_result", [ExitStatus(42, 8), None])
async def test_lost_exit_is_published_soon_with_task_wait_status(
    wait_result: ExitStatus | None,
) -> None:
    class Witnessing(FakeEngineClient):
        async def wait(self, _: ContainerKey) -> ExitStatus | None:
            return wait_result

    source = Witnessing()
    async with running_watch(source) as running:
        await running.wait_synced()
        source.metadata[WEB] = make_metadata(WEB)
        source.stream.put(TaskCreated(WEB, 2, 10), TaskStarted(WEB, running.clock.now().wall, 10))
        await running.eventually(lambda: len(running.transitions) == 1)
        assert source.calls["task"] == 0, "nothing else has raised a question"
        running.clock.nanoseconds += 3_000_000_000
        source.stream.put(Ignored("/tasks/exec-added", known=True))
        await running.eventually(lambda: len(running.transitions) == 2)
    assert running.transitions == [("started", "live", "web"), ("exited", "inferred", "web")]
    assert running.documents[3]["exit"]["status"] == (wait_result and 42)


async def test_stream_overflow_is_reported_in_next_snapshot() -> None:
    source = FakeEngineClient()
    async with running_watch(source) as running:
        await running.wait_synced()
        source.stream.end(StreamOverflowError("too much"))
        await running.wait_synced(2)
    assert running.snapshots()[1]["reason"] == "overflow"


async def test_requested_snapshot_is_published() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    async with running_watch(source) as running:
        await running.wait_synced()
        running.watch.requests.request("on_demand")
        await running.wait_synced(2)
    assert running.snapshots()[1]["reason"] == "on_demand"
    assert running.transitions == [("present", "snapshot", "web")] * 2


async def test_event_stream_is_abandoned_when_markers_do_not_return() -> None:
    source = FakeEngineClient()
    source.markers_return = False
    async with running_watch(source, marker_timeout=0.3) as running:
        advance = asyncio.create_task(_advance(running.clock))
        await running.eventually(lambda: source.calls["mark"] >= 6)
        source.markers_return = True
        await running.wait_synced()
        advance.cancel()
    assert running.snapshots()[0]["reason"] == "start"


async def test_ignored_events_are_counted_by_kind() -> None:
    source = FakeEngineClient()
    async with running_watch(source) as running:
        await running.wait_synced()
        source.stream.put(
            Ignored("/tasks/dances", known=False), Ignored("/tasks/exec-added", known=True), Undecodable("/x", "odd")
        )
        source.stream.put(Marker("another", 1))
        await running.eventually(lambda: running.watch.ignored_events.counts.total() == 4)
    assert running.watch.ignored_events.counts == {"unknown": 1, "ignored": 1, "undecodable": 1, "foreign_marker": 1}


async def test_watch_stops_on_fatal_error_of_containerd() -> None:
    source = FakeEngineClient()

    async def fail_fatally(_: str) -> None:
        raise FatalError("no")

    async with running_watch(source) as running:
        await running.wait_synced()

        async def broken() -> Any:
            raise FatalError("another program listens there")

        source.engine = broken  # type: ignore[method-assign]
        source.stream.end(TransientError("gone"))
        with pytest.raises(FatalError, match="another program"):
            await running.eventually(lambda: False)


async def _advance(clock: FakeClock) -> None:
    while True:
        clock.nanoseconds += 100_000_000
        await asyncio.sleep(0.01)
