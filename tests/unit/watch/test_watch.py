"""The container watch against a fake containerd: lost, late and contradictory events, and failures."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.containerd.http2 import StatusCode
from bridge.core.checkpoint import EXITS_KEY
from bridge.core.containerd_model import (
    ContainerDeleted,
    ContainerKey,
    ContainerUpdated,
    Ignored,
    Marker,
    TaskCreated,
    TaskPaused,
    TaskStarted,
    TaskStatus,
    Undecodable,
)
from bridge.core.errors import FatalError, StreamOverflowError, TransientError
from bridge.core.exit_counts import STATUSES
from bridge.core.time import SECOND
from bridge.watch.audit import EVENT_DELAY_SECONDS
from tests.simulator.state import SimulatedRpcError
from tests.unit.watch.fakes import (
    DB,
    WEB,
    HookedClient,
    exit_event,
    running_watch,
    settings,
    start_events,
    synced_watch,
)

BUSY = SimulatedRpcError(StatusCode.INTERNAL, "busy")


async def test_first_snapshot_contains_running_containers() -> None:
    client = HookedClient({WEB: 10})
    client.run(DB, 11, TaskStatus.PAUSED)
    client.run(ContainerKey("moby", "x"), 12)
    client.run(ContainerKey("default", "stopped"), 13, TaskStatus.STOPPED)
    async with running_watch(client) as running:
        await running.wait_synced()
    assert sorted(running.transitions) == [("present", "snapshot", "shop/db"), ("present", "snapshot", "web")]
    started, completed = running.documents[0]["snapshot"], running.snapshots()[0]
    assert started == completed
    assert (started["reason"], started["since"], started["containers"]) == ("start", None, 2)
    assert started["namespaces"] == ["default", "shop"]


async def test_fault_05_exit_between_subscription_and_listing() -> None:
    client = HookedClient({WEB: 10})

    async def exit_web(_: str) -> None:
        client.run(WEB, 10, TaskStatus.STOPPED)
        client.stream.put(exit_event(WEB, 10, 3))

    client.hooks["containers"] = exit_web
    async with running_watch(client) as running:
        await running.wait_synced()
    assert [each[0] for each in running.transitions] == ["started", "exited"]
    assert running.documents[2]["exit"]["status"] == 3
    assert running.snapshots()[0]["containers"] == 0


async def test_fault_06_listing_contradicts_events() -> None:
    client = HookedClient({WEB: 10})

    async def publish_pause(_: str) -> None:
        client.stream.put(TaskPaused(WEB, 5))

    async def set_paused(key: ContainerKey) -> None:
        client.run(key, 10, TaskStatus.PAUSED)

    client.hooks = {"containers": publish_pause, "task": set_paused}
    async with running_watch(client) as running:
        await running.wait_synced()
    assert running.transitions == [("present", "snapshot", "web")]
    assert running.documents[1]["container"]["paused"] is True


async def test_stale_query_result_is_repeated_when_exit_arrives() -> None:
    """An exit event that arrives during the query takes precedence, because it has the exit status."""
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:

        async def exit_web(_: ContainerKey) -> None:
            if client.calls["task"] == 1:
                client.stream.put(exit_event(WEB, 10, 7))
                for _turn in range(20):
                    await asyncio.sleep(0)
                client.remove_task(WEB)

        client.hooks["task"] = exit_web
        pause = TaskPaused(WEB, running.clock.now().wall)
        client.stream.put(pause, pause)
        await running.eventually(lambda: len(running.transitions) == 3)
    assert running.transitions[1:] == [("paused", "live", "web"), ("exited", "live", "web")]
    assert running.documents[-1]["exit"] == {"status": 7, "at": "1970-01-01T00:00:00.000000008Z", "oom": None}


async def test_held_exit_is_published_once_after_crash() -> None:
    """The exit waits for an OOM event while the start of another container is persisted; then the process is killed."""
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:
        client.remove_task(WEB)  # the task is deleted: its status is known only from the event
        client.run(DB, 11)
        client.stream.put(exit_event(WEB, 10, 137), *start_events(DB, 11))
        await running.eventually(lambda: len(running.transitions) == 2)
        before, checkpoint = running.transitions, dict(running.outbox.checkpoint)
    assert before[1:] == [("started", "live", "shop/db")]
    present = ("present", "snapshot", "shop/db")
    for expected in ([("exited", "live", "web"), present], [present]):
        async with running_watch(client, checkpoint) as restarted:
            await restarted.wait_synced()
            checkpoint = dict(restarted.outbox.checkpoint)
        assert restarted.transitions == expected
    assert running.transitions[2:] == [("exited", "live", "web")]  # published at an orderly shutdown


async def test_restart_in_gap_is_published_as_two_incarnations() -> None:
    client = HookedClient({WEB: 10, DB: 11})
    async with synced_watch(client) as running:
        client.run(WEB, 20)
        client.remove_task(DB)
        client.stream.end()
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


async def test_fault_07_listing_of_namespace_fails() -> None:
    client = HookedClient({WEB: 10, DB: 11})
    async with synced_watch(client) as running:

        async def fail(namespace: str) -> None:
            if namespace == "shop":
                raise TransientError("busy")

        client.hooks["containers"] = fail
        client.remove_task(DB)
        client.stream.end()
        await running.wait_synced(2)
    snapshot = running.snapshots()[1]
    assert (snapshot["failed"], snapshot["partial"]) == (["shop"], True)
    assert ("exited", "inferred", "shop/db") not in running.transitions
    assert running.transitions.count(("present", "snapshot", "shop/db")) == 2


async def test_failed_namespace_is_synchronized_when_it_can_be_listed() -> None:
    client = HookedClient({WEB: 10, DB: 11})
    async with synced_watch(client, first_audit_delay=30) as running:
        client.faults.errors["Tasks.List", "shop"] = BUSY
        client.state.container(DB).labels["nerdctl/name"] = "new-name"
        client.stream.end()
        await running.wait_synced(2)
        client.faults.errors.clear()
        await running.wait_synced(3)
        await asyncio.sleep(700)
    assert [(each["reason"], each["failed"]) for each in running.snapshots()] == [
        ("start", []),
        ("reconnect", ["shop"]),
        ("audit", []),
    ]
    names = [each["container"]["name"] for each in running.documents if each["id"] == "shop/db"]
    assert names == ["db", "db", "new-name"]


async def test_audit_lists_again_after_it_has_synchronized() -> None:
    client = HookedClient({WEB: 10, DB: 11})
    client.faults.errors["Tasks.List", "shop"] = BUSY

    async def exit_web() -> None:
        if client.faults.errors:
            return
        client.hooks.pop("publish_marker")
        client.run(WEB, 10, TaskStatus.STOPPED)
        client.stream.put(exit_event(WEB, 10))

    async with synced_watch(client, first_audit_delay=30) as running:
        client.hooks["publish_marker"] = exit_web  # after the audit's first listing, in which the task is running
        client.faults.errors.clear()
        await running.wait_synced(2)
        await asyncio.sleep(60)
    assert running.transitions[1:3] == [("exited", "live", "web"), ("present", "snapshot", "shop/db")]
    assert client.calls["task"] == 0


async def test_snapshot_after_loss_follows_for_failed_namespace() -> None:
    client = HookedClient({WEB: 10, DB: 11})
    async with synced_watch(client, first_audit_delay=30, audit_interval=300) as running:
        client.faults.errors["Tasks.List", "shop"] = BUSY
        running.watch.request_snapshot("overflow")
        await running.wait_synced(2)
        client.faults.errors.clear()
        await running.wait_synced(3)
        await asyncio.sleep(700)
    assert [(each["reason"], each["failed"]) for each in running.snapshots()] == [
        ("start", []),
        ("overflow", ["shop"]),
        ("audit", []),
    ]


async def test_failed_namespace_gets_changed_filters_later() -> None:
    client = HookedClient({WEB: 10, DB: 11})
    async with synced_watch(client, first_audit_delay=30) as running:
        client.faults.errors["Tasks.List", "shop"] = BUSY
        client.out_of_scope = {DB.id}
        running.watch.reload(settings(filter_fingerprint="other"))
        await running.wait_synced(2)
        client.faults.errors.clear()
        await running.wait_synced(3)
    assert [(each["reason"], each["containers"]) for each in running.snapshots()] == [
        ("start", 2),
        ("filters_changed", 2),
        ("filters_changed", 1),
    ]


async def test_failed_namespace_gets_changed_filters_after_restart() -> None:
    client = HookedClient({WEB: 10, DB: 11})
    async with synced_watch(client) as running:
        client.faults.errors["Tasks.List", "shop"] = BUSY
        client.out_of_scope = {DB.id}
        running.watch.reload(settings(filter_fingerprint="other"))
        await running.wait_synced(2)
    client.faults.errors.clear()
    async with running_watch(client, dict(running.outbox.checkpoint), filter_fingerprint="other") as restarted:
        await restarted.wait_synced()
    assert [each["containers"] for each in restarted.snapshots()] == [1]


async def test_audit_publishes_lost_events() -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client, first_audit_delay=30, audit_interval=300) as running:
        client.run(WEB, 20)
        client.run(DB, 30)
        await running.wait_synced(2)
        await asyncio.sleep(700)  # two more audits without differences
    assert [snapshot["reason"] for snapshot in running.snapshots()] == ["start", "audit"]
    inferred = [(type_, id_) for type_, origin, id_ in running.transitions if origin == "inferred"]
    assert sorted(inferred) == [("exited", "web"), ("started", "shop/db"), ("started", "web")]
    assert running.documents[-2]["container"]["labels"] == {"tier": "front"}


async def test_watch_reconnects_within_two_seconds_of_containerd_start() -> None:
    """The bridge must be synced within 5 s of containerd's return."""
    client = HookedClient()

    async def fail_first() -> None:
        if client.calls["engine"] <= 50:
            raise TransientError("containerd is down")

    client.hooks["engine"] = fail_first
    async with synced_watch(client) as running:
        assert 1 < max(running.clock.slept[:50]) <= 2


