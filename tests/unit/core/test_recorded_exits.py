"""CRI's records of exits: what the tracker makes of them at a listing, at a query, and after a restart."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bridge.core import checkpoint
from bridge.core.container_state import ExitInfo, Transition
from bridge.core.containerd_model import ContainerKey, Metadata, PodReference, RecordedExit, Task, TaskOOM
from bridge.core.reconcile import Listing, find_unknown_exits, has_unconfirmed, reconcile
from bridge.core.tracker import Tracker
from tests.unit.core.factories import (
    BOOT_ID,
    created,
    deleted,
    exited,
    expire_pending_exits,
    make_metadata,
    moment,
    started,
    summarize,
    synced_tracker,
    task,
    wall,
)

POD = ContainerKey("k8s.io", "attempt-0")
NEXT = ContainerKey("k8s.io", "attempt-1")
RECORD = RecordedExit(POD, wall(2), 3, wall(4))


def pod_metadata(key: ContainerKey = POD) -> Metadata:
    return make_metadata(key, pod=PodReference("web-0", "shop", "uid-1", "main"))


def listing(*records: RecordedExit, tasks: tuple[Task, ...] = (), only_ids: tuple[ContainerKey, ...] = ()) -> Listing:
    """Return a listing with CRI's records, and with containers that CRI only lists as exited."""
    exits: dict[ContainerKey, RecordedExit | None] = {each.key: each for each in records}
    exits |= dict.fromkeys(only_ids)
    keys = {*exits, *(each.key for each in tasks)}
    return Listing(
        namespaces=["k8s.io"],
        containers={key: pod_metadata(key) for key in keys},
        tasks={each.key: each for each in tasks},
        exits=exits,
        exits_listed=True,
    )


def reconnected(tracker: Tracker) -> Tracker:
    tracker.disconnect()
    return tracker


def running_tracker(pid: int = 5) -> Tracker:
    """Return a tracker with a running container of a pod."""
    tracker = synced_tracker()
    tracker.update_metadata(pod_metadata())
    for event in (created(pid, 0.1, POD), started(pid, 0.2, POD)):
        tracker.process_event(event, moment(0.3))
    return tracker


def restarted(tracker: Tracker) -> Tracker:
    """Return the tracker of the next process, from the checkpoint."""
    values = {key: value for key, value in checkpoint.encode_changes(tracker.changes()) if value is not None}
    other = Tracker(BOOT_ID)
    other.restore(checkpoint.decode(values).entries, set(), moment(20))
    other.exits_synced = tracker.exits_synced
    return other


def test_run_unseen_is_published_with_its_times() -> None:
    tracker = reconnected(synced_tracker())
    assert find_unknown_exits(tracker, listing(RECORD)) == [POD]
    start, end = reconcile(tracker, listing(RECORD), moment(10))
    assert summarize([start, end]) == [("started", "inferred", 0), ("exited", "inferred", 0)]
    assert (start.at, start.started_at, end.at) == (wall(10), wall(2), wall(10))
    assert end.exit_info == ExitInfo(3, wall(4), None)
    assert start.incarnation == end.incarnation == "5f3c9a1e-0"
    assert start.metadata == pod_metadata()
    assert tracker.counts["cri_exit"] == 1
    assert tracker.due_queries(moment(10)) == []


def test_attempts_are_published_in_order_before_the_running_one() -> None:
    tracker = reconnected(running_tracker())
    first, second = RecordedExit(POD, wall(0.2), 7, wall(1)), RecordedExit(NEXT, wall(2), 8, wall(3))
    last = ContainerKey("k8s.io", "attempt-2")
    transitions = reconcile(tracker, listing(first, second, tasks=(task(9, key=last),)), moment(10))
    assert [(each.type, each.key.id, each.exit_info and each.exit_info.status) for each in transitions] == [
        ("exited", "attempt-0", 7),
        ("started", "attempt-1", None),
        ("exited", "attempt-1", 8),
        ("started", "attempt-2", None),
    ]


@pytest.mark.parametrize("oom", [False, True])
def test_run_that_ended_in_gap_gets_its_status(oom: bool) -> None:
    tracker = reconnected(running_tracker())
    record = RecordedExit(POD, wall(0.2), 137, wall(4), oom)
    assert find_unknown_exits(tracker, listing(record)) == [POD]
    (end,) = reconcile(tracker, listing(record), moment(10))
    assert (end.pid, end.incarnation) == (5, "5f3c9a1e-5")
    assert end.exit_info == ExitInfo(137, wall(4), oom or None)


def test_known_exits_are_not_requested_and_not_queried() -> None:
    tracker = running_tracker()
    tracker.process_event(exited(5, 1, key=POD), moment(1))
    tracker = reconnected(tracker)
    known = listing(only_ids=(POD,))
    assert find_unknown_exits(tracker, known) == []
    assert reconcile(tracker, known, moment(10)) == []
    assert tracker.due_queries(moment(10)) == []
    assert tracker.next_due() is None


