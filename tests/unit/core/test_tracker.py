"""The tracker: transitions of a run, queries, snapshots, gaps. test_task_machine.py has the rules of the task."""

from __future__ import annotations

import pytest

from bridge.core.container_state import (
    MAX_CREATED,
    MAX_EVIDENCE,
    MAX_EXITED,
    ExitInfo,
    TaskQuery,
    Transition,
)
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    ExitStatus,
    Instant,
    TaskStatus,
)
from bridge.core.task_machine import PENDING_EXIT_NS
from bridge.core.time import SECOND, to_seconds
from bridge.core.tracker import Tracker
from tests.unit.core.factories import (
    BOOT_ID,
    DB,
    WEB,
    ImmediateTracker,
    TransitionSummary,
    created,
    deleted,
    exited,
    expire_pending_exits,
    make_metadata,
    moment,
    paused,
    resumed,
    started,
    summarize,
    synced_tracker,
    task,
    tracker_with_container,
    wall,
)

STARTED = [("started", "live", 5)]
EXITED = [("exited", "live", 5)]
INFERRED_EXIT = [("exited", "inferred", 5)]


def step(tracker: Tracker, event: ContainerEvent, now: Instant | None = None) -> TransitionSummary:
    """Process an event at the moment ``now``, by default that of the event."""
    seconds = to_seconds(event.at - wall(0))
    return summarize(tracker.process_event(event, now or moment(seconds)))


def due_query_keys(tracker: Tracker, seconds: float = 1000) -> list[ContainerKey]:
    return [query.key for query in tracker.due_queries(moment(seconds))]


def running_incarnations(tracker: Tracker) -> list[tuple[str, int, bool]]:
    return [(entry.key.id, incarnation.pid, incarnation.paused) for entry, incarnation in tracker.incarnations()]


# --- a complete run ---


def test_tracker_emits_every_transition_of_container_run() -> None:
    tracker = synced_tracker()
    tracker.update_metadata(make_metadata(labels={"tier": "front"}))
    assert step(tracker, created(5, 1)) == []
    (start,) = tracker.process_event(started(5, 2), moment(2.1))
    assert (start.type, start.origin, start.at, start.key, start.pid) == ("started", "live", wall(2), WEB, 5)
    assert (start.incarnation, start.paused, start.exit_info) == ("5f3c9a1e-5", False, None)
    assert start.metadata == make_metadata(labels={"tier": "front"})
    (pause,) = tracker.process_event(paused(3), moment(3.1))
    assert (pause.type, pause.origin, pause.at, pause.paused) == ("paused", "live", wall(3), True)
    (resume,) = tracker.process_event(resumed(4), moment(4.1))
    assert (resume.type, resume.origin, resume.at, resume.paused) == ("unpaused", "live", wall(4), False)
    (end,) = tracker.process_event(exited(5, 5, 137), moment(5.1))
    assert (end.type, end.origin, end.at, end.paused) == ("exited", "live", wall(5), False)
    assert end.exit_info == ExitInfo(137, wall(5))
    assert step(tracker, deleted(5, 6)) == []
    assert tracker.next_due() is None


def test_incarnations_differ_when_pid_returns() -> None:
    tracker = synced_tracker()
    ids = []
    for number, pid in enumerate([46, 46, 50, 50, 46, 47]):
        (start,) = tracker.process_event(started(pid, 10 * number + 1), moment(10 * number + 1)) or query_start(
            tracker, pid, 10 * number + 2
        )
        (end,) = tracker.process_event(exited(pid, 10 * number + 5), moment(10 * number + 5))
        assert start.incarnation == end.incarnation
        ids.append(start.incarnation.removeprefix("5f3c9a1e-"))
    assert ids == ["46", "46-2", "50-2", "50-3", "46-4", "47-4"]


def query_start(tracker: Tracker, pid: int, seconds: float) -> list[Transition]:
    """Return the transitions after the query of a task whose creation was not seen."""
    (query,) = tracker.due_queries(moment(seconds))
    return tracker.apply_query_result(query, task(pid), moment(seconds))