async def test_audit_waits_for_events_still_in_flight() -> None:
    client = HookedClient()
    async with synced_watch(client, first_audit_delay=30, audit_interval=300) as running:
        client.run(DB, 30)
        await asyncio.sleep(31)
        client.stream.put(*start_events(DB, 30))
        await running.eventually(lambda: running.transitions)
        await asyncio.sleep(700)  # two more audits without differences
    assert running.clock.slept.count(EVENT_DELAY_SECONDS) == 1
    assert client.calls["task"] <= 1, "only the late start may cause a task query"
    assert running.transitions == [("started", "live", "shop/db")]
    assert [snapshot["reason"] for snapshot in running.snapshots()] == ["start"]


@pytest.mark.parametrize("lost", ["start", "exit"])
async def test_audit_publishes_lost_events_despite_unrelated_event(lost: str) -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client, first_audit_delay=30) as running:
        if lost == "start":
            client.run(DB, 30)
        else:
            client.remove_task(WEB)
        await asyncio.sleep(31)
        client.stream.put(ContainerUpdated(DB if lost == "start" else WEB, 7, "busybox", {}))
        await running.wait_synced(2)
    expected = ("started", "inferred", "shop/db") if lost == "start" else ("exited", "inferred", "web")
    assert expected in running.transitions
    assert running.snapshots()[1]["containers"] == (2 if lost == "start" else 0)


