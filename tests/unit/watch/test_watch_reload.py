"""Other settings while the watch runs, and snapshots on request."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from bridge.core.containerd_model import ContainerKey, ContainerUpdated, Engine, TaskExited, TaskPaused, TaskStatus
from bridge.core.errors import TransientError
from bridge.core.labels import LabelRules
from bridge.watch.snapshot_requests import SnapshotRequests, SnapshotResult
from tests.unit.watch.fakes import FakeEngineClient, make_metadata, no_op, settings
from tests.unit.watch.test_watch import DB, WEB, RunningWatch, exit_event, meanwhile, running_watch, start_events

OTHER = ContainerKey("other", "x")


def ids(running: RunningWatch, type_: str = "present", snapshot: int = 0) -> list[str]:
    """Whom the rows of a snapshot name."""
    documents = running.documents
    begins = [place for place, each in enumerate(documents) if each["type"] == "snapshot_started"][snapshot]
    return sorted(each["id"] for each in documents[begins:] if each["type"] == type_)


async def test_filter_change_takes_snapshot_of_included_containers() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    source.run(DB, 11)
    source.metadata[DB] = replace(make_metadata(DB), in_scope=False)
    async with running_watch(source) as running:
        await running.wait_synced()
        assert ids(running) == ["web"]
        source.metadata = {WEB: replace(make_metadata(WEB), in_scope=False), DB: make_metadata(DB)}
        running.watch.reload(settings(filter_fingerprint="other"))
        await running.wait_synced(2)
        source.stream.put(TaskExited(WEB, 9, "", 10, 0, 8), TaskPaused(DB, 2_000_000_000_000_000_000))
        source.running[DB] = replace(source.running[DB], status=TaskStatus.PAUSED)
        await running.eventually(lambda: running.transitions[-1][0] == "paused")
    frame = running.snapshots()[1]
    assert (frame["reason"], frame["containers"]) == ("filters_changed", 1)
    assert running.transitions[1:] == [("present", "snapshot", "shop/db"), ("paused", "inferred", "shop/db")]


async def test_filter_change_keeps_incarnations() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    async with running_watch(source) as running:
        await running.wait_synced()
        running.watch.reload(
            settings(filter_fingerprint="other", label_rules=LabelRules(include=["*"], exclude=["tier"], redact=[]))
        )
        await running.wait_synced(2)
        rows = [each["container"] for each in running.documents if each["type"] == "present"]
    assert rows[0]["incarnation"] == rows[1]["incarnation"]


NO_TIER = LabelRules(include=["*"], exclude=["tier"], redact=[])


def labels(running: RunningWatch, type_: str) -> list[dict[str, str]]:
    return [each["container"]["labels"] for each in running.documents if each["type"] == type_]


async def test_event_after_reload_has_no_newly_excluded_label() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    async with running_watch(source) as running:
        await running.wait_synced()
        running.watch.reload(settings(filter_fingerprint="other", label_rules=NO_TIER))
        source.metadata[WEB] = replace(make_metadata(WEB), labels={})  # as the source tells it under these rules
        source.before_listing = lambda _: running.eventually(lambda: labels(running, "exited"))
        source.stream.put(exit_event(WEB, 10))
        await running.wait_synced(2)
    assert labels(running, "exited") == [{}]


async def test_metadata_read_before_reload_has_no_excluded_label() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    async with running_watch(source) as running:
        await running.wait_synced()

        async def stricter(_: str) -> None:
            source.before_listing = no_op
            running.watch.reload(settings(filter_fingerprint="3", label_rules=NO_TIER))

        source.before_listing = stricter  # the records are listed as they were read before
        running.watch.reload(settings(filter_fingerprint="2"))
        await running.wait_synced(3)
    assert labels(running, "present") == [{"tier": "front"}, {}, {}]


async def test_filter_change_applies_without_waiting_for_event(monkeypatch: pytest.MonkeyPatch) -> None:
    source = FakeEngineClient()
    source.run(OTHER, 10)
    async with running_watch(source, namespace_filter=lambda name: name != "other") as running:
        audits = meanwhile(running, monkeypatch)
        await running.wait_synced()
        running.watch.reload(settings(filter_fingerprint="2"))
        await running.wait_synced(2)
    assert audits == []
    assert running.transitions == [("present", "snapshot", "other/x")]


async def test_transition_missed_before_reload_has_no_excluded_label() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    async with running_watch(source) as running:
        await running.wait_synced()
        asked, answer, engine = asyncio.Event(), asyncio.Event(), source.engine

        async def away() -> Engine:
            asked.set()
            await answer.wait()
            return await engine()

        async def breaks(_: str) -> None:
            source.before_listing, source.engine = no_op, away  # type: ignore[method-assign]
            source.stream.put(exit_event(WEB, 10))
            source.stream.end(TransientError("containerd is away"))
            await asyncio.Event().wait()

        source.before_listing = breaks
        source.stream.end(TransientError("containerd is away"))
        await asked.wait()
        running.watch.reload(settings(filter_fingerprint="other", label_rules=NO_TIER))
        source.running.clear()
        answer.set()
        await running.wait_synced(2)
    assert labels(running, "exited") == [{}]


async def test_namespace_filter_change_adds_and_removes_namespaces() -> None:
    source = FakeEngineClient()
    for pid, key in enumerate((WEB, DB, OTHER), 10):
        source.run(key, pid)
    async with running_watch(source, namespace_filter=lambda name: name != "other") as running:
        await running.wait_synced()
        assert ids(running) == ["shop/db", "web"]
        running.watch.reload(settings(filter_fingerprint="2", namespace_filter=lambda name: name != "shop"))
        await running.wait_synced(2)
        source.stream.put(TaskExited(DB, 9, "", 11, 0, 8), TaskExited(OTHER, 9, "", 12, 3, 8))
        await running.eventually(lambda: running.transitions[-1][0] == "exited")
    assert running.snapshots()[1]["namespaces"] == ["default", "other"]
    assert running.transitions[2:] == [
        ("present", "snapshot", "web"),
        ("present", "snapshot", "other/x"),
        ("exited", "live", "other/x"),
    ], "who was there before anybody looked is no newborn, and who left is not told of"


async def test_query_result_ignored_when_namespace_is_excluded() -> None:
    source = FakeEngineClient()
    source.run(DB, 11)
    async with running_watch(source) as running:
        await running.wait_synced()
        asked, answer = asyncio.Event(), asyncio.Event()

        async def slow(_: ContainerKey) -> None:
            asked.set()
            await answer.wait()

        source.before_task = slow
        source.stream.put(TaskPaused(DB, 5))
        await asked.wait()
        running.watch.reload(settings(filter_fingerprint="2", namespace_filter=lambda name: name != "shop"))
        await running.wait_synced(2)
        answer.set()
        await running.watch.take_snapshot()
    assert running.transitions == [("present", "snapshot", "shop/db")]


async def test_filter_change_applies_on_reconnect() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    async with running_watch(source) as running:
        await running.wait_synced()
        source.metadata[WEB] = replace(make_metadata(WEB), in_scope=False)
        source.stream.end(TransientError("containerd is away"))
        await running.eventually(lambda: not running.watch.synced)
        running.watch.reload(settings(filter_fingerprint="other"))
        await running.wait_synced(3)
    assert [(each["reason"], each["containers"]) for each in running.snapshots()] == [
        ("start", 1),
        ("reconnect", 0),
        ("filters_changed", 0),
    ]
    assert len(running.transitions) == 1


async def test_filter_change_before_first_connection_adds_no_snapshot() -> None:
    source = FakeEngineClient()
    running = RunningWatch(source)
    running.watch.reload(settings(filter_fingerprint="other"))
    await running.wait_synced()
    running.task.cancel()
    await asyncio.wait([running.task])
    assert [each["reason"] for each in running.snapshots()] == ["start"]


async def test_reload_takes_no_snapshot_when_filters_are_unchanged() -> None:
    async with running_watch(FakeEngineClient()) as running:
        await running.wait_synced()
        running.watch.reload(settings(snapshot_interval=60))
        running.watch.requests.request("on_demand")
        await running.wait_synced(2)
    assert [each["reason"] for each in running.snapshots()] == ["start", "on_demand"]


async def test_additional_events_are_published_after_reload() -> None:
    source = FakeEngineClient()
    async with running_watch(source) as running:
        await running.wait_synced()
        running.watch.reload(settings(filter_fingerprint="other", additional_events=["renamed"]))
        await running.wait_synced(2)
        source.run(WEB, 10)
        source.stream.put(*start_events(WEB, 10))
        await running.eventually(lambda: running.transitions)
        source.metadata[WEB] = make_metadata(WEB, "shop-web-1")
        source.stream.put(ContainerUpdated(WEB, 7, "busybox", {}))
        await running.eventually(lambda: len(running.transitions) > 1)
    assert running.transitions == [("started", "live", "web"), ("renamed", "live", "web")]
    assert running.documents[-1]["container"]["name"] == "shop-web-1"


# --- snapshots on request ---


async def test_requested_snapshot_returns_after_append() -> None:
    source = FakeEngineClient()
    source.run(WEB, 10)
    async with running_watch(source) as running:
        await running.wait_synced()
        taken = await asyncio.gather(running.watch.take_snapshot(), running.watch.take_snapshot())
        (frame,) = running.snapshots()[1:]
    assert frame["reason"] == "on_demand"
    assert set(taken) == {SnapshotResult(frame["id"], 1)}


async def test_requested_snapshot_is_taken_after_reconnect() -> None:
    source = FakeEngineClient()
    async with running_watch(source) as running:
        await running.wait_synced()

        async def breaks(_: object = None) -> list[str]:
            source.stream.end(TransientError("containerd is away"))
            await asyncio.Event().wait()
            return []

        usual, source.namespaces = source.namespaces, breaks  # type: ignore[method-assign]
        asked = running.watch.requests.request("on_demand")
        await running.eventually(lambda: not running.watch.synced)
        source.namespaces = usual  # type: ignore[method-assign]
        taken = await asked
    assert [each["reason"] for each in running.snapshots()] == ["start", "reconnect", "on_demand"]
    assert taken.id == running.snapshots()[-1]["id"]


async def test_requested_snapshot_fails_when_containerd_is_down() -> None:
    source = FakeEngineClient()
    source.markers_return = False
    async with running_watch(source) as running:
        with pytest.raises(TransientError, match="containerd"):
            await running.watch.take_snapshot()


async def test_snapshot_request_keeps_most_important_reason() -> None:
    requests = SnapshotRequests()
    requests.request("on_demand").cancel()
    waiting = requests.request("filters_changed")
    requests.request("overflow")
    asked = await requests.wait(1)
    assert asked is not None
    assert asked.reason == "filters_changed"
    assert await requests.wait(0) is None
    requests.complete(asked, SnapshotResult("1-1", 3))
    assert waiting.result().containers == 3


# --- what is proven ---


async def test_watermark_advances_only_after_append() -> None:
    source = FakeEngineClient()
    async with running_watch(source, marker_interval=1) as running:
        assert running.watch.watermark is None
        await running.wait_synced()
        await running.eventually(lambda: running.watch.watermark)
        first = running.watch.watermark
        assert first is not None
        assert first.epoch == running.documents[0]["epoch"]
        await running.eventually(lambda: running.watch.watermark != first)
        source.markers_return = False
        source.stream.end(TransientError("containerd is away"))
        await running.eventually(lambda: not running.watch.synced)
        stands = running.watch.watermark
        for _ in range(100):
            await asyncio.sleep(0)
        assert running.watch.watermark == stands