def test_exit_without_record_is_left_to_query() -> None:
    tracker = reconnected(running_tracker())
    assert reconcile(tracker, listing(only_ids=(POD,)), moment(10)) == []
    assert [query.key for query in tracker.due_queries(moment(10))] == [POD]


def test_listed_task_counts_more_than_record() -> None:
    tracker = reconnected(running_tracker())
    contradictory = listing(RECORD, tasks=(task(5, key=POD),))
    assert find_unknown_exits(tracker, contradictory) == []
    assert reconcile(tracker, contradictory, moment(10)) == []


def test_events_of_window_count_more_than_record() -> None:
    tracker = reconnected(running_tracker())
    tracker.process_event(created(6, 5, POD), moment(5))
    assert reconcile(tracker, listing(RECORD), moment(10)) == []
    (query,) = tracker.due_queries(moment(20))
    (end,) = tracker.apply_query_result(query, None, moment(20), RECORD)
    assert end.exit_info == ExitInfo(3, wall(4), None)


def test_removed_container_is_not_published_from_record() -> None:
    tracker = reconnected(synced_tracker())
    removed = replace_containers(listing(RECORD))
    assert reconcile(tracker, removed, moment(10)) == []
    assert tracker.apply_query_result(tracker.make_query(POD), None, moment(10), RECORD) == []


def replace_containers(whole: Listing) -> Listing:
    return replace(whole, containers={})


def test_runs_from_before_the_bridge_are_not_published() -> None:
    tracker = Tracker(BOOT_ID)
    old = listing(only_ids=(POD,))
    assert find_unknown_exits(tracker, old) == []
    assert reconcile(tracker, old, moment(10)) == []
    tracker.mark_synced(set())
    assert find_unknown_exits(tracker, old) == [], "an audit would publish them otherwise"
    tracker = reconnected(restarted(tracker))
    assert reconcile(tracker, listing(RECORD), moment(30)) == []


def test_run_unseen_is_published_once_across_restarts() -> None:
    before = reconnected(synced_tracker())
    first = reconcile(before, listing(RECORD), moment(10))
    after = reconnected(restarted(before))
    assert find_unknown_exits(after, listing(RECORD)) == []
    assert reconcile(after, listing(RECORD), moment(30)) == []
    killed = reconnected(synced_tracker())  # before the records and the checkpoint were persisted
    assert [each.incarnation for each in reconcile(killed, listing(RECORD), moment(40))] == [
        each.incarnation for each in first
    ]


def test_delayed_events_of_run_unseen_start_no_other_run() -> None:
    tracker = reconnected(synced_tracker())
    reconcile(tracker, listing(RECORD), moment(5))  # CRI waits for exits itself, and may know of them before events
    transitions: list[Transition] = []
    for event in (created(6, 10, POD), started(6, 10.1, POD), replace(exited(6, 10.2, 3, key=POD), exited_at=wall(4))):
        transitions += tracker.process_event(event, moment(10.3))
    transitions += without_task(tracker)
    assert transitions == []


def without_task(tracker: Tracker) -> list[Transition]:
    """Return what follows when the due queries find no task."""
    return [
        each
        for query in tracker.due_queries(moment(60))
        for each in tracker.apply_query_result(query, None, moment(60))
    ]


def test_settled_container_is_queried_if_its_state_is_unknown() -> None:
    tracker = running_tracker()
    tracker.process_event(exited(5, 1, key=POD), moment(1))
    tracker.query_failed(tracker.make_query(POD))
    tracker = reconnected(tracker)
    assert reconcile(tracker, listing(only_ids=(POD,)), moment(10)) == []
    assert without_task(tracker) == []
    assert not has_unconfirmed(tracker)


def killed_before_start() -> Tracker:
    """Return a tracker that has dropped the exit of a task whose start it has not seen."""
    tracker = synced_tracker()
    tracker.update_metadata(pod_metadata())
    for event in (created(5, 1, POD), exited(5, 4, 3, key=POD), replace(deleted(5, 4, 3), key=POD)):
        assert tracker.process_event(event, moment(4)) == []
    assert expire_pending_exits(tracker, moment(60)) == []
    assert tracker.counts["never_started"] == 1
    return tracker


@pytest.mark.parametrize("restarts", [False, True])
def test_run_whose_start_event_was_lost_is_published_from_record(restarts: bool) -> None:
    tracker = killed_before_start()  # CRI did not respond
    tracker = reconnected(restarted(tracker) if restarts else tracker)
    assert find_unknown_exits(tracker, listing(RECORD)) == [POD]
    transitions = reconcile(tracker, listing(RECORD), moment(60))
    assert summarize(transitions) == [("started", "inferred", 5), ("exited", "inferred", 5)]
    assert transitions[0].started_at == wall(2)
    assert transitions[1].exit_info == ExitInfo(3, wall(4), None)
    tracker = reconnected(tracker)
    assert find_unknown_exits(tracker, listing(RECORD)) == []
    assert reconcile(tracker, listing(RECORD), moment(70)) == []


