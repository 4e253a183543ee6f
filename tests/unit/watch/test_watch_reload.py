"""Reloaded settings, snapshots on request, and the watermark."""

from __future__ import annotations

import asyncio

import pytest

from bridge.core.containerd_model import ContainerKey, ContainerUpdated, TaskExited, TaskPaused, TaskStatus
from bridge.core.errors import TransientError
from bridge.core.label_rules import LabelRules
from bridge.watch.audit import EVENT_DELAY_SECONDS
from bridge.watch.snapshot_requests import SnapshotRequests, SnapshotResult
from tests.unit.watch.fakes import (
    DB,
    WEB,
    HookedClient,
    RunningWatch,
    exit_event,
    running_watch,
    settings,
    start_events,
    synced_watch,
)
from tests.virtual_time import VirtualClock

OTHER = ContainerKey("other", "x")


def ids(running: RunningWatch, type_: str = "present", snapshot: int = 0) -> list[str]:
    """Return the ids of the records of a type since the start of a snapshot, by default those of its containers."""
    documents = running.documents
    start = [index for index, each in enumerate(documents) if each["type"] == "snapshot_started"][snapshot]
    return sorted(each["id"] for each in documents[start:] if each["type"] == type_)


async def test_filter_change_takes_snapshot_of_included_containers() -> None:
    client = HookedClient({WEB: 10, DB: 11})
    client.out_of_scope = {DB.id}
    async with synced_watch(client) as running:
        assert ids(running) == ["web"]
        client.out_of_scope = {WEB.id}
        running.watch.reload(settings(filter_fingerprint="other"))
        await running.wait_synced(2)
        client.stream.put(TaskExited(WEB, 9, "", 10, 0, 8), TaskPaused(DB, 2_000_000_000_000_000_000))
        client.state.task(DB).status = TaskStatus.PAUSED
        await running.eventually(lambda: running.transitions[-1][0] == "paused")
    snapshot = running.snapshots()[1]
    assert (snapshot["reason"], snapshot["containers"]) == ("filters_changed", 1)
    assert running.transitions[1:] == [("present", "snapshot", "shop/db"), ("paused", "inferred", "shop/db")]


async def test_filter_change_in_pause_after_losses_publishes_no_start() -> None:
    """The pause ends with the change, and the snapshot is one of the new filters."""
    client = HookedClient()
    client.run(OTHER, 12)
    async with running_watch(client, namespace_filter=lambda name: name == "default") as running:
        await running.wait_synced()
        for number in range(2):
            running.watch.request_snapshot("overflow")
            await running.clock.sleep(3 * number + 1)
        running.watch.reload(settings(filter_fingerprint="other"))
        await running.eventually(lambda: running.snapshots()[-1]["reason"] == "filters_changed")
    assert running.transitions == [("present", "snapshot", "other/x")]


async def test_filter_change_keeps_incarnations() -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:
        running.watch.reload(
            settings(filter_fingerprint="other", label_rules=LabelRules(include=["*"], exclude=["tier"], redact=[]))
        )
        await running.wait_synced(2)
        containers = [each["container"] for each in running.documents if each["type"] == "present"]
    assert containers[0]["incarnation"] == containers[1]["incarnation"]


NO_TIER = LabelRules(include=["*"], exclude=["tier"], redact=[])


def labels(running: RunningWatch, type_: str) -> list[dict[str, str]]:
    return [each["container"]["labels"] for each in running.documents if each["type"] == type_]


async def test_event_after_reload_has_no_newly_excluded_label() -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:
        running.watch.reload(settings(filter_fingerprint="other", label_rules=NO_TIER))
        client.rules = NO_TIER
        client.hooks["containers"] = lambda _: running.eventually(lambda: labels(running, "exited"))
        client.stream.put(exit_event(WEB, 10))
        await running.wait_synced(2)
    assert labels(running, "exited") == [{}]


async def test_metadata_read_before_reload_has_no_excluded_label() -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:

        async def reload(_: str) -> None:
            client.hooks.clear()
            running.watch.reload(settings(filter_fingerprint="3", label_rules=NO_TIER))

        client.hooks["containers"] = reload  # the listing returns metadata under the previous rules
        running.watch.reload(settings(filter_fingerprint="2"))
        await running.wait_synced(3)
    assert labels(running, "present") == [{"tier": "front"}, {}, {}]


async def test_reload_during_synchronization_drops_excluded_label() -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:

        async def reload(_: str) -> None:
            client.hooks.clear()
            running.watch.reload(settings(filter_fingerprint="3", label_rules=NO_TIER))

        client.stream.end()
        await running.eventually(lambda: not running.watch.synced)
        running.watch.reload(settings(filter_fingerprint="2"))
        client.hooks["containers"] = reload  # the listing returns metadata under the previous rules
        await running.wait_synced(3)
    assert labels(running, "present")[1:] == [{}] * (len(labels(running, "present")) - 1)