def test_container_created_a_million_times_keeps_bounded_state() -> None:
    tracker = synced_tracker()
    for number in range(2000):
        tracker.process_event(created(5 + number % 50, number), moment(number))
        tracker.process_event(started(5 + number % 70, number), moment(number))
        tracker.process_event(exited(5 + number % 90, number), moment(number))
        tracker.process_event(ContainerCreated(WEB, wall(number), "busybox", "unknown"), moment(number))
    entry = tracker.find(WEB)
    assert entry is not None
    assert len(entry.state.evidence) <= MAX_EVIDENCE
    assert len(entry.state.created) <= MAX_CREATED
    assert len(entry.state.exited) <= MAX_EXITED


def test_exec_exit_emits_nothing() -> None:
    tracker = tracker_with_container()
    (query,) = query_task(tracker)
    assert step(tracker, exited(5, 1, 1, exec_id="health")) == []
    assert step(tracker, deleted(5, 1, 1, exec_id="health")) == []
    assert tracker.counts["exec_exit"] == 1
    assert summarize(tracker.apply_query_result(query, None, moment(2))) == INFERRED_EXIT, (
        "an exec's exit does not invalidate a query result"
    )
    assert step(tracker, exited(77, 3, 1, exec_id="health")) == []
    assert tracker.next_due(start_checks=False) is None


def test_pending_exit_emitted_with_start_when_deadline_expires() -> None:
    tracker = synced_tracker()
    assert step(tracker, exited(5, 1, 9)) == []
    assert tracker.next_due() == SECOND + PENDING_EXIT_NS
    assert summarize(expire_pending_exits(tracker, moment(30.999))) == []
    first, second = expire_pending_exits(tracker, moment(31))
    assert summarize([first, second]) == [("started", "inferred", 5), *EXITED]
    assert (first.at, second.at, second.exit_info) == (wall(31), wall(1), ExitInfo(9, wall(1)))
    assert tracker.next_due() is None
    assert step(tracker, started(5, 0.5), moment(40)) == []


# --- task queries ---


def query_task(tracker: Tracker, key: ContainerKey = WEB) -> list[TaskQuery]:
    tracker.schedule_query(key)
    return tracker.due_queries(moment(0))


def test_task_query_is_returned_once_when_due() -> None:
    tracker = tracker_with_container()
    tracker.schedule_query(WEB, 8 * SECOND)
    tracker.schedule_query(WEB, 7 * SECOND)
    tracker.schedule_query(WEB, 9 * SECOND)
    tracker.schedule_query(DB, 8 * SECOND)
    assert tracker.next_due() == 7 * SECOND
    assert due_query_keys(tracker, 6.9) == []
    assert due_query_keys(tracker, 7) == [WEB]
    assert tracker.next_due() == 8 * SECOND
    assert due_query_keys(tracker, 8) == [DB]
    assert tracker.next_due() is None


def test_next_due_is_earliest_of_queries_and_pending_exits() -> None:
    tracker = synced_tracker()
    step(tracker, exited(5, 1))
    tracker.schedule_query(DB, 2 * SECOND)
    assert tracker.next_due() == 2 * SECOND
    tracker.due_queries(moment(2))
    assert tracker.next_due() == 31 * SECOND
    step(tracker, started(5, 0.5), moment(3))
    assert tracker.next_due() is None


@pytest.mark.parametrize(
    "event",
    [
        started(5, 0.2),
        paused(2),
        created(6, 2),
        exited(0, 2),
        ContainerUpdated(WEB, wall(2), "busybox", {}),
        ContainerCreated(WEB, wall(2), "busybox", "runc"),
    ],
)
def test_task_query_repeated_when_event_precedes_result(event: ContainerEvent) -> None:
    tracker = tracker_with_container()
    (query,) = query_task(tracker)
    tracker.process_event(event, moment(2))
    assert summarize(tracker.apply_query_result(query, None, moment(3))) == []
    assert running_incarnations(tracker) != []
    assert due_query_keys(tracker, 3) == [WEB]


def test_task_query_repeated_when_task_wait_precedes_result() -> None:
    tracker = tracker_with_container()
    (query,) = query_task(tracker)
    tracker.apply_wait_result(WEB, 5, ExitStatus(9, 123), moment(2))
    assert summarize(tracker.apply_query_result(query, task(5), moment(2))) == []
    assert due_query_keys(tracker, 2) == [WEB]