async def test_metadata_is_fetched_before_container_is_deleted() -> None:
    """A container that is deleted before its events are processed is published with its name and labels."""
    client = HookedClient()
    async with synced_watch(client) as running:
        client.add(WEB, "shop-web")
        client.stream.put(*start_events(WEB, 10), exit_event(WEB, 10), ContainerDeleted(WEB, 10))

        await running.eventually(lambda: len(running.transitions) == 2)
    assert {each["container"]["name"] for each in running.documents[2:]} == {"shop-web"}
    assert client.calls["container"] == 1


async def test_start_uses_event_fields_when_metadata_is_gone() -> None:
    client = HookedClient()
    async with synced_watch(client) as running:
        client.stream.put(*start_events(WEB, 10), exit_event(WEB, 10))
        await running.eventually(lambda: len(running.transitions) == 2)
    container = running.documents[-1]["container"]
    assert (container["name"], container["labels"], container["image"]) == ("web", None, "busybox")


async def test_failed_metadata_fetch_is_repeated_on_same_connection() -> None:
    client = HookedClient()
    async with synced_watch(client) as running:
        client.run(WEB, 10)

        async def fail_once(_: ContainerKey) -> None:
            if client.calls["container"] == 1:
                client.stream.put(Ignored("/tasks/exec-added", known=True), ContainerDeleted(DB, 5))
                raise TransientError("busy")
            await asyncio.sleep(1)

        client.hooks["container"] = fail_once
        client.stream.put(*start_events(WEB, 10))
        await running.eventually(lambda: running.transitions)
    assert running.transitions == [("started", "live", "web")]
    assert (client.calls["container"], client.calls["subscribe"]) == (2, 1)


async def test_failed_metadata_fetch_is_repeated_on_next_connection() -> None:
    client = HookedClient()
    async with synced_watch(client) as running:
        client.add(WEB, "late")

        async def fail(_: ContainerKey) -> None:
            if client.calls["container"] <= 3:
                raise TransientError("busy")

        client.hooks["container"] = fail
        client.run(WEB, 10)
        client.stream.put(*start_events(WEB, 10))
        await running.wait_synced(2)
    assert running.transitions == [("started", "live", "web"), ("present", "snapshot", "web")]
    assert running.documents[3]["container"]["name"] == "late"