async def test_metadata_of_replaced_containerd_has_no_excluded_label() -> None:
    """The metadata was read under the previous rules, and waits for the labels of its pod."""
    client, pod = HookedClient(), ContainerKey("k8s.io", "pod")
    client.state.has_cri = True
    client.state.create_unseen(WEB)
    labels_of_pod = {**client.state.container(WEB).labels, "tier": "front"}
    reading, reached = asyncio.Event(), asyncio.Event()

    async def wait(_: object) -> None:
        reading.set()
        await reached.wait()

    async with synced_watch(client) as running:
        client.hooks["pod_labels"] = wait
        client.state.run(pod, labels_of_pod)
        await reading.wait()
        running.watch.reload(settings(filter_fingerprint="other", label_rules=NO_TIER))
        client.rules = NO_TIER
        client.containerd.id = "engine-2"
        client.stream.end()
        await asyncio.sleep(0.5)
        reached.set()
        client.state.exit(pod, 0)
        await running.eventually(lambda: labels(running, "exited"))
        await asyncio.sleep(5)
    published = labels(running, "started") + labels(running, "present") + labels(running, "exited")
    assert [each for each in published if each and "tier" in each] == []
    assert len(published) == 4


async def test_filter_change_applies_without_waiting_for_event() -> None:
    client = HookedClient({OTHER: 10})
    async with synced_watch(client, namespace_filter=lambda name: name != "other") as running:
        running.watch.reload(settings(filter_fingerprint="2"))
        await running.wait_synced(2)
    assert EVENT_DELAY_SECONDS not in running.clock.slept
    assert running.transitions == [("present", "snapshot", "other/x")]


async def test_transition_missed_before_reload_has_no_excluded_label() -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:
        reconnecting, reachable = asyncio.Event(), asyncio.Event()

        async def hang() -> None:
            reconnecting.set()
            await reachable.wait()

        async def disconnect(_: str) -> None:
            client.hooks = {"engine": hang}
            client.stream.put(exit_event(WEB, 10))
            client.stream.end()
            await asyncio.Event().wait()

        client.hooks["containers"] = disconnect
        client.stream.end()
        await reconnecting.wait()
        running.watch.reload(settings(filter_fingerprint="other", label_rules=NO_TIER))
        client.remove_task(WEB)
        reachable.set()
        await running.wait_synced(2)
    assert labels(running, "exited") == [{}]


async def test_namespace_filter_change_adds_and_removes_namespaces() -> None:
    client = HookedClient()
    for pid, key in enumerate((WEB, DB, OTHER), 10):
        client.run(key, pid)
    async with synced_watch(client, namespace_filter=lambda name: name != "other") as running:
        assert ids(running) == ["shop/db", "web"]
        running.watch.reload(settings(filter_fingerprint="2", namespace_filter=lambda name: name != "shop"))
        await running.wait_synced(2)
        client.stream.put(TaskExited(DB, 9, "", 11, 0, 8), TaskExited(OTHER, 9, "", 12, 3, 8))
        await running.eventually(lambda: running.transitions[-1][0] == "exited")
    assert running.snapshots()[1]["namespaces"] == ["default", "other"]
    assert running.transitions[2:] == [
        ("present", "snapshot", "web"),
        ("present", "snapshot", "other/x"),
        ("exited", "live", "other/x"),
    ], "newly included containers are preexisting, and excluded ones are not published"


async def test_query_result_ignored_when_namespace_is_excluded() -> None:
    client = HookedClient({DB: 11})
    async with synced_watch(client) as running:
        querying, released = asyncio.Event(), asyncio.Event()

        async def hang(_: ContainerKey) -> None:
            querying.set()
            await released.wait()

        client.hooks["task"] = hang
        client.stream.put(TaskPaused(DB, 5))
        await querying.wait()
        running.watch.reload(settings(filter_fingerprint="2", namespace_filter=lambda name: name != "shop"))
        await running.wait_synced(2)
        released.set()
        await running.watch.take_snapshot()
    assert running.transitions == [("present", "snapshot", "shop/db")]


async def test_filter_change_applies_on_reconnect() -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:
        client.out_of_scope = {WEB.id}
        client.stream.end()
        await running.eventually(lambda: not running.watch.synced)
        running.watch.reload(settings(filter_fingerprint="other"))
        await running.wait_synced(3)
    assert [(each["reason"], each["containers"]) for each in running.snapshots()] == [
        ("start", 1),
        ("reconnect", 0),
        ("filters_changed", 0),
    ]
    assert len(running.transitions) == 1