def test_tracker_reports_pid_to_wait_for() -> None:
    tracker = synced_tracker()
    tracker.update_metadata(make_metadata())
    (entry,) = tracker.entries()
    assert entry.current_pid == 0
    for event, current_pid in ((created(5, 1), 5), (started(5, 2), 5), (exited(5, 3), 0), (created(6, 4), 6)):
        tracker.process_event(event, moment(4))
        assert entry.current_pid == current_pid
    tracker.apply_wait_result(WEB, 6, ExitStatus(9, wall(4)), moment(4))
    assert (entry.has_waited_exit(6), entry.has_waited_exit(5)) == (True, False)


def test_tracker_counts_each_unexpected_event() -> None:
    tracker = tracker_with_container()
    for _ in range(3):
        tracker.process_event(started(5, 0.2), moment(1))
    assert tracker.counts == {"duplicate": 3}


def test_task_query_repeated_when_newer_result_was_applied() -> None:
    tracker = tracker_with_container()
    (first,) = query_task(tracker)
    (second,) = query_task(tracker)
    assert summarize(tracker.apply_query_result(second, task(6), moment(2))) == [
        *INFERRED_EXIT,
        ("started", "inferred", 6),
    ]
    assert summarize(tracker.apply_query_result(first, None, moment(2))) == []
    assert running_incarnations(tracker) == [("web", 6, False)]
    assert due_query_keys(tracker) == [WEB]


def test_empty_query_result_leaves_no_state_of_unknown_container() -> None:
    tracker = synced_tracker()
    (query,) = query_task(tracker)
    assert summarize(tracker.apply_query_result(query, None, moment(1))) == []
    assert list(tracker.entries()) == []


@pytest.mark.parametrize(
    ("status", "present"),
    [
        (TaskStatus.RUNNING, [("web", False)]),
        (TaskStatus.PAUSED, [("web", True)]),
        (TaskStatus.STOPPED, []),
        (TaskStatus.CREATED, []),
        (TaskStatus.UNKNOWN, []),
    ],
)
def test_unknown_task_is_preexisting_when_namespace_not_synced(
    status: TaskStatus, present: list[tuple[str, bool]]
) -> None:
    tracker = ImmediateTracker(BOOT_ID)
    (query,) = query_task(tracker)
    assert summarize(tracker.apply_query_result(query, task(5, status), moment(1))) == []
    assert [(record.key.id, record.paused) for record in tracker.snapshot_records(moment(2))] == present
    assert tracker.preexisting_count == len(present)
    if status is TaskStatus.STOPPED:
        assert step(tracker, exited(5, 0.5), moment(3)) == []
        assert tracker.next_due() is None


# --- failed queries ---


@pytest.mark.parametrize("has_metadata", [True, False])
def test_failed_query_leaves_state_unknown(has_metadata: bool) -> None:
    tracker = synced_tracker()
    if has_metadata:
        tracker.update_metadata(make_metadata())
    (query,) = query_task(tracker)
    tracker.query_failed(query)
    (entry,) = tracker.entries()
    assert entry.state.unknown
    (query,) = query_task(tracker)
    assert summarize(tracker.apply_query_result(query, task(5), moment(1))) == []
    assert (tracker.preexisting_count, entry.state.unknown) == (1, False)


def test_failed_query_repeated_when_events_changed_state() -> None:
    tracker = tracker_with_container()
    (query,) = query_task(tracker)
    step(tracker, exited(5, 1))
    tracker.query_failed(query)
    assert due_query_keys(tracker) == [WEB]
    assert not any(entry.state.unknown for entry in tracker.entries())


# --- preexisting containers, scope, snapshot records ---


def tracker_with_preexisting() -> Tracker:
    """Return a tracker with a preexisting container that is not published yet."""
    tracker = ImmediateTracker(BOOT_ID)
    tracker.update_metadata(make_metadata())
    tracker.apply_task_state(WEB, task(5), moment(0.1))
    return tracker


def test_snapshot_record_comes_first_for_preexisting_incarnation() -> None:
    tracker = tracker_with_preexisting()
    (record,) = tracker.snapshot_records(moment(1))
    assert (record.type, record.origin, record.at, record.key, record.pid) == ("present", "snapshot", wall(1), WEB, 5)
    assert (record.incarnation, record.paused, record.metadata, record.exit_info) == (
        "5f3c9a1e-5",
        False,
        make_metadata(),
        None,
    )
    assert step(tracker, paused(2)) == [("paused", "live", 5)]
    assert step(tracker, exited(5, 3)) == EXITED
    assert tracker.snapshot_records(moment(4)) == []


