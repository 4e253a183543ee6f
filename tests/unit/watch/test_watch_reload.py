"""Other settings while the watch runs, and snapshots on request."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from bridge.core.errors import TransientError
from bridge.core.labels import LabelRules
from bridge.core.model import ContainerKey, ContainerUpdated, Engine, TaskExited, TaskPaused, TaskStatus
from bridge.watch.requests import Requests, SnapshotTaken
from tests.unit.watch.fakes import FakeSource, nothing, record, settings
from tests.unit.watch.test_watch import DB, WEB, Running, exit_, meanwhile, start, watching

OTHER = ContainerKey("other", "x")


def ids(running: Running, type_: str = "present", snapshot: int = 0) -> list[str]:
    """Whom the rows of a snapshot name."""
    documents = running.documents
    begins = [place for place, each in enumerate(documents) if each["type"] == "snapshot_started"][snapshot]
    return sorted(each["id"] for each in documents[begins:] if each["type"] == type_)


async def test_other_filters_take_a_snapshot_that_does_not_name_what_left_the_scope() -> None:
    source = FakeSource()
    source.run(WEB, 10)
    source.run(DB, 11)
    source.records[DB] = replace(record(DB), in_scope=False)
    async with watching(source) as running:
        await running.live()
        assert ids(running) == ["web"]
        source.records = {WEB: replace(record(WEB), in_scope=False), DB: record(DB)}
        running.watch.reload(settings(scope="other"))
        await running.live(2)
        source.stream.put(TaskExited(WEB, 9, "", 10, 0, 8), TaskPaused(DB, 2_000_000_000_000_000_000))
        source.running[DB] = replace(source.running[DB], status=TaskStatus.PAUSED)
        await running.until(lambda: running.told[-1][0] == "paused")
    frame = running.frames()[1]
    assert (frame["reason"], frame["containers"]) == ("filters_changed", 1)
    assert running.told[1:] == [("present", "snapshot", "shop/db"), ("paused", "inferred", "shop/db")]


async def test_lives_that_stay_in_scope_keep_their_identity() -> None:
    source = FakeSource()
    source.run(WEB, 10)
    async with watching(source) as running:
        await running.live()
        running.watch.reload(settings(scope="other", rules=LabelRules(include=["*"], exclude=["tier"], redact=[])))
        await running.live(2)
        rows = [each["container"] for each in running.documents if each["type"] == "present"]
    assert rows[0]["incarnation"] == rows[1]["incarnation"]


NO_TIER = LabelRules(include=["*"], exclude=["tier"], redact=[])


def labels(running: Running, type_: str) -> list[dict[str, str]]:
    return [each["container"]["labels"] for each in running.documents if each["type"] == type_]


async def test_what_is_told_between_the_reload_and_its_snapshot_has_no_label_that_is_left_out() -> None:
    source = FakeSource()
    source.run(WEB, 10)
    async with watching(source) as running:
        await running.live()
        running.watch.reload(settings(scope="other", rules=NO_TIER))
        source.records[WEB] = replace(record(WEB), labels={})  # as the source tells it under these rules
        source.before_listing = lambda _: running.until(lambda: labels(running, "exited"))
        source.stream.put(exit_(WEB, 10))
        await running.live(2)
    assert labels(running, "exited") == [{}]


async def test_what_was_read_before_the_reload_and_comes_after_it_has_no_label_that_is_left_out() -> None:
    source = FakeSource()
    source.run(WEB, 10)
    async with watching(source) as running:
        await running.live()

        async def stricter(_: str) -> None:
            source.before_listing = nothing
            running.watch.reload(settings(scope="3", rules=NO_TIER))

        source.before_listing = stricter  # the records are listed as they were read before
        running.watch.reload(settings(scope="2"))
        await running.live(3)
    assert labels(running, "present") == [{"tier": "front"}, {}, {}]


async def test_other_filters_wait_for_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    source = FakeSource()
    source.run(OTHER, 10)
    async with watching(source, namespaces=lambda name: name != "other") as running:
        audits = meanwhile(running, monkeypatch)
        await running.live()
        running.watch.reload(settings(scope="2"))
        await running.live(2)
    assert audits == []
    assert running.told == [("present", "snapshot", "other/x")]


async def test_what_was_missed_before_the_reload_has_no_label_that_is_left_out() -> None:
    source = FakeSource()
    source.run(WEB, 10)
    async with watching(source) as running:
        await running.live()
        asked, answer, engine = asyncio.Event(), asyncio.Event(), source.engine

        async def away() -> Engine:
            asked.set()
            await answer.wait()
            return await engine()

        async def breaks(_: str) -> None:
            source.before_listing, source.engine = nothing, away  # type: ignore[method-assign]
            source.stream.put(exit_(WEB, 10))
            source.stream.end(TransientError("containerd is away"))
            await asyncio.Event().wait()

        source.before_listing = breaks
        source.stream.end(TransientError("containerd is away"))
        await asked.wait()
        running.watch.reload(settings(scope="other", rules=NO_TIER))
        source.running.clear()
        answer.set()
        await running.live(2)
    assert labels(running, "exited") == [{}]


async def test_namespaces_come_and_go() -> None:
    source = FakeSource()
    for pid, key in enumerate((WEB, DB, OTHER), 10):
        source.run(key, pid)
    async with watching(source, namespaces=lambda name: name != "other") as running:
        await running.live()
        assert ids(running) == ["shop/db", "web"]
        running.watch.reload(settings(scope="2", namespaces=lambda name: name != "shop"))
        await running.live(2)
        source.stream.put(TaskExited(DB, 9, "", 11, 0, 8), TaskExited(OTHER, 9, "", 12, 3, 8))
        await running.until(lambda: running.told[-1][0] == "exited")
    assert running.frames()[1]["namespaces"] == ["default", "other"]
    assert running.told[2:] == [
        ("present", "snapshot", "web"),
        ("present", "snapshot", "other/x"),
        ("exited", "live", "other/x"),
    ], "who was there before anybody looked is no newborn, and who left is not told of"


async def test_an_answer_about_what_is_not_watched_any_more_is_of_no_use() -> None:
    source = FakeSource()
    source.run(DB, 11)
    async with watching(source) as running:
        await running.live()
        asked, answer = asyncio.Event(), asyncio.Event()

        async def slow(_: ContainerKey) -> None:
            asked.set()
            await answer.wait()

        source.before_task = slow
        source.stream.put(TaskPaused(DB, 5))
        await asked.wait()
        running.watch.reload(settings(scope="2", namespaces=lambda name: name != "shop"))
        await running.live(2)
        answer.set()
        await running.watch.snapshot()
    assert running.told == [("present", "snapshot", "shop/db")]


async def test_settings_that_change_while_containerd_is_away_hold_when_it_is_back() -> None:
    source = FakeSource()
    source.run(WEB, 10)
    async with watching(source) as running:
        await running.live()
        source.records[WEB] = replace(record(WEB), in_scope=False)
        source.stream.end(TransientError("containerd is away"))
        await running.until(lambda: not running.watch.live)
        running.watch.reload(settings(scope="other"))
        await running.live(3)
    assert [(each["reason"], each["containers"]) for each in running.frames()] == [
        ("start", 1),
        ("reconnect", 0),
        ("filters_changed", 0),
    ]
    assert len(running.told) == 1


async def test_settings_that_change_before_containerd_was_there_take_no_snapshot_of_their_own() -> None:
    source = FakeSource()
    running = Running(source)
    running.watch.reload(settings(scope="other"))
    await running.live()
    running.task.cancel()
    await asyncio.wait([running.task])
    assert [each["reason"] for each in running.frames()] == ["start"]


async def test_what_does_not_concern_filters_takes_no_snapshot() -> None:
    async with watching(FakeSource()) as running:
        await running.live()
        running.watch.reload(settings(snapshot_interval=60))
        running.watch.requests.ask("on_demand")
        await running.live(2)
    assert [each["reason"] for each in running.frames()] == ["start", "on_demand"]


async def test_extras_are_told_from_the_reload_on() -> None:
    source = FakeSource()
    async with watching(source) as running:
        await running.live()
        running.watch.reload(settings(scope="other", extras=["renamed"]))
        await running.live(2)
        source.run(WEB, 10)
        source.stream.put(*start(WEB, 10))
        await running.until(lambda: running.told)
        source.records[WEB] = record(WEB, "shop-web-1")
        source.stream.put(ContainerUpdated(WEB, 7, "busybox", {}))
        await running.until(lambda: len(running.told) > 1)
    assert running.told == [("started", "live", "web"), ("renamed", "live", "web")]
    assert running.documents[-1]["container"]["name"] == "shop-web-1"


# --- snapshots on request ---


async def test_a_snapshot_on_request_is_told_when_it_is_written_down() -> None:
    source = FakeSource()
    source.run(WEB, 10)
    async with watching(source) as running:
        await running.live()
        taken = await asyncio.gather(running.watch.snapshot(), running.watch.snapshot())
        (frame,) = running.frames()[1:]
    assert frame["reason"] == "on_demand"
    assert set(taken) == {SnapshotTaken(frame["id"], 1)}


async def test_a_snapshot_that_a_broken_connection_kept_is_taken_on_the_next() -> None:
    source = FakeSource()
    async with watching(source) as running:
        await running.live()

        async def breaks(_: object = None) -> list[str]:
            source.stream.end(TransientError("containerd is away"))
            await asyncio.Event().wait()
            return []

        usual, source.namespaces = source.namespaces, breaks  # type: ignore[method-assign]
        asked = running.watch.requests.ask("on_demand")
        await running.until(lambda: not running.watch.live)
        source.namespaces = usual  # type: ignore[method-assign]
        taken = await asked
    assert [each["reason"] for each in running.frames()] == ["start", "reconnect", "on_demand"]
    assert taken.id == running.frames()[-1]["id"]


async def test_no_snapshot_without_containerd() -> None:
    source = FakeSource()
    source.marks_come_back = False
    async with watching(source) as running:
        with pytest.raises(TransientError, match="containerd is not connected"):
            await running.watch.snapshot()


async def test_the_reason_that_matters_most_is_told_and_a_caller_may_have_gone() -> None:
    requests = Requests()
    requests.ask("on_demand").cancel()
    waiting = requests.ask("filters_changed")
    requests.ask("overflow")
    asked = await requests.wait(1)
    assert asked is not None
    assert asked.reason == "filters_changed"
    assert await requests.wait(0) is None
    requests.done(asked, SnapshotTaken("1-1", 3))
    assert waiting.result().containers == 3


# --- what is proven ---


async def test_what_is_proven_is_what_is_written_down() -> None:
    source = FakeSource()
    async with watching(source, mark_interval=1) as running:
        assert running.watch.proof is None
        await running.live()
        await running.until(lambda: running.watch.proof)
        first = running.watch.proof
        assert first is not None
        assert first.epoch == running.documents[0]["epoch"]
        await running.until(lambda: running.watch.proof != first)
        source.marks_come_back = False
        source.stream.end(TransientError("containerd is away"))
        await running.until(lambda: not running.watch.live)
        stands = running.watch.proof
        for _ in range(100):
            await asyncio.sleep(0)
        assert running.watch.proof == stands