async def test_filter_change_counts_as_changed_until_applied() -> None:
    """The process ends before it has applied the new filters, and the next one has the old filters again."""
    client = HookedClient({WEB: 10})
    async with synced_watch(client, filter_fingerprint="1") as running:

        async def reload(_: str) -> None:
            client.hooks["containers"] = hang_when_synced
            client.out_of_scope = {DB.id}  # from now on, metadata is filtered by the new filters
            running.watch.reload(settings(filter_fingerprint="2"))

        async def hang_when_synced(_: str) -> None:
            if running.watch.synced:
                await asyncio.Event().wait()

        client.run(DB, 11)
        client.hooks["containers"] = reload
        client.stream.end()
        await running.wait_synced(2)
        checkpoint = dict(running.outbox.checkpoint)
    assert ids(running, snapshot=1) == ["web"]
    client.hooks.clear()
    client.out_of_scope.clear()
    async with running_watch(client, checkpoint, filter_fingerprint="1") as restarted:
        await restarted.wait_synced()
        assert ids(restarted) == ["shop/db", "web"]


async def test_filter_change_before_first_connection_adds_no_snapshot() -> None:
    client = HookedClient()
    running = RunningWatch(client)
    running.watch.reload(settings(filter_fingerprint="other"))
    await running.wait_synced()
    running.task.cancel()
    await asyncio.wait([running.task])
    assert [each["reason"] for each in running.snapshots()] == ["start"]


async def test_reload_takes_no_snapshot_when_filters_are_unchanged() -> None:
    async with synced_watch(HookedClient()) as running:
        running.watch.reload(settings(snapshot_interval=60))
        running.watch.request_snapshot("on_demand")
        await running.wait_synced(2)
    assert [each["reason"] for each in running.snapshots()] == ["start", "on_demand"]


async def test_additional_events_are_published_after_reload() -> None:
    client = HookedClient()
    async with synced_watch(client) as running:
        running.watch.reload(settings(filter_fingerprint="other", additional_events=["renamed"]))
        await running.wait_synced(2)
        client.run(WEB, 10)
        client.stream.put(*start_events(WEB, 10))
        await running.eventually(lambda: running.transitions)
        client.add(WEB, "shop-web-1")
        client.stream.put(ContainerUpdated(WEB, 7, "busybox", {}))
        await running.eventually(lambda: len(running.transitions) > 1)
    assert running.transitions == [("started", "live", "web"), ("renamed", "live", "web")]
    assert running.documents[-1]["container"]["name"] == "shop-web-1"


# --- snapshots on request ---


async def test_requested_snapshot_returns_after_append() -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:
        results = await asyncio.gather(running.watch.take_snapshot(), running.watch.take_snapshot())
        (snapshot,) = running.snapshots()[1:]
    assert snapshot["reason"] == "on_demand"
    assert set(results) == {SnapshotResult(snapshot["id"], 1)}


async def test_requested_snapshot_is_taken_after_reconnect() -> None:
    client = HookedClient()
    async with synced_watch(client) as running:

        async def disconnect() -> None:
            client.stream.end()
            await asyncio.Event().wait()

        client.hooks["namespaces"] = disconnect
        snapshot = asyncio.create_task(running.watch.take_snapshot())
        await running.eventually(lambda: not running.watch.synced)
        client.hooks.clear()
        result = await snapshot
    assert [each["reason"] for each in running.snapshots()] == ["start", "reconnect", "on_demand"]
    assert result.id == running.snapshots()[-1]["id"]


async def test_requested_snapshot_fails_when_containerd_is_down() -> None:
    client = HookedClient()
    client.faults.drop_published = True
    async with running_watch(client) as running:
        with pytest.raises(TransientError, match="containerd"):
            await running.watch.take_snapshot()


async def test_snapshot_request_keeps_most_important_reason() -> None:
    requests = SnapshotRequests(VirtualClock())
    requests.request("on_demand").cancel()
    future = requests.request("filters_changed")
    requests.request("overflow")
    request = await requests.wait(1)
    assert request is not None
    assert request.reason == "filters_changed"
    assert await requests.wait(0) is None
    request.result = SnapshotResult("1-1", 3)
    requests.complete_published()
    assert future.result().containers == 3


# --- the watermark ---


async def test_watermark_advances_only_after_append() -> None:
    client = HookedClient()
    async with running_watch(client, marker_interval=1) as running:
        assert running.watch.watermark is None
        await running.wait_synced()
        await running.eventually(lambda: running.watch.watermark)
        first = running.watch.watermark
        assert first is not None
        assert first.epoch == running.documents[0]["epoch"]
        await running.eventually(lambda: running.watch.watermark != first)
        client.faults.drop_published = True
        client.stream.end()
        await running.eventually(lambda: not running.watch.synced)
        last = running.watch.watermark
        await asyncio.sleep(60)
        assert running.watch.watermark == last
