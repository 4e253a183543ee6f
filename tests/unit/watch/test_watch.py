"""The watch against a containerd that does as the test says: the races that real ones hit now and then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from bridge.core.errors import FatalError, StreamOverflowError, TransientError
from bridge.core.model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerKey,
    ContainerUpdated,
    Engine,
    Event,
    Ignored,
    Mark,
    Task,
    TaskCreated,
    TaskEnd,
    TaskExited,
    TaskPaused,
    TaskStarted,
    TaskStatus,
    Undecodable,
)
from bridge.watch import Watch
from bridge.watch.audit import EVENT_SECONDS
from tests.unit.watch.fakes import FakeClock, FakeSource, KeepingOutbox, record, settings

WEB = ContainerKey("default", "web")
DB = ContainerKey("shop", "db")
BOOT = "5f3c9a1e-0000"


class Running:
    """A watch that runs, and what it told."""

    def __init__(self, source: FakeSource, **changed: object) -> None:
        self.source = source
        self.clock = FakeClock()
        self.outbox = KeepingOutbox()
        self.watch = Watch(source, self.outbox, self.clock, settings(**changed), BOOT)
        self.task = asyncio.create_task(self.watch.run())

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(each.data) for each in self.outbox.kept]

    @property
    def told(self) -> list[tuple[str, str, str]]:
        """Transitions and rows: type, origin, id."""
        return [(each["type"], each["origin"], each["id"]) for each in self.documents if each["id"]]

    def frames(self, type_: str = "snapshot_completed") -> list[dict[str, Any]]:
        return [each["snapshot"] for each in self.documents if each["type"] == type_]

    async def until(self, fits: Callable[[], object]) -> None:
        """Let the watch go on until something is so."""
        async with asyncio.timeout(60):
            while not fits():
                if self.task.done():
                    self.task.result()
                await asyncio.sleep(0)

    async def live(self, snapshots: int = 1) -> None:
        await self.until(lambda: len(self.frames()) >= snapshots)


@contextlib.asynccontextmanager
async def watching(source: FakeSource, **changed: object) -> AsyncIterator[Running]:
    running = Running(source, **{"first_audit": 1e6, "audit_interval": 1e6, "mark_interval": 1e9, **changed})
    try:
        yield running
    finally:
        running.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, FatalError, TransientError):
            await running.task


def start(key: ContainerKey, pid: int) -> list[Any]:
    return [ContainerCreated(key, 1, "busybox", "runc"), TaskCreated(key, 2, pid), TaskStarted(key, 3, pid)]


def exit_(key: ContainerKey, pid: int, status: int = 0) -> TaskExited:
    return TaskExited(key, 9, "", pid, status, 8)


async def test_the_first_snapshot_is_a_baseline() -> None:
    source = FakeSource()
    source.run(WEB, 10)
    source.run(DB, 11, TaskStatus.PAUSED)
    source.run(ContainerKey("moby", "x"), 12)
    source.run(ContainerKey("default", "over"), 13, TaskStatus.STOPPED)
    async with watching(source) as running:
        await running.live()
    assert sorted(running.told) == [("present", "snapshot", "shop/db"), ("present", "snapshot", "web")]
    started, completed = running.documents[0]["snapshot"], running.frames()[0]
    assert started == completed
    assert (started["reason"], started["since"], started["containers"]) == ("start", None, 2)
    assert started["namespaces"] == ["default", "shop"]


async def test_a_death_between_subscribing_and_listing_is_told_although_the_row_says_running() -> None:
    source = FakeSource()
    source.run(WEB, 10)

    async def dies(_: str) -> None:
        source.stream.put(exit_(WEB, 10, 3))

    source.before_listing = dies
    async with watching(source) as running:
        await running.live()
    assert [each[0] for each in running.told] == ["started", "exited"]
    assert running.documents[2]["exit"]["status"] == 3
    assert running.frames()[0]["containers"] == 0


async def test_a_stale_pause_row_is_settled_by_asking() -> None:
    source = FakeSource()
    source.run(WEB, 10)

    async def pauses(_: str) -> None:
        source.stream.put(TaskPaused(WEB, 5))

    async def is_paused(key: ContainerKey) -> None:
        source.running[key] = Task(key, 10, TaskStatus.PAUSED)

    source.before_listing, source.before_task = pauses, is_paused
    async with watching(source) as running:
        await running.live()
    assert running.told == [("present", "snapshot", "web")]
    assert running.documents[1]["container"]["paused"] is True


async def test_an_answer_older_than_an_event_is_asked_for_again() -> None:
    """While containerd is asked, the container dies: its death is the live one, with its status."""
    source = FakeSource()
    source.run(WEB, 10)
    async with watching(source) as running:
        await running.live()

        async def dies(_: ContainerKey) -> None:
            if source.calls["task"] == 1:
                source.stream.put(exit_(WEB, 10, 7))
                for _turn in range(20):
                    await asyncio.sleep(0)
                source.running.clear()

        source.before_task = dies
        pause = TaskPaused(WEB, running.clock.now().wall)
        source.stream.put(pause, pause)
        await running.until(lambda: len(running.told) == 3)
    assert running.told[1:] == [("paused", "live", "web"), ("exited", "live", "web")]
    assert running.documents[-1]["exit"] == {"status": 7, "at": "1970-01-01T00:00:00.000000008Z", "oom": False}


async def test_what_died_and_was_reborn_in_a_gap_is_two_lives() -> None:
    source = FakeSource()
    source.run(WEB, 10)
    source.run(DB, 11)
    async with watching(source) as running:
        await running.live()
        source.run(WEB, 20)
        del source.running[DB]
        source.stream.end(TransientError("gone"))
        await running.live(2)
    assert sorted(running.told[2:5]) == [
        ("exited", "inferred", "shop/db"),
        ("exited", "inferred", "web"),
        ("started", "inferred", "web"),
    ]
    assert running.told[5:] == [("present", "snapshot", "web")]
    assert running.frames()[1]["reason"] == "reconnect"
    assert running.frames()[1]["since"] is not None
    assert [each["sequence"] for each in running.documents] == list(range(1, len(running.documents) + 1))


async def test_a_namespace_that_fails_is_told_and_nothing_is_concluded() -> None:
    source = FakeSource()
    source.run(WEB, 10)
    source.run(DB, 11)
    async with watching(source) as running:
        await running.live()

        async def fails(namespace: str) -> None:
            if namespace == "shop":
                raise TransientError("busy")

        source.before_listing = fails
        del source.running[DB]
        source.stream.end(TransientError("gone"))
        await running.live(2)
    frame = running.frames()[1]
    assert (frame["failed"], frame["partial"]) == (["shop"], True)
    assert ("exited", "inferred", "shop/db") not in running.told
    assert running.told.count(("present", "snapshot", "shop/db")) == 2


async def test_an_audit_repairs_what_was_lost() -> None:
    source = FakeSource()
    source.run(WEB, 10)
    async with watching(source, first_audit=0.05, audit_interval=0.05) as running:
        await running.live()
        source.run(WEB, 20)
        source.run(DB, 30)
        await running.live(2)
        await asyncio.sleep(0.2)  # two more audits: nothing to tell
    assert [frame["reason"] for frame in running.frames()] == ["start", "audit"]
    inferred = [(type_, id_) for type_, origin, id_ in running.told if origin == "inferred"]
    assert sorted(inferred) == [("exited", "web"), ("started", "shop/db"), ("started", "web")]
    assert running.documents[-2]["container"]["labels"] == {"tier": "front"}


async def test_a_containerd_that_is_away_is_looked_for_every_other_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one is live within 5 s of its return."""
    source = FakeSource()
    pauses: list[float] = []
    engine = source.engine

    async def away() -> Engine:
        if len(pauses) < 50:
            raise TransientError("nobody listens")
        return await engine()

    monkeypatch.setattr(source, "engine", away)
    async with watching(source) as running:
        sleep = running.clock.sleep

        async def pause(seconds: float) -> None:
            pauses.append(seconds)
            await sleep(seconds)

        monkeypatch.setattr(running.clock, "sleep", pause)
        await running.live()
        assert 1 < max(pauses[:50]) <= 2


