"""The state machine of incarnations, rule by rule; test_properties.py checks its invariants on random histories."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bridge.core.container_state import MAX_CREATED_PIDS, MAX_EXITED_PIDS, ExitInfo, TaskQuery
from bridge.core.container_store import MAX_TOMBSTONES, PENDING_EXIT_NS
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    ExitStatus,
    Instant,
    PodReference,
    Task,
    TaskExited,
    TaskOOM,
    TaskStatus,
)
from bridge.core.time import SECOND, to_seconds
from bridge.core.tracker import EXIT_GRACE_NS, WAITED_EXIT_GRACE_NS, Tracker
from tests.unit.core.factories import (
    BOOT_ID,
    DB,
    WEB,
    ImmediateTracker,
    TransitionSummary,
    created,
    deleted,
    exited,
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


def test_exited_transition_not_paused_when_container_was_paused() -> None:
    tracker = tracker_with_container()
    step(tracker, paused(1))
    (end,) = tracker.process_event(exited(5, 2), moment(2))
    assert (end.type, end.paused) == ("exited", False)


def test_oom_event_reported_only_with_exit_of_same_incarnation() -> None:
    tracker = tracker_with_container(4)
    step(tracker, TaskOOM(WEB, wall(0.5)))
    step(tracker, exited(4, 0.5))
    step(tracker, started(5, 0.6))
    (end,) = tracker.process_event(exited(5, 0.7), moment(0.7))
    assert end.exit_info == ExitInfo(0, wall(0.7))
    tracker = tracker_with_container()
    assert step(tracker, TaskOOM(WEB, wall(1))) == []
    (end,) = tracker.process_event(exited(5, 2, 137), moment(2))
    assert end.exit_info == ExitInfo(137, wall(2), oom=True)
    step(tracker, TaskOOM(WEB, wall(3)))
    step(tracker, created(6, 4))
    step(tracker, started(6, 5))
    (end,) = tracker.process_event(exited(6, 6), moment(6))
    assert end.exit_info == ExitInfo(0, wall(6))


def test_restart_under_same_id_starts_new_incarnation() -> None:
    tracker = tracker_with_container()
    step(tracker, exited(5, 1))
    step(tracker, deleted(5, 2))
    step(tracker, created(6, 3))
    (start,) = tracker.process_event(started(6, 4), moment(4))
    assert start.incarnation == "5f3c9a1e-6"
    assert running_incarnations(tracker) == [("web", 6, False)]


# --- repeated and late events, unstarted tasks ---


@pytest.mark.parametrize(
    ("event", "count"),
    [
        (created(5, 0.1), "late"),
        (started(5, 0.2), "duplicate"),
        (exited(5, 1, 137), "duplicate"),
        (deleted(5, 2), None),
        (exited(5, 3, 137), "duplicate"),
    ],
)
def test_tracker_ignores_repeated_events_of_exited_incarnation(event: ContainerEvent, count: str | None) -> None:
    tracker = tracker_with_container()
    assert step(tracker, exited(5, 1)) == EXITED
    before = tracker.counts.copy()
    assert step(tracker, event, moment(4)) == []
    assert running_incarnations(tracker) == []
    assert tracker.next_due() is None
    assert tracker.counts - before == ({count: 1} if count else {})


@pytest.mark.parametrize("event", [created(5, 0.1), started(5, 0.2), deleted(4, 0.1), exited(5, 1, exec_id="sh")])
def test_tracker_ignores_repeated_events_of_running_container(event: ContainerEvent) -> None:
    tracker = tracker_with_container()
    assert step(tracker, event, moment(4)) == []
    assert running_incarnations(tracker) == [("web", 5, False)]
    assert tracker.next_due() is None


def test_exited_pids_are_remembered_across_many_restarts() -> None:
    tracker = tracker_with_container()
    step(tracker, exited(5, 1))
    for pid in range(6, 5 + MAX_EXITED_PIDS):
        step(tracker, started(pid, pid))
        step(tracker, exited(pid, pid + 0.5))
    assert step(tracker, started(5, 0.2), moment(100)) == []
    assert step(tracker, exited(5, 1), moment(100)) == []
    assert tracker.next_due() is None


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


def test_exit_emitted_after_start_when_received_before_start() -> None:
    tracker = synced_tracker()
    step(tracker, created(5, 1))
    step(tracker, TaskOOM(WEB, wall(2)))
    assert step(tracker, exited(5, 3, 9)) == []
    first, second = tracker.process_event(started(5, 2), moment(20))
    assert summarize([first, second]) == STARTED + EXITED
    assert second.at == wall(3)
    assert second.exit_info == ExitInfo(9, wall(3), oom=True)
    assert summarize(tracker.expire_pending_exits(moment(100))) == []


def test_pending_exit_emitted_with_start_when_deadline_expires() -> None:
    tracker = synced_tracker()
    assert step(tracker, exited(5, 1, 9)) == []
    assert tracker.next_due() == SECOND + PENDING_EXIT_NS
    assert summarize(tracker.expire_pending_exits(moment(30.999))) == []
    first, second = tracker.expire_pending_exits(moment(31))
    assert summarize([first, second]) == [("started", "inferred", 5), *EXITED]
    assert (first.at, second.at, second.exit_info) == (wall(31), wall(1), ExitInfo(9, wall(1)))
    assert tracker.next_due() is None
    assert step(tracker, started(5, 0.5), moment(40)) == []


def test_unstarted_task_exit_not_emitted_when_killed() -> None:
    tracker = synced_tracker()
    step(tracker, created(5, 1))
    step(tracker, exited(5, 2, 137))
    step(tracker, exited(5, 2, 137))
    assert summarize(tracker.expire_pending_exits(moment(32))) == []
    assert tracker.counts["never_started"] == 1
    assert step(tracker, exited(5, 2, 137), moment(40)) == []
    assert tracker.next_due() is None


@pytest.mark.parametrize("next_event", [started(6, 4), exited(6, 4), started(6, 40)])
def test_unstarted_task_exit_not_emitted_when_next_task_comes(next_event: ContainerEvent) -> None:
    tracker = synced_tracker()
    step(tracker, created(5, 1))
    step(tracker, exited(5, 2, 137))
    step(tracker, deleted(5, 2, 137))
    step(tracker, created(6, 3))
    transitions = step(tracker, next_event) + summarize(tracker.expire_pending_exits(moment(100)))
    assert all(pid == 6 for _type, _origin, pid in transitions)


def test_unstarted_task_exit_not_emitted_when_created_pids_full() -> None:
    tracker = synced_tracker()
    for pid in range(5, 5 + MAX_CREATED_PIDS):
        step(tracker, created(pid, pid))
        step(tracker, created(pid, pid))
    step(tracker, exited(5, 6, 137), moment(20))
    assert summarize(tracker.expire_pending_exits(moment(100))) == []


def test_pending_exit_emitted_when_next_exit_becomes_pending() -> None:
    tracker = synced_tracker()
    step(tracker, exited(5, 1))
    assert step(tracker, exited(6, 2)) == [("started", "inferred", 5), *EXITED]
    assert summarize(tracker.expire_pending_exits(moment(31.5))) == [], "the second exit has its own deadline"
    assert summarize(tracker.expire_pending_exits(moment(32))) == [("started", "inferred", 6), ("exited", "live", 6)]


def test_pending_exit_emitted_before_next_start() -> None:
    tracker = synced_tracker()
    step(tracker, exited(5, 1))
    assert step(tracker, started(6, 2)) == [("started", "inferred", 5), *EXITED, ("started", "live", 6)]


def test_late_exit_of_older_incarnation_changes_nothing() -> None:
    tracker = tracker_with_container(6)
    assert step(tracker, exited(5, 0.1), moment(3)) == []
    assert due_query_keys(tracker, 3) == [WEB], "it may be the exit of a newer task"
    assert summarize(tracker.expire_pending_exits(moment(33))) == []
    assert (tracker.counts["late"], running_incarnations(tracker)) == (1, [("web", 6, False)])


# --- lost exits ---


def test_delete_event_implies_exit_when_exit_event_lost() -> None:
    tracker = tracker_with_container()
    (end,) = tracker.process_event(deleted(5, 2, 137), moment(2.5))
    assert (summarize([end]), end.at, end.exit_info) == (INFERRED_EXIT, wall(2.5), ExitInfo(137, wall(2)))
    assert step(tracker, exited(5, 1, 137), moment(3)) == []
    assert tracker.next_due() is None


@pytest.mark.parametrize("status", [TaskStatus.RUNNING, TaskStatus.PAUSED])
def test_next_start_emitted_when_query_confirms_lost_exit(status: TaskStatus) -> None:
    tracker = tracker_with_container()
    step(tracker, created(6, 1))
    assert step(tracker, started(6, 2), moment(2.5)) == []
    assert tracker.counts["unconfirmed_start"] == 1
    (query,) = tracker.due_queries(moment(2.5))
    first, second, *more = tracker.apply_query_result(query, task(6, status), moment(2.6))
    assert summarize([first, second]) == [*INFERRED_EXIT, ("started", "live", 6)]
    assert (first.at, first.exit_info, second.at, second.paused) == (wall(2.6), ExitInfo(), wall(2), False)
    assert summarize(more) == ([("paused", "inferred", 6)] if status is TaskStatus.PAUSED else [])


@pytest.mark.parametrize("query_sent", [True, False])
def test_next_start_emitted_when_previous_exit_was_late(query_sent: bool) -> None:
    tracker = tracker_with_container()
    step(tracker, created(6, 1))
    step(tracker, started(6, 2))
    queries = tracker.due_queries(moment(2)) if query_sent else []
    assert step(tracker, exited(5, 0.9), moment(3)) == EXITED
    for query in queries:
        assert summarize(tracker.apply_query_result(query, task(6), moment(3))) == []
    (query,) = tracker.due_queries(moment(3))
    assert summarize(tracker.apply_query_result(query, task(6), moment(3))) == [("started", "live", 6)]


@pytest.mark.parametrize("result", [None, task(6, TaskStatus.STOPPED)])
def test_unconfirmed_run_emitted_whole_when_query_finds_exit(result: Task | None) -> None:
    tracker = tracker_with_container()
    step(tracker, created(6, 1))
    step(tracker, started(6, 2))
    step(tracker, exited(6, 3))
    (query,) = tracker.due_queries(moment(3))
    assert summarize(tracker.apply_query_result(query, result, moment(3))) == [
        *INFERRED_EXIT,
        ("started", "live", 6),
        ("exited", "live", 6),
    ]
    assert tracker.next_due(start_checks=False) is None


def test_unconfirmed_start_emitted_when_exit_follows_empty_query() -> None:
    tracker = tracker_with_container()
    step(tracker, created(6, 1))
    step(tracker, started(6, 2))
    (query,) = tracker.due_queries(moment(2))
    assert summarize(tracker.apply_query_result(query, None, moment(2.5))) == INFERRED_EXIT
    assert step(tracker, exited(6, 2.2), moment(3)) == []
    assert summarize(tracker.expire_pending_exits(moment(33))) == [("started", "live", 6), ("exited", "live", 6)]


@pytest.mark.parametrize("event", [created(6, 1), ContainerDeleted(WEB, wall(1))])
def test_task_query_is_scheduled_when_expected_exit_is_missing(event: ContainerEvent) -> None:
    tracker = tracker_with_container()
    assert step(tracker, event) == []
    assert tracker.next_due(start_checks=False) == SECOND + EXIT_GRACE_NS
    assert due_query_keys(tracker, 5.9) == []
    assert due_query_keys(tracker, 6) == [WEB]
    tracker = tracker_with_container()
    step(tracker, event)
    assert step(tracker, exited(5, 2)) == EXITED
    assert tracker.next_due(start_checks=False) is None


@pytest.mark.parametrize("event", [exited(0, 1, 255), deleted(0, 1, 255)])
def test_pid_zero_exit_ends_incarnation_only_after_task_query(event: ContainerEvent) -> None:
    tracker = tracker_with_container()
    assert step(tracker, event) == []
    (query,) = tracker.due_queries(moment(1))
    assert summarize(tracker.apply_query_result(query, task(5), moment(1.1))) == []
    assert step(tracker, event, moment(2)) == []
    (query,) = tracker.due_queries(moment(2))
    (end,) = tracker.apply_query_result(query, None, moment(2.1))
    assert (summarize([end]), end.at, end.exit_info) == (INFERRED_EXIT, wall(2.1), ExitInfo())
    assert step(tracker, event, moment(3)) == []
    assert tracker.next_due(start_checks=False) is None


# --- results of Tasks.Wait ---

EXIT_STATUS = ExitStatus(9, 123)


def test_task_wait_status_is_used_when_exit_event_lost() -> None:
    tracker = tracker_with_container()
    tracker.apply_wait_result(WEB, 5, EXIT_STATUS, moment(1))
    assert tracker.next_due() == SECOND + WAITED_EXIT_GRACE_NS
    (query,) = tracker.due_queries(moment(3))
    (end,) = tracker.apply_query_result(query, None, moment(3))
    assert (summarize([end]), end.exit_info) == (INFERRED_EXIT, ExitInfo(9, 123))


def test_exit_event_status_is_used_when_task_wait_ended_first() -> None:
    tracker = tracker_with_container()
    tracker.apply_wait_result(WEB, 5, EXIT_STATUS, moment(1))
    (end,) = tracker.process_event(exited(5, 1.1, 9), moment(1.2))
    assert (summarize([end]), end.exit_info) == (EXITED, ExitInfo(9, wall(1.1)))
    assert tracker.next_due() is None


def test_task_wait_status_is_kept_when_wait_ends_before_start() -> None:
    tracker = synced_tracker()
    tracker.update_metadata(make_metadata())
    step(tracker, created(5, 1))
    tracker.apply_wait_result(WEB, 5, EXIT_STATUS, moment(2))
    assert step(tracker, started(5, 1.5), moment(3)) == STARTED
    (query,) = tracker.due_queries(moment(5))
    (end,) = tracker.apply_query_result(query, None, moment(5))
    assert end.exit_info == ExitInfo(9, 123)


def test_task_wait_of_other_task_is_ignored() -> None:
    tracker = synced_tracker()
    tracker.update_metadata(make_metadata())
    tracker.apply_wait_result(WEB, 4, EXIT_STATUS, moment(1))
    tracker.apply_wait_result(DB, 4, EXIT_STATUS, moment(1))
    step(tracker, created(4, 1))
    tracker.apply_wait_result(WEB, 4, EXIT_STATUS, moment(1))
    step(tracker, created(5, 2))
    assert step(tracker, started(5, 3)) == STARTED
    (query,) = tracker.due_queries(moment(3))
    (end,) = tracker.apply_query_result(query, None, moment(4))
    assert end.exit_info == ExitInfo()


# --- events out of order: timestamps trigger queries, and the results decide ---


def test_late_start_of_older_incarnation_keeps_newer_incarnation() -> None:
    tracker = tracker_with_container(6)
    assert step(tracker, created(5, 0.1), moment(3)) == []
    assert step(tracker, started(5, 0.15), moment(3)) == []
    (query,) = tracker.due_queries(moment(3))
    assert summarize(tracker.apply_query_result(query, task(6), moment(3))) == []
    assert running_incarnations(tracker) == [("web", 6, False)]


def test_unexpected_start_and_exit_keep_newer_incarnation() -> None:
    tracker = tracker_with_container(6)
    assert step(tracker, exited(5, 2), moment(3)) == []
    assert step(tracker, started(5, 2), moment(3)) == []
    (query,) = tracker.due_queries(moment(3))
    assert summarize(tracker.apply_query_result(query, task(6), moment(3))) == []
    assert running_incarnations(tracker) == [("web", 6, False)]


def test_unconfirmed_start_emitted_when_query_confirms_task() -> None:
    tracker = tracker_with_container()
    assert step(tracker, started(6, 2)) == [], "no event of the creation or of the previous exit"
    (query,) = tracker.due_queries(moment(2))
    assert summarize(tracker.apply_query_result(query, task(6), moment(2.1))) == [
        *INFERRED_EXIT,
        ("started", "live", 6),
    ]


def test_unexpected_late_start_schedules_task_query() -> None:
    tracker = tracker_with_container()
    step(tracker, paused(2))
    step(tracker, exited(5, 3))
    assert step(tracker, started(4, 0.1), moment(4)) == []
    assert tracker.counts["unconfirmed_start"] == 1
    assert due_query_keys(tracker, 4) == [WEB]


def test_late_start_emitted_when_exit_is_pending() -> None:
    tracker = synced_tracker()
    step(tracker, paused(2))
    step(tracker, exited(5, 3))
    assert step(tracker, started(5, 1), moment(4)) == STARTED + EXITED


def test_expected_late_start_emitted_and_schedules_task_query() -> None:
    tracker = synced_tracker()
    step(tracker, created(5, 1))
    assert step(tracker, paused(3)) == []
    assert step(tracker, started(5, 2), moment(4)) == STARTED
    (query,) = tracker.due_queries(moment(4))
    assert summarize(tracker.apply_query_result(query, task(5, TaskStatus.PAUSED), moment(4))) == [
        ("paused", "inferred", 5)
    ]


@pytest.mark.parametrize("event", [paused(0.1), resumed(1), paused(9)], ids=["late", "repeated", "future"])
def test_contradicting_pause_event_schedules_task_query(event: ContainerEvent) -> None:
    tracker = tracker_with_container()
    assert step(tracker, event, moment(2)) == []
    assert tracker.counts["unexpected_pause"] == 1
    (query,) = tracker.due_queries(moment(2))
    transitions = tracker.apply_query_result(query, task(5, TaskStatus.PAUSED), moment(2.5))
    assert summarize(transitions) == [("paused", "inferred", 5)]
    assert (transitions[0].at, transitions[0].paused) == (wall(2.5), True)
    assert summarize(
        tracker.apply_query_result(query._replace(generation=query.generation + 1), task(5), moment(3))
    ) == [("unpaused", "inferred", 5)]


def test_pause_of_unknown_container_schedules_task_query() -> None:
    tracker = synced_tracker()
    assert step(tracker, paused(1)) == []
    assert due_query_keys(tracker, 1) == [WEB]


def test_late_pause_not_emitted_when_resume_came_first() -> None:
    tracker = tracker_with_container()
    assert step(tracker, resumed(3)) == []
    assert step(tracker, paused(2), moment(4)) == []
    assert running_incarnations(tracker) == [("web", 5, False)]


def test_pause_not_emitted_when_older_than_query_result() -> None:
    tracker = tracker_with_container()
    (query,) = query_task(tracker)
    tracker.apply_query_result(query, task(5), moment(3))
    assert step(tracker, paused(2), moment(4)) == []
    assert due_query_keys(tracker, 4) == [WEB]


def test_pause_of_unconfirmed_incarnation_schedules_task_query() -> None:
    tracker = tracker_with_container()
    tracker.disconnect()
    assert step(tracker, paused(2)) == []
    assert due_query_keys(tracker, 2) == [WEB]


def test_repeated_start_confirms_only_incarnation_with_same_pid() -> None:
    tracker = tracker_with_container()
    step(tracker, exited(5, 1))
    step(tracker, created(6, 2))
    step(tracker, started(6, 3))
    tracker.disconnect()
    step(tracker, started(5, 0.2), moment(4))
    assert step(tracker, paused(5)) == []
    step(tracker, started(6, 3), moment(6))
    assert step(tracker, paused(7)) == [("paused", "live", 6)]


@pytest.mark.parametrize("hours", [-2, 2])
def test_tracker_emits_transitions_when_wall_clock_steps(hours: int) -> None:
    tracker = tracker_with_container()
    step(tracker, paused(2))
    offset = hours * 3600
    transitions = tracker.process_event(resumed(3 + offset), Instant(wall(3 + offset), 3 * SECOND))
    assert summarize(transitions) == [("unpaused", "live", 5)]
    assert transitions[0].at == wall(3 + offset)


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
    tracker.apply_wait_result(WEB, 5, EXIT_STATUS, moment(2))
    assert summarize(tracker.apply_query_result(query, task(5), moment(2))) == []
    assert due_query_keys(tracker, 2) == [WEB]


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
    ("status", "expected"),
    [
        (TaskStatus.RUNNING, [("started", "inferred", 5)]),
        (TaskStatus.PAUSED, [("started", "inferred", 5), ("paused", "inferred", 5)]),
        (TaskStatus.PAUSING, [("started", "inferred", 5), ("paused", "inferred", 5)]),
        (TaskStatus.STOPPED, [("started", "inferred", 5), *INFERRED_EXIT]),
        (TaskStatus.CREATED, []),
        (TaskStatus.UNKNOWN, []),
    ],
)
def test_unknown_task_emits_inferred_start_when_namespace_synced(
    status: TaskStatus, expected: TransitionSummary
) -> None:
    tracker = synced_tracker()
    (query,) = query_task(tracker)
    transitions = tracker.apply_query_result(query, task(5, status), moment(1))
    assert summarize(transitions) == expected
    assert tracker.preexisting_count == 0
    if status is TaskStatus.STOPPED:
        assert transitions[-1].exit_info == ExitInfo(3, wall(0.5))


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


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (TaskStatus.RUNNING, []),
        (TaskStatus.PAUSED, [("paused", "inferred", 5)]),
        (TaskStatus.STOPPED, INFERRED_EXIT),
        (TaskStatus.CREATED, []),
        (TaskStatus.UNKNOWN, []),
    ],
)
def test_query_result_updates_running_incarnation(status: TaskStatus, expected: TransitionSummary) -> None:
    tracker = tracker_with_container()
    (query,) = query_task(tracker)
    transitions = tracker.apply_query_result(query, task(5, status), moment(1))
    assert summarize(transitions) == expected
    if status is TaskStatus.STOPPED:
        assert transitions[0].exit_info == ExitInfo(3, wall(0.5))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (TaskStatus.RUNNING, [*INFERRED_EXIT, ("started", "inferred", 6)]),
        (TaskStatus.STOPPED, [*INFERRED_EXIT, ("started", "inferred", 6), ("exited", "inferred", 6)]),
        (TaskStatus.CREATED, INFERRED_EXIT),
    ],
)
def test_query_result_with_other_pid_ends_incarnation(status: TaskStatus, expected: TransitionSummary) -> None:
    tracker = tracker_with_container()
    (query,) = query_task(tracker)
    assert summarize(tracker.apply_query_result(query, task(6, status), moment(1))) == expected


def test_query_result_does_not_restart_exited_pid() -> None:
    tracker = tracker_with_container()
    step(tracker, exited(5, 1))
    for status in (TaskStatus.RUNNING, TaskStatus.STOPPED, TaskStatus.CREATED):
        (query,) = query_task(tracker)
        assert summarize(tracker.apply_query_result(query, task(5, status), moment(2))) == []
        assert running_incarnations(tracker) == []


def test_query_result_with_exited_pid_ends_newer_incarnation() -> None:
    tracker = tracker_with_container()
    step(tracker, exited(5, 1))
    step(tracker, created(6, 2))
    step(tracker, started(6, 3))
    (query,) = query_task(tracker)
    assert summarize(tracker.apply_query_result(query, task(5, TaskStatus.STOPPED), moment(4))) == [
        ("exited", "inferred", 6)
    ]


@pytest.mark.parametrize("status", [TaskStatus.RUNNING, TaskStatus.STOPPED])
def test_pending_exit_emitted_when_query_finds_same_task(status: TaskStatus) -> None:
    tracker = synced_tracker()
    step(tracker, exited(5, 1, 9))
    (query,) = query_task(tracker)
    transitions = tracker.apply_query_result(query, task(5, status), moment(2))
    assert summarize(transitions) == [("started", "inferred", 5), *EXITED]
    assert transitions[-1].exit_info == ExitInfo(9, wall(1))
    assert tracker.next_due() is None


def test_unstarted_task_exit_emitted_when_query_finds_running() -> None:
    tracker = synced_tracker()
    step(tracker, created(5, 1))
    step(tracker, exited(5, 2))
    (query,) = query_task(tracker)
    assert summarize(tracker.apply_query_result(query, task(5), moment(2))) == [("started", "inferred", 5), *EXITED]


def test_stopped_task_exit_waits_for_start_when_only_created() -> None:
    tracker = synced_tracker()
    step(tracker, created(5, 1))
    (query,) = query_task(tracker)
    assert summarize(tracker.apply_query_result(query, task(5, TaskStatus.STOPPED), moment(2))) == []
    step(tracker, exited(5, 2))
    (query,) = query_task(tracker)
    assert summarize(tracker.apply_query_result(query, task(5, TaskStatus.STOPPED), moment(2))) == []
    assert step(tracker, started(5, 1.5), moment(3)) == STARTED + EXITED


def test_pending_exit_precedes_other_task_found_by_query() -> None:
    tracker = tracker_with_container(6)
    step(tracker, exited(5, 1))
    (query,) = tracker.due_queries(moment(1))
    assert summarize(tracker.apply_query_result(query, task(6), moment(1))) == []
    assert step(tracker, exited(6, 2)) == [("exited", "live", 6)]
    assert tracker.next_due() is None
    tracker = synced_tracker()
    step(tracker, exited(5, 1))
    (query,) = query_task(tracker)
    assert summarize(tracker.apply_query_result(query, task(6), moment(1))) == [
        ("started", "inferred", 5),
        *EXITED,
        ("started", "inferred", 6),
    ]


def test_created_task_found_by_query_is_expected_to_start() -> None:
    tracker = synced_tracker()
    (query,) = query_task(tracker)
    tracker.apply_query_result(query, task(5, TaskStatus.CREATED), moment(1))
    step(tracker, exited(5, 2))
    assert summarize(tracker.expire_pending_exits(moment(100))) == []


# --- failed queries ---


def test_failed_query_leaves_incarnation_unconfirmed() -> None:
    tracker = tracker_with_container()
    (query,) = query_task(tracker)
    tracker.query_failed(query)
    ((_state, incarnation),) = tracker.incarnations()
    assert not incarnation.confirmed
    assert tracker.next_due() is None
    (query,) = query_task(tracker)
    tracker.apply_query_result(query, task(5), moment(1))
    assert incarnation.confirmed


@pytest.mark.parametrize("has_metadata", [True, False])
def test_failed_query_leaves_state_unknown(has_metadata: bool) -> None:
    tracker = synced_tracker()
    if has_metadata:
        tracker.update_metadata(make_metadata())
    (query,) = query_task(tracker)
    tracker.query_failed(query)
    (entry,) = tracker.entries()
    assert entry.state_unknown
    (query,) = query_task(tracker)
    assert summarize(tracker.apply_query_result(query, task(5), moment(1))) == []
    assert (tracker.preexisting_count, entry.state_unknown) == (1, False)


@pytest.mark.parametrize("result", [None, task(5, TaskStatus.STOPPED), task(6, TaskStatus.CREATED)])
def test_query_result_clears_state_unknown_when_nothing_changed(result: Task | None) -> None:
    tracker = tracker_with_container()
    step(tracker, exited(5, 1))
    (query,) = query_task(tracker)
    tracker.apply_query_result(query, task(0, TaskStatus.UNKNOWN), moment(2))
    entry = tracker.find(WEB)
    assert entry is not None
    assert entry.state_unknown
    (query,) = query_task(tracker)
    tracker.apply_query_result(query, result, moment(3))
    assert not entry.state_unknown


def test_failed_query_repeated_when_events_changed_state() -> None:
    tracker = tracker_with_container()
    (query,) = query_task(tracker)
    step(tracker, exited(5, 1))
    tracker.query_failed(query)
    assert due_query_keys(tracker) == [WEB]
    assert not any(entry.state_unknown for entry in tracker.entries())


def test_created_container_and_start_need_no_query_result() -> None:
    tracker = synced_tracker()
    for event in (ContainerCreated(WEB, wall(1), "busybox", "runc"), started(5, 2)):
        (query,) = query_task(tracker)
        tracker.query_failed(query)
        tracker.update_metadata(make_metadata())
        step(tracker, event)
        (entry,) = tracker.entries()
        assert not entry.state_unknown


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


def test_namespace_is_synced_only_after_completed_snapshot() -> None:
    tracker = ImmediateTracker(BOOT_ID)
    assert not tracker.has_synced("shop")
    tracker.mark_synced({"shop", "lab"})
    assert (tracker.has_synced("default"), tracker.has_synced("shop")) == (True, False)
    tracker.mark_synced({"shop", "default"})
    assert [tracker.has_synced(each) for each in ("default", "shop", "lab")] == [True, False, True]
    tracker.mark_synced(set())
    assert tracker.has_synced("shop")


# --- metadata, pods ---


def test_transition_carries_latest_metadata() -> None:
    tracker = tracker_with_container()
    tracker.update_metadata(make_metadata(labels={"tier": "back"}, updated_at=2))
    (pause,) = tracker.process_event(paused(1), moment(1))
    assert pause.metadata == make_metadata(labels={"tier": "back"}, updated_at=2)


def test_metadata_update_keeps_fields_missing_from_event() -> None:
    tracker = tracker_with_container()
    tracker.update_metadata(make_metadata(labels={"tier": "back"}, runtime="", created_at=None, updated_at=7))
    entry = tracker.find(WEB)
    assert entry is not None
    assert entry.metadata == make_metadata(labels={"tier": "back"}, updated_at=7)
    tracker.update_metadata(make_metadata(DB, runtime="", created_at=None))
    entry = tracker.find(DB)
    assert entry is not None
    assert entry.metadata == make_metadata(DB, runtime="", created_at=None)


POD = PodReference("web-1", "prod", "uid-1", "app")
PAUSE = ContainerKey("k8s.io", "pause")
APP = ContainerKey("k8s.io", "app")


def test_pod_labels_come_from_sandbox_until_sandbox_is_deleted() -> None:
    tracker = synced_tracker()
    tracker.update_metadata(make_metadata(APP, pod=POD))
    (start,) = tracker.process_event(started(5, 1, APP), moment(1))
    assert start.pod_labels is None
    tracker.update_metadata(make_metadata(PAUSE, kind="sandbox", pod=POD, pod_labels={"app": "web"}))
    assert tracker.snapshot_records(moment(2))[0].pod_labels == {"app": "web"}
    tracker.process_event(ContainerDeleted(ContainerKey("k8s.io", "other"), wall(3)), moment(3))
    tracker.process_event(ContainerDeleted(APP, wall(3)), moment(3))
    assert tracker.snapshot_records(moment(3))[0].pod_labels == {"app": "web"}
    tracker.process_event(ContainerDeleted(PAUSE, wall(4)), moment(4))
    assert tracker.snapshot_records(moment(4))[0].pod_labels is None


def test_sandbox_without_pod_has_no_pod_labels() -> None:
    tracker = synced_tracker()
    tracker.update_metadata(make_metadata(PAUSE, kind="sandbox", pod_labels={"app": "web"}))
    (start,) = tracker.process_event(started(5, 1, PAUSE), moment(1))
    assert start.pod_labels is None


def test_container_becomes_tombstone_when_deleted_and_exited() -> None:
    tracker = tracker_with_container()
    step(tracker, ContainerDeleted(WEB, wall(1)))
    assert [entry.key for entry in tracker.entries()] == [WEB], "the container is still running"
    step(tracker, exited(5, 2))
    assert list(tracker.entries()) == []
    entry = tracker.find(WEB)
    assert entry is not None
    assert list(entry.exited_pids) == [5]
    assert step(tracker, started(5, 0.2), moment(3)) == []
    assert list(tracker.entries()) == []
    tracker.update_metadata(make_metadata())
    assert list(tracker.entries()) == [entry]
    assert not entry.deleted


def test_oldest_tombstone_evicted_when_limit_is_reached() -> None:
    tracker = synced_tracker()
    ids = [ContainerKey("shop", str(number)) for number in range(MAX_TOMBSTONES + 1)]
    for key in ids:
        tracker.process_event(exited(1, 1, exec_id="sh", key=key), moment(1))
        if key == ids[-2]:
            tracker.process_event(exited(1, 1, exec_id="sh", key=ids[0]), moment(1))
    assert tracker.find(ids[1]) is None
    assert [tracker.find(key) is not None for key in (ids[0], ids[2], ids[-1])] == [True, True, True]
    assert list(tracker.entries()) == []


def test_remove_keeps_container_while_running() -> None:
    tracker = tracker_with_container()
    tracker.update_metadata(make_metadata(DB))
    tracker.remove(DB)
    tracker.remove(WEB)
    tracker.remove(APP)
    assert [entry.key for entry in tracker.entries()] == [WEB]
    step(tracker, exited(5, 1))
    assert list(tracker.entries()) == []


# --- gaps in the stream ---


def test_disconnect_clears_confirmations_and_queries() -> None:
    tracker = tracker_with_container()
    tracker.schedule_query(WEB)
    tracker.disconnect()
    assert tracker.next_due() is None
    ((entry, incarnation),) = tracker.incarnations()
    assert (incarnation.confirmed, entry.generation, entry.created_pids) == (False, 0, ())


def test_exit_in_gap_emitted_when_task_created_before_gap() -> None:
    tracker = synced_tracker()
    step(tracker, created(5, 1))
    assert tracker.find(WEB) not in list(tracker.entries()), "without metadata it is a tombstone"
    tracker.disconnect()
    step(tracker, exited(5, 2))
    assert summarize(tracker.expire_pending_exits(moment(32))) == [("started", "inferred", 5), *EXITED]


def test_unstarted_task_not_inferred_when_exit_precedes_gap() -> None:
    tracker = synced_tracker()
    step(tracker, created(4, 1))
    step(tracker, created(5, 1))
    step(tracker, exited(5, 2))
    tracker.disconnect()
    (query,) = query_task(tracker)
    assert summarize(tracker.apply_query_result(query, task(4, TaskStatus.STOPPED), moment(4))) == [
        ("started", "inferred", 4),
        ("exited", "inferred", 4),
    ]
    assert summarize(tracker.expire_pending_exits(moment(100))) == []
    assert tracker.counts["never_started"] == 1


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


@pytest.mark.parametrize(("status", "expected"), [(TaskStatus.STOPPED, INFERRED_EXIT), (TaskStatus.RUNNING, [])])
def test_query_result_without_pid_applies_to_known_incarnation(status: TaskStatus, expected: TransitionSummary) -> None:
    assert summarize(tracker_with_container().apply_task_state(WEB, Task(WEB, 0, status), moment(6))) == expected


def test_query_result_without_pid_ignored_when_task_is_unknown() -> None:
    tracker = synced_tracker()
    tracker.query_failed(tracker.make_query(WEB))
    (entry,) = tracker.entries()
    assert summarize(tracker.apply_task_state(WEB, Task(WEB, 0, TaskStatus.STOPPED), moment(6))) == []
    assert running_incarnations(tracker) == []
    assert not entry.state_unknown


@pytest.mark.parametrize(
    ("pending_exit", "end", "expected"),
    [
        pytest.param(exited(6, 1), exited(5, 2), [], id="older"),
        pytest.param(exited(6, 3), exited(5, 2), [("started", "inferred", 6), ("exited", "live", 6)], id="newer"),
        pytest.param(exited(6, 1), deleted(5, 2), [], id="older than a lost exit"),
        pytest.param(
            replace(exited(6, 1), exited_at=None),
            exited(5, 2),
            [("started", "inferred", 6), ("exited", "live", 6)],
            id="unknown time",
        ),
        pytest.param(
            exited(6, 1),
            replace(exited(5, 2), exited_at=None),
            [("started", "inferred", 6), ("exited", "live", 6)],
            id="unknown time of the other exit",
        ),
    ],
)
def test_pending_exit_belongs_to_newer_incarnation_unless_older(
    pending_exit: TaskExited, end: ContainerEvent, expected: TransitionSummary
) -> None:
    tracker = tracker_with_container()
    step(tracker, pending_exit, moment(3))
    assert len(step(tracker, end, moment(4))) == 1
    assert summarize(tracker.expire_pending_exits(moment(33))) == expected
    assert step(tracker, pending_exit, moment(40)) == []
    assert tracker.next_due() is None


def test_oom_event_after_exit_not_reported_with_next_exit() -> None:
    tracker = tracker_with_container()
    step(tracker, exited(5, 1))
    tracker.process_event(TaskOOM(WEB, wall(2)), moment(2))
    step(tracker, started(6, 3))
    exit_info = tracker.process_event(exited(6, 4), moment(4))[0].exit_info
    assert exit_info is not None
    assert exit_info.oom is None