def test_preexisting_pause_not_emitted_before_snapshot_record() -> None:
    tracker = tracker_with_preexisting()
    assert step(tracker, paused(1)) == []
    (record,) = tracker.snapshot_records(moment(2))
    assert record.paused


def test_preexisting_run_emitted_whole_when_exit_comes_first() -> None:
    assert step(tracker_with_preexisting(), exited(5, 1)) == [("started", "inferred", 5), *EXITED]


def test_out_of_scope_container_is_tracked_but_not_emitted() -> None:
    tracker = ImmediateTracker(BOOT_ID)
    tracker.update_metadata(make_metadata(in_scope=False))
    tracker.apply_task_state(WEB, task(5), moment(0.1))
    assert (tracker.preexisting_count, tracker.snapshot_records(moment(1)), running_incarnations(tracker)) == (
        0,
        [],
        [("web", 5, False)],
    )
    assert step(tracker, paused(2)) == []
    assert step(tracker, exited(5, 3)) == []
    tracker.update_metadata(make_metadata())
    assert step(tracker, started(6, 4)) == [("started", "live", 6)], "each incarnation has its own scope"


# --- metadata, pods ---


def test_transition_carries_latest_metadata() -> None:
    tracker = tracker_with_container()
    tracker.update_metadata(make_metadata(labels={"tier": "back"}, updated_at=2))
    (pause,) = tracker.process_event(paused(1), moment(1))
    assert pause.metadata == make_metadata(labels={"tier": "back"}, updated_at=2)


def test_container_becomes_tombstone_when_deleted_and_exited() -> None:
    tracker = tracker_with_container()
    step(tracker, ContainerDeleted(WEB, wall(1)))
    assert [entry.key for entry in tracker.entries()] == [WEB], "the container is still running"
    step(tracker, exited(5, 2))
    assert list(tracker.entries()) == []
    entry = tracker.find(WEB)
    assert entry is not None
    assert [each.pid for each in entry.state.exited] == [5]
    assert step(tracker, started(5, 0.2), moment(3)) == []
    assert list(tracker.entries()) == []
    tracker.update_metadata(make_metadata())
    assert list(tracker.entries()) == [entry]
    assert not entry.deleted


def test_remove_keeps_container_while_running() -> None:
    tracker = tracker_with_container()
    tracker.update_metadata(make_metadata(DB))
    for entry in list(tracker.entries()):
        tracker.set_deleted(entry)
    assert [entry.key for entry in tracker.entries()] == [WEB]
    step(tracker, exited(5, 1))
    assert list(tracker.entries()) == []


# --- gaps in the stream ---


def test_disconnect_clears_confirmations_and_queries() -> None:
    tracker = tracker_with_container()
    tracker.schedule_query(WEB)
    tracker.disconnect()
    assert tracker.next_due() is None
    (entry,) = tracker.entries()
    assert (entry.state.confirmed, entry.generation, entry.state.created) == (False, 0, ())


def test_exit_all_publishes_runs_after_lost_exit() -> None:
    tracker = tracker_with_container()
    for event in (created(6, 1), started(6, 2), created(7, 3), started(7, 4)):
        tracker.process_event(event, moment(4))
    assert [each[0::2] for each in summarize(tracker.exit_all(moment(9)))] == [
        ("exited", 5),
        ("started", 6),
        ("exited", 6),
        ("started", 7),
        ("exited", 7),
    ]


def test_exit_all_ends_every_incarnation_on_new_boot() -> None:
    tracker = tracker_with_container()
    tracker.update_metadata(make_metadata(DB))
    tracker.process_event(exited(8, 1, key=DB), moment(1))
    tracker.schedule_query(WEB)
    transitions = tracker.exit_all(moment(9))
    assert summarize(transitions) == [("started", "inferred", 8), ("exited", "live", 8), *INFERRED_EXIT]
    assert (transitions[-1].at, transitions[-1].exit_info) == (wall(9), ExitInfo())
    assert (list(tracker.entries()), tracker.find(WEB), tracker.next_due()) == ([], None, None)
    assert tracker.has_synced("shop")
    assert step(tracker, started(5, 10)) == STARTED