def meanwhile(running: Running, monkeypatch: pytest.MonkeyPatch, *events: Event) -> list[float]:
    """Have events come while an audit waits for some; what is returned grows with each audit that waits."""
    audits: list[float] = []
    sleep = running.clock.sleep

    async def wait(seconds: float) -> None:
        if seconds == EVENT_SECONDS:
            audits.append(seconds)
            received = running.watch._intake.received
            running.source.stream.put(*events)
            await running.until(lambda: running.watch._intake.taken >= received + len(events))
        await sleep(seconds)

    monkeypatch.setattr(running.clock, "sleep", wait)
    return audits


async def test_an_audit_gives_events_time_that_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    source = FakeSource()
    async with watching(source, first_audit=0.05, audit_interval=0.05) as running:
        audits = meanwhile(running, monkeypatch, *start(DB, 30))
        await running.live()
        source.run(DB, 30)
        await running.until(lambda: running.told)
        await asyncio.sleep(0.2)  # two more audits: nothing to tell
    assert len(audits) == 1
    assert source.calls["task"] <= 1, "only the start, which came late, may have been asked about"
    assert running.told == [("started", "live", "shop/db")]
    assert [frame["reason"] for frame in running.frames()] == ["start"]


@pytest.mark.parametrize("lost", ["start", "exit"])
async def test_an_event_that_explains_nothing_does_not_put_a_repair_off(
    lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FakeSource()
    source.run(WEB, 10)
    async with watching(source, first_audit=0.05) as running:
        meanwhile(running, monkeypatch, ContainerUpdated(DB if lost == "start" else WEB, 7, "busybox", {}))
        await running.live()
        if lost == "start":
            source.run(DB, 30)
        else:
            del source.running[WEB]
        await running.live(2)
    told = ("started", "inferred", "shop/db") if lost == "start" else ("exited", "inferred", "web")
    assert told in running.told
    assert running.frames()[1]["containers"] == (2 if lost == "start" else 0)


async def test_the_record_is_asked_for_while_it_is_there() -> None:
    """A container that is gone before its events are decided on is told with its labels all the same."""
    source = FakeSource()
    async with watching(source) as running:
        await running.live()
        source.records[WEB] = record(WEB, "shop-web")
        source.stream.put(*start(WEB, 10), exit_(WEB, 10), ContainerDeleted(WEB, 10))

        async def vanishes(_: ContainerKey) -> None:
            pass

        source.before_record = vanishes
        await running.until(lambda: len(running.told) == 2)
    assert {each["container"]["name"] for each in running.documents[2:]} == {"shop-web"}
    assert source.calls["container"] == 1


async def test_a_record_that_is_gone_leaves_what_the_event_told() -> None:
    source = FakeSource()
    async with watching(source) as running:
        await running.live()
        source.stream.put(*start(WEB, 10), exit_(WEB, 10))
        await running.until(lambda: len(running.told) == 2)
    container = running.documents[-1]["container"]
    assert (container["name"], container["labels"], container["image"]) == ("web", None, "busybox")


async def test_a_record_that_cannot_be_asked_for_waits_for_the_next_connection() -> None:
    source = FakeSource()
    async with watching(source) as running:
        await running.live()
        source.records[WEB] = record(WEB, "late")

        async def fails(_: ContainerKey) -> None:
            if source.calls["container"] <= 3:
                raise TransientError("busy")

        source.before_record = fails
        source.running[WEB] = Task(WEB, 10, TaskStatus.RUNNING)
        source.stream.put(*start(WEB, 10))
        await running.live(2)
    assert running.told == [("started", "live", "web"), ("present", "snapshot", "web")]
    assert running.documents[3]["container"]["name"] == "late"


async def test_another_engine_ends_the_old_ones_lives_under_its_name() -> None:
    source = FakeSource()
    source.run(WEB, 10)
    async with watching(source) as running:
        await running.live()
        source.id = "engine-2"
        source.running = {DB: Task(DB, 5, TaskStatus.RUNNING)}
        source.records = {DB: record(DB)}
        source.stream.end(TransientError("gone"))
        await running.live(3)
    engines = [each["engine"]["id"] for each in running.documents]
    assert engines == ["engine-1"] * 6 + ["engine-2"] * 3
    old, new = running.documents[:6], running.documents[6:]
    assert [each["type"] for each in old[3:]] == ["snapshot_started", "exited", "snapshot_completed"]
    assert new[0]["epoch"] > old[0]["epoch"]
    assert [each["sequence"] for each in new] == [1, 2, 3]
    assert new[0]["snapshot"]["reason"] == "start"


@pytest.mark.parametrize("witnessed", [TaskEnd(42, 8), None])
async def test_a_lost_exit_is_told_soon_and_with_the_status_that_the_second_witness_has(
    witnessed: TaskEnd | None,
) -> None:
    class Witnessing(FakeSource):
        async def wait(self, _: ContainerKey) -> TaskEnd | None:
            return witnessed

    source = Witnessing()
    async with watching(source) as running:
        await running.live()
        source.records[WEB] = record(WEB)
        source.stream.put(TaskCreated(WEB, 2, 10), TaskStarted(WEB, running.clock.now().wall, 10))
        await running.until(lambda: len(running.told) == 1)
        assert source.calls["task"] == 0, "nothing else has raised a question"
        running.clock.nanoseconds += 3_000_000_000
        source.stream.put(Ignored("/tasks/exec-added", known=True))
        await running.until(lambda: len(running.told) == 2)
    assert running.told == [("started", "live", "web"), ("exited", "inferred", "web")]
    assert running.documents[3]["exit"]["status"] == (witnessed and 42)


async def test_an_overflow_is_announced() -> None:
    source = FakeSource()
    async with watching(source) as running:
        await running.live()
        source.stream.end(StreamOverflowError("too much"))
        await running.live(2)
    assert running.frames()[1]["reason"] == "overflow"


async def test_a_snapshot_on_request() -> None:
    source = FakeSource()
    source.run(WEB, 10)
    async with watching(source) as running:
        await running.live()
        running.watch.requests.ask("on_demand")
        await running.live(2)
    assert running.frames()[1]["reason"] == "on_demand"
    assert running.told == [("present", "snapshot", "web")] * 2


async def test_a_stream_on_which_no_mark_comes_back_is_given_up() -> None:
    source = FakeSource()
    source.marks_come_back = False
    async with watching(source, mark_timeout=0.3) as running:
        advance = asyncio.create_task(_advance(running.clock))
        await running.until(lambda: source.calls["mark"] >= 6)
        source.marks_come_back = True
        await running.live()
        advance.cancel()
    assert running.frames()[0]["reason"] == "start"


async def test_odd_events_are_counted_and_harm_nobody() -> None:
    source = FakeSource()
    async with watching(source) as running:
        await running.live()
        source.stream.put(
            Ignored("/tasks/dances", known=False), Ignored("/tasks/exec-added", known=True), Undecodable("/x", "odd")
        )
        source.stream.put(Mark("another", 1))
        await running.until(lambda: running.watch.oddities.counts.total() == 4)
    assert running.watch.oddities.counts == {"unknown": 1, "ignored": 1, "undecodable": 1, "foreign_marker": 1}


async def test_a_refusal_that_only_a_person_can_change_ends_the_watch() -> None:
    source = FakeSource()

    async def refuses(_: str) -> None:
        raise FatalError("no")

    async with watching(source) as running:
        await running.live()

        async def broken() -> Any:
            raise FatalError("another program listens there")

        source.engine = broken  # type: ignore[method-assign]
        source.stream.end(TransientError("gone"))
        with pytest.raises(FatalError, match="another program"):
            await running.until(lambda: False)


async def _advance(clock: FakeClock) -> None:
    while True:
        clock.nanoseconds += 100_000_000
        await asyncio.sleep(0.01)