def test_task_that_never_started_is_not_published_from_record() -> None:
    tracker = reconnected(killed_before_start())
    assert reconcile(tracker, listing(RecordedExit(POD, None, 128, wall(4))), moment(60)) == []
    tracker = reconnected(tracker)
    assert find_unknown_exits(tracker, listing(RECORD)) == [], "requested again by each audit"


def test_late_events_of_run_unseen_change_nothing() -> None:
    tracker = reconnected(synced_tracker())
    reconcile(tracker, listing(RECORD), moment(10))
    transitions: list[Transition] = []
    late = (created(6, 1.9, POD), started(6, 2, POD), exited(6, 4, 3, key=POD), replace(deleted(6, 4, 3), key=POD))
    for event in (*late, *late, TaskOOM(POD, wall(4))):
        transitions += tracker.process_event(event, moment(11))
    transitions += [
        each
        for query in tracker.due_queries(moment(12))
        for each in tracker.apply_query_result(query, None, moment(12))
    ]
    transitions += expire_pending_exits(tracker, moment(60))
    assert transitions == []


@pytest.mark.parametrize("pending", [False, True])
def test_short_run_does_not_start_after_its_end(pending: bool) -> None:
    """CRI notes the start of a container when its call has returned, as observed with containerd 1.6 and 2.4."""
    tracker = reconnected(synced_tracker())
    record = replace(RECORD, started_at=wall(4.1))
    if pending:
        tracker.update_metadata(pod_metadata())
        tracker.process_event(replace(exited(6, 4.2, 3, key=POD), exited_at=wall(4)), moment(5))
        start, end = tracker.resolve_overdue_exits(tracker.take_overdue_exits(moment(35)), moment(35), {POD: record})
    else:
        start, end = reconcile(tracker, listing(record), moment(10))
    assert (start.started_at, end.exit_info) == (wall(4), ExitInfo(3, wall(4)))


def test_overdue_exit_gets_time_of_start_from_record() -> None:
    tracker = reconnected(synced_tracker())
    tracker.update_metadata(pod_metadata())
    tracker.process_event(exited(6, 4, 3, key=POD), moment(5))
    assert tracker.take_overdue_exits(moment(34)) == []
    assert tracker.take_overdue_exits(moment(35)) == [POD]
    start, end = tracker.resolve_overdue_exits([POD], moment(35), {POD: RECORD})
    assert summarize([start, end]) == [("started", "inferred", 6), ("exited", "live", 6)]
    assert (start.started_at, end.exit_info) == (wall(2), ExitInfo(3, wall(4)))
    assert tracker.counts["cri_exit"] == 0  # the event has completed it
    assert tracker.resolve_overdue_exits([POD], moment(36), {POD: RECORD}) == []


def test_overdue_exit_of_another_run_ends_no_run() -> None:
    tracker = running_tracker()
    tracker.process_event(exited(6, 4, 3, key=POD), moment(5))
    overdue = tracker.take_overdue_exits(moment(35))
    assert tracker.resolve_overdue_exits(overdue, moment(35), {POD: RECORD}) == []
    assert [entry.key for entry, _ in tracker.incarnations()] == [POD]


def test_overdue_exit_is_due_again_on_next_connection() -> None:
    tracker = synced_tracker()
    tracker.process_event(exited(6, 4, 3, key=POD), moment(5))
    assert tracker.take_overdue_exits(moment(35)) == [POD]
    assert tracker.take_overdue_exits(moment(35)) == []
    tracker.disconnect()  # before CRI has responded
    assert tracker.take_overdue_exits(moment(36)) == [POD]


def test_overdue_exit_waits_for_start_of_later_exit() -> None:
    tracker = synced_tracker()
    tracker.process_event(exited(6, 4, 3, key=POD), moment(5))
    overdue = tracker.take_overdue_exits(moment(35))
    tracker.process_event(started(6, 3, POD), moment(35.1))
    tracker.process_event(exited(7, 35, key=POD), moment(35.2))
    assert tracker.resolve_overdue_exits(overdue, moment(35.3)) == []


def test_oom_kill_is_known_from_record_when_query_finds_no_task() -> None:
    tracker = running_tracker()
    query = tracker.make_query(POD)
    (end,) = tracker.apply_query_result(query, None, moment(10), RecordedExit(POD, wall(0.2), 137, wall(4), oom=True))
    assert end.exit_info == ExitInfo(137, wall(4), oom=True)


def test_out_of_scope_run_is_not_published_from_record() -> None:
    tracker = reconnected(synced_tracker())
    hidden = listing(RECORD)
    hidden.containers[POD] = replace(pod_metadata(), in_scope=False)
    assert reconcile(tracker, hidden, moment(10)) == []
    assert find_unknown_exits(tracker, hidden) == []