async def test_engine_change_ends_containers_of_previous_engine() -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:
        client.containerd.id = "engine-2"
        client.remove(WEB)
        client.run(DB, 5)
        client.stream.end()
        await running.wait_synced(3)
    engines = [each["engine"]["id"] for each in running.documents]
    assert engines == ["engine-1"] * 6 + ["engine-2"] * 3
    old, new = running.documents[:6], running.documents[6:]
    assert [each["type"] for each in old[3:]] == ["snapshot_started", "exited", "snapshot_completed"]
    assert new[0]["epoch"] > old[0]["epoch"]
    assert [each["sequence"] for each in new] == [1, 2, 3]
    assert new[0]["snapshot"]["reason"] == "start"


async def test_engine_replaced_during_connect_is_not_the_previous() -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:

        async def replace_engine() -> None:
            client.containerd.id = "engine-2"

        client.hooks["subscribe"] = replace_engine
        client.stream.end()
        await running.wait_synced(3)
    old, new = running.documents[:-3], running.documents[-3:]
    assert {each["engine"]["id"] for each in old} == {"engine-1"}
    assert [each["type"] for each in old[3:]] == ["snapshot_started", "exited", "snapshot_completed"]
    assert [(each["engine"]["id"], each["type"]) for each in new[1:2]] == [("engine-2", "present")]


@pytest.mark.parametrize("status", [42, None])
async def test_lost_exit_is_published_soon_with_task_wait_status(status: int | None) -> None:
    client = HookedClient()

    async def remove_task(key: ContainerKey) -> None:
        client.remove_task(key)

    async with synced_watch(client) as running:
        client.add(WEB)
        if status is not None:
            client.run(WEB, 10)
            client.state.stop_without_event(WEB, status)
            client.hooks["task"] = remove_task  # so that the query does not find the status
        client.stream.put(TaskCreated(WEB, 2, 10), TaskStarted(WEB, running.clock.now().wall, 10))
        await running.eventually(lambda: len(running.transitions) == 1)
        assert client.calls["task"] == 0, "no other reason for a task query"
        await running.eventually(lambda: len(running.transitions) == 2)
    assert running.transitions == [("started", "live", "web"), ("exited", "inferred", "web")]
    assert running.documents[3]["exit"]["status"] == status


async def test_stream_overflow_is_reported_in_next_snapshot() -> None:
    client = HookedClient()
    async with synced_watch(client) as running:
        client.stream.end(StreamOverflowError("too much"))
        await running.wait_synced(2)
    assert running.snapshots()[1]["reason"] == "overflow"


async def test_requested_snapshot_is_published() -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:
        running.watch.request_snapshot("on_demand")
        await running.wait_synced(2)
    assert running.snapshots()[1]["reason"] == "on_demand"
    assert running.transitions == [("present", "snapshot", "web")] * 2


async def test_event_stream_is_abandoned_when_markers_do_not_return() -> None:
    client = HookedClient()
    client.faults.drop_published = True
    async with running_watch(client) as running:
        await running.eventually(lambda: client.calls["subscribe"] > 1)
        assert "stalled" in (running.watch.last_error or "")
        client.faults.drop_published = False
        await running.wait_synced()
    assert running.snapshots()[0]["reason"] == "start"


async def test_stalled_stream_is_noticed_during_long_listing() -> None:
    client = HookedClient()

    async def hang(_: str) -> None:
        client.hooks.clear()
        client.faults.drop_published = True
        await asyncio.Event().wait()

    client.hooks["containers"] = hang
    async with running_watch(client, marker_interval=10) as running:
        await running.eventually(lambda: client.calls["subscribe"] == 2)
        assert running.clock.now().monotonic / SECOND < 1_000 + 40
        client.faults.drop_published = False
        await running.wait_synced()


async def test_ignored_events_are_counted_by_kind() -> None:
    client = HookedClient()
    async with synced_watch(client) as running:
        client.stream.put(
            Ignored("/tasks/new-topic", known=False),
            Ignored("/tasks/exec-added", known=True),
            Undecodable("/x", "truncated"),
        )
        client.stream.put(Marker("another", 1))
        await running.eventually(lambda: running.watch.event_counts.total() == 4)
    assert running.watch.event_counts == {"unknown": 1, "ignored": 1, "undecodable": 1, "foreign_marker": 1}


async def test_watch_warns_until_a_namespace_matches() -> None:
    client = HookedClient()
    with capture_logs() as lines:
        async with synced_watch(client, namespace_filter=lambda name: name == "shop") as running:
            assert running.watch.excluded_namespaces == ["default"]
            client.run(DB, 11)
            client.stream.put(*start_events(DB, 11))
            await running.eventually(lambda: running.transitions)
            assert running.watch.excluded_namespaces == []
    (warning,) = [line for line in lines if line["event"] == "no_namespace_matches"]
    assert (warning["log_level"], warning["existing"]) == ("warning", ["default"])


async def test_watch_does_not_warn_without_any_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    client = HookedClient()

    async def none() -> list[str]:
        return []

    monkeypatch.setattr(client, "namespaces", none)
    with capture_logs() as lines:
        async with synced_watch(client) as running:
            assert running.watch.excluded_namespaces == []
    assert "no_namespace_matches" not in [line["event"] for line in lines]


async def test_watch_stops_on_fatal_error_of_containerd() -> None:
    client = HookedClient()

    async with synced_watch(client) as running:

        async def fail() -> Any:
            raise FatalError("another program uses the socket")

        client.hooks["engine"] = fail
        client.stream.end()
        with pytest.raises(FatalError, match="another program"):
            await running.eventually(lambda: False)


@pytest.mark.parametrize("keeps_checkpoint", [False, True])
async def test_checkpoint_is_written_only_if_outbox_keeps_it(*, keeps_checkpoint: bool) -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client, keeps_checkpoint=keeps_checkpoint) as running:
        client.run(DB, 11)
        client.stream.put(*start_events(DB, 11))
        await running.eventually(lambda: len(running.transitions) == 2)
    assert bool(running.outbox.checkpoint) is keeps_checkpoint


@pytest.mark.parametrize("keeps_checkpoint", [False, True])
async def test_exit_counts_are_stored_only_if_outbox_keeps_them(*, keeps_checkpoint: bool) -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client, keeps_checkpoint=keeps_checkpoint) as running:
        client.stream.put(exit_event(WEB, 10, 2))
        await running.eventually(lambda: len(running.transitions) == 2)
        await asyncio.sleep(0)
        exits = running.watch.counters.exits.persisted
    assert [each.statuses[STATUSES.index("2")] for each in exits.values()] == [1]
    assert (EXITS_KEY in running.outbox.checkpoint) is keeps_checkpoint


@pytest.mark.parametrize(
    ("restart", "expected"),
    [
        ({}, 2),
        ({"host": "node-2"}, 2),
        ({"boot_id": "60000000-0000"}, 2),
        ({"host": "node-2", "boot_id": "60000000-0000"}, 1),  # a clone
    ],
)
async def test_exit_counts_continue_unless_host_is_another(restart: dict[str, Any], expected: int) -> None:
    client = HookedClient({WEB: 10, DB: 20})
    async with synced_watch(client) as running:
        client.stream.put(exit_event(WEB, 10, 1))
        await running.eventually(lambda: len(running.transitions) == 3)
        checkpoint = dict(running.outbox.checkpoint)
    client.run(WEB, 12)
    async with running_watch(client, checkpoint, **restart) as restarted:
        await restarted.wait_synced()
        published = len(restarted.transitions)
        client.stream.put(exit_event(WEB, 12, 1))
        await restarted.eventually(lambda: len(restarted.transitions) > published)
        await asyncio.sleep(0)
        exits = restarted.watch.counters.exits.persisted
    assert sum(each.statuses[STATUSES.index("1")] for each in exits.values()) == expected


async def test_checkpoint_continues_without_keys_of_newer_version() -> None:
    client = HookedClient({WEB: 10})
    async with synced_watch(client) as running:
        checkpoint = dict(running.outbox.checkpoint)
    client.run(WEB, 12)
    async with running_watch(client, checkpoint | {"new": b"\xc1", "new\0a\0b": b""}) as restarted:
        await restarted.eventually(lambda: restarted.transitions)
    assert restarted.outbox.load_checkpoint().values.keys() == checkpoint.keys()
    assert ("exited", "inferred", "web") in restarted.transitions


@pytest.mark.parametrize("keeps_checkpoint", [False, True])
async def test_clock_behind_epoch_is_logged_without_kept_epoch(*, keeps_checkpoint: bool) -> None:
    client = HookedClient()
    with capture_logs() as lines:
        async with synced_watch(client, marker_interval=10, keeps_checkpoint=keeps_checkpoint) as running:
            running.clock.set_wall(running.clock.now().wall - 10**18)
            await asyncio.sleep(35)
    levels = [line["log_level"] for line in lines if line["event"] == "clock_behind_epoch"]
    assert levels == ([] if keeps_checkpoint else ["warning"])
