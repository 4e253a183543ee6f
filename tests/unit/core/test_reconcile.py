"""Reconciliation of the listing, the events of the window and the tracked state: transitions, queries, metadata."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bridge.core.container_state import ExitInfo
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    Metadata,
    Task,
    TaskStatus,
)
from bridge.core.reconcile import Listing, find_mismatches, has_unconfirmed, reconcile
from bridge.core.tracker import Tracker
from tests.unit.core.factories import (
    BOOT_ID,
    DB,
    WEB,
    ImmediateTracker,
    TransitionSummary,
    created,
    exited,
    make_metadata,
    moment,
    paused,
    started,
    summarize,
    synced_tracker,
    task,
    tracker_with_container,
    wall,
)

UNKNOWN = task(0, TaskStatus.UNKNOWN)


def listing(*tasks: Task, containers: list[Metadata] | None = None, failed: list[str] | None = None) -> Listing:
    containers = [make_metadata()] if containers is None else containers
    return Listing(
        namespaces=["default", "shop"],
        failed=failed or [],
        containers={metadata.key: metadata for metadata in containers},
        tasks={task.key: task for task in tasks},
    )


def tracker_after_gap(*window: ContainerEvent) -> Tracker:
    """Return a tracker with a running container that was disconnected, and received ``window`` after the reconnect."""
    tracker = tracker_with_container()
    tracker.disconnect()
    for event in window:
        tracker.process_event(event, moment(10))
    return tracker


def merge(tracker: Tracker, listed: Listing) -> TransitionSummary:
    return summarize(reconcile(tracker, listed, moment(10)))


def due_query_keys(tracker: Tracker) -> list[ContainerKey]:
    return [query.key for query in tracker.due_queries(moment(10))]


def names(tracker: Tracker) -> list[str]:
    return [entry.key.id for entry in tracker.entries()]


# --- without events in the window ---


@pytest.mark.parametrize(
    ("listed_task", "expected"),
    [
        (task(5), []),
        (task(5, TaskStatus.PAUSED), [("paused", "inferred", 5)]),
        (task(5, TaskStatus.STOPPED), [("exited", "inferred", 5)]),
        (task(6), [("exited", "inferred", 5), ("started", "inferred", 6)]),
        (task(6, TaskStatus.CREATED), [("exited", "inferred", 5)]),
        (
            task(6, TaskStatus.STOPPED),
            [("exited", "inferred", 5), ("started", "inferred", 6), ("exited", "inferred", 6)],
        ),
    ],
)
def test_reconcile_emits_missed_transitions(listed_task: Task, expected: TransitionSummary) -> None:
    tracker = tracker_after_gap()
    transitions = reconcile(tracker, listing(listed_task), moment(10))
    assert summarize(transitions) == expected
    assert due_query_keys(tracker) == []
    assert not has_unconfirmed(tracker)
    if listed_task.status is TaskStatus.STOPPED:
        assert transitions[-1].exit_info == ExitInfo(3, wall(0.5))


@pytest.mark.parametrize("tasks", [[], [UNKNOWN]])
def test_reconcile_queries_task_when_missing_or_unknown(tasks: list[Task]) -> None:
    tracker = tracker_after_gap()
    assert merge(tracker, listing(*tasks)) == []
    assert has_unconfirmed(tracker)
    assert due_query_keys(tracker) == [WEB]


def test_reconcile_treats_first_listed_tasks_as_preexisting() -> None:
    tracker = ImmediateTracker(BOOT_ID)
    stopped, unstarted = ContainerKey("shop", "stopped"), ContainerKey("shop", "unstarted")
    tasks = [
        task(5),
        task(6, TaskStatus.PAUSED, DB),
        task(7, TaskStatus.STOPPED, stopped),
        task(8, TaskStatus.CREATED, unstarted),
    ]
    assert merge(tracker, listing(*tasks, containers=[make_metadata(task.key) for task in tasks])) == []
    assert [(record.key.id, record.pid, record.paused) for record in tracker.snapshot_records(moment(10))] == [
        ("web", 5, False),
        ("db", 6, True),
    ]
    assert tracker.preexisting_count == 2
    assert due_query_keys(tracker) == []


def test_reconcile_queries_task_when_container_has_none_listed() -> None:
    tracker = ImmediateTracker(BOOT_ID)
    assert merge(tracker, listing()) == []
    assert due_query_keys(tracker) == [WEB]


def test_reconcile_emits_start_when_task_has_no_metadata() -> None:
    tracker = synced_tracker()
    assert merge(tracker, listing(task(5), containers=[])) == [("started", "inferred", 5)]


def test_reconcile_queries_task_when_container_is_not_listed() -> None:
    tracker = tracker_after_gap()
    assert merge(tracker, listing(containers=[])) == []
    assert due_query_keys(tracker) == [WEB]


def test_reconcile_skips_namespace_when_listing_failed() -> None:
    tracker = tracker_after_gap()
    tracker.update_metadata(make_metadata(DB))
    assert merge(tracker, listing(containers=[], failed=["shop"])) == []
    assert due_query_keys(tracker) == []
    assert names(tracker) == ["web", "db"]
    assert has_unconfirmed(tracker)


# --- events of the window ---


@pytest.mark.parametrize(
    ("window", "listed_task", "expected"),
    [
        pytest.param([exited(5, 2), created(6, 2), started(6, 3)], task(7), [], id="another incarnation is listed"),
        pytest.param([exited(5, 2), created(6, 3)], task(6), [], id="start event is missing"),
        pytest.param([paused(2)], task(5), [], id="listing is older than the pause"),
        pytest.param([exited(6, 2)], task(5), [], id="exit of another task"),
        pytest.param([exited(5, 2), exited(6, 3)], task(6), [], id="exit without a start"),
        pytest.param([created(6, 2), started(6, 3)], task(6), [], id="previous exit is missing"),
        pytest.param([created(6, 3)], task(6, TaskStatus.CREATED), [], id="task created while another is running"),
        pytest.param(
            [exited(5, 2), created(6, 2), started(6, 3)], task(5, TaskStatus.STOPPED), [], id="previous task is listed"
        ),
        pytest.param([exited(5, 2)], task(5), [], id="listing is older than the exit, or the pid has returned"),
        pytest.param(
            [exited(5, 2), created(5, 3), started(5, 4)],
            task(5, TaskStatus.STOPPED),
            [],
            id="previous task with the same pid is listed",
        ),
    ],
)
def test_reconcile_queries_task_when_listing_contradicts_events(
    window: list[ContainerEvent], listed_task: Task, expected: TransitionSummary
) -> None:
    tracker = tracker_after_gap(*window)
    before = [(incarnation.pid, incarnation.paused) for _entry, incarnation in tracker.incarnations()]
    assert merge(tracker, listing(listed_task)) == expected
    assert [(incarnation.pid, incarnation.paused) for _entry, incarnation in tracker.incarnations()] == before
    assert WEB in due_query_keys(tracker)


@pytest.mark.parametrize(
    ("window", "listed_task"),
    [
        pytest.param([exited(5, 2)], task(5, TaskStatus.STOPPED), id="exit in both"),
        pytest.param([exited(5, 2), created(6, 2), started(6, 3)], task(6), id="new incarnation in both"),
        pytest.param([ContainerUpdated(WEB, wall(2), "busybox", {})], task(5), id="only metadata changed"),
    ],
)
def test_reconcile_emits_nothing_when_events_explain_listing(window: list[ContainerEvent], listed_task: Task) -> None:
    tracker = tracker_after_gap(*window)
    assert merge(tracker, listing(listed_task)) == []
    assert due_query_keys(tracker) == []
    assert not has_unconfirmed(tracker)


def test_reconcile_keeps_pending_exit_when_listed_task_is_older() -> None:
    tracker = tracker_after_gap(exited(6, 2, 9))
    merge(tracker, listing(task(5)))
    (query,) = tracker.due_queries(moment(10))
    assert summarize(tracker.apply_query_result(query, task(6, TaskStatus.STOPPED), moment(10))) == [
        ("exited", "inferred", 5),
        ("started", "inferred", 6),
        ("exited", "live", 6),
    ]


def test_reconcile_emits_exit_when_started_pid_is_listed_stopped() -> None:
    tracker = tracker_after_gap(exited(5, 2), started(6, 3))
    stopped = replace(task(6, TaskStatus.STOPPED), exited_at=wall(4))
    transitions = reconcile(tracker, listing(stopped), moment(10))
    assert summarize(transitions) == [("exited", "inferred", 6)]
    assert transitions[0].exit_info == ExitInfo(3, wall(4))
    assert due_query_keys(tracker) == []


def test_reconcile_queries_when_listed_exit_is_before_start() -> None:
    """The listed task is an earlier one with the same pid, which was deleted after the listing."""
    tracker = tracker_after_gap(exited(5, 2), started(6, 3))
    assert summarize(reconcile(tracker, listing(task(6, TaskStatus.STOPPED)), moment(10))) == []
    assert due_query_keys(tracker) == [WEB]


def test_reconcile_clears_unconfirmed_state_after_failed_query() -> None:
    tracker = tracker_after_gap(exited(5, 2))
    tracker.query_failed(tracker.make_query(WEB))
    assert has_unconfirmed(tracker)
    merge(tracker, listing(task(5, TaskStatus.STOPPED)))
    assert not has_unconfirmed(tracker)


# --- metadata ---


def metadata_of(tracker: Tracker, key: ContainerKey = WEB) -> Metadata | None:
    entry = tracker.find(key)
    assert entry is not None
    return entry.metadata


UPDATED = ContainerUpdated(WEB, wall(2), "busybox", {})
OLD, NEW = make_metadata(labels={"is": "old"}, updated_at=5), make_metadata(labels={"is": "new"}, updated_at=6)


def test_reconcile_takes_listed_metadata_when_window_is_empty() -> None:
    tracker = tracker_with_container()
    tracker.update_metadata(NEW)
    tracker.disconnect()
    merge(tracker, listing(task(5), containers=[OLD]))
    assert metadata_of(tracker) == OLD


@pytest.mark.parametrize(
    ("from_event", "listed", "expected"),
    [(NEW, OLD, NEW), (OLD, NEW, NEW), (make_metadata(created_at=None, updated_at=None), OLD, OLD)],
)
def test_reconcile_takes_newer_metadata_when_window_has_update(
    from_event: Metadata, listed: Metadata, expected: Metadata
) -> None:
    tracker = tracker_after_gap()
    tracker.update_metadata(from_event)
    tracker.process_event(UPDATED, moment(2))
    merge(tracker, listing(task(5), containers=[listed]))
    assert metadata_of(tracker) == expected


@pytest.mark.parametrize(
    ("known", "listed", "expected"),
    [
        pytest.param((7000, 7000), (1.5, 1.5), "listed", id="recreated since"),
        pytest.param((7000, 7001), (7000, 1.5), "listed", id="updated since"),
        pytest.param((7000, 1.5), (7000, 7001), "known", id="known update since"),
        pytest.param((7000, 1.4), (7000, 1.5), "listed", id="both updates since"),
    ],
)
def test_reconcile_compares_metadata_when_clock_was_set_back(
    known: tuple[float, float], listed: tuple[float, float], expected: str
) -> None:
    (known_metadata, listed_metadata) = (
        make_metadata(labels={"is": name}, created_at=wall(created_at), updated_at=wall(updated_at))
        for name, (created_at, updated_at) in (("known", known), ("listed", listed))
    )
    tracker = tracker_after_gap()
    tracker.update_metadata(known_metadata)
    tracker.process_event(UPDATED, moment(2))
    merge(tracker, listing(task(5), containers=[listed_metadata]))
    assert metadata_of(tracker) == (known_metadata if expected == "known" else listed_metadata)


def test_reconcile_takes_listed_metadata_when_timestamps_equal() -> None:
    tracker = tracker_after_gap()
    tracker.update_metadata(make_metadata(labels=None, updated_at=5))
    tracker.process_event(UPDATED, moment(2))
    merge(tracker, listing(task(5), containers=[OLD]))
    assert metadata_of(tracker) == OLD


def test_reconcile_drops_container_deleted_in_window() -> None:
    tracker = tracker_after_gap(exited(5, 2), ContainerDeleted(WEB, wall(3)), ContainerDeleted(DB, wall(3)))
    merge(tracker, listing(containers=[make_metadata(), make_metadata(DB)]))
    assert names(tracker) == []


def test_reconcile_keeps_container_recreated_after_deletion() -> None:
    tracker = tracker_after_gap(exited(5, 2), ContainerDeleted(WEB, wall(3)))
    merge(tracker, listing(containers=[make_metadata(created_at=wall(4))]))
    assert names(tracker) == ["web"]


def test_reconcile_drops_container_from_gap_deleted_in_window() -> None:
    tracker = tracker_after_gap(exited(5, 2), ContainerDeleted(WEB, wall(3)))
    merge(tracker, listing(containers=[make_metadata(created_at=wall(2.5), updated_at=wall(2.7))]))
    assert names(tracker) == []


def test_reconcile_takes_metadata_of_container_recreated_in_gap() -> None:
    tracker = tracker_with_container()
    tracker.update_metadata(NEW)
    tracker.process_event(exited(5, 1), moment(1))
    tracker.process_event(ContainerDeleted(WEB, wall(2)), moment(2))
    tracker.disconnect()
    merge(tracker, listing(task(6), containers=[OLD]))
    assert metadata_of(tracker) == OLD, "although the clock was set back"
    assert names(tracker) == ["web"]


def test_reconcile_emits_exit_in_gap_with_previous_metadata() -> None:
    tracker = tracker_after_gap()
    listed = listing(task(6), containers=[make_metadata(labels={"tier": "new"}, created_at=wall(5), name="new")])
    end, start = reconcile(tracker, listed, moment(10))
    assert (end.type, end.pid, end.metadata) == ("exited", 5, make_metadata())
    assert (start.type, start.pid, start.metadata) == ("started", 6, listed.containers[WEB])


@pytest.mark.parametrize(
    "listed_task", [None, task(5, TaskStatus.UNKNOWN), task(5)], ids=["none", "unknown", "same pid"]
)
def test_reconcile_ends_run_of_recreated_container_as_it_was(listed_task: Task | None) -> None:
    tracker = tracker_after_gap()
    recreated = make_metadata(labels={"tier": "new"}, created_at=wall(5), name="new")
    listed = listing(*filter(None, [listed_task]), containers=[recreated])
    end, *rest = reconcile(tracker, listed, moment(10))
    assert (end.type, end.pid, end.metadata, end.incarnation) == ("exited", 5, make_metadata(), "5f3c9a1e-5")
    expected = [("started", recreated, "5f3c9a1e-5-2")] if listed_task == task(5) else []
    assert [(each.type, each.metadata, each.incarnation) for each in rest] == expected


def test_exit_has_old_metadata_when_next_container_has_other_pid() -> None:
    recreated = make_metadata(labels={"tier": "new"}, created_at=wall(0.1))  # by the clock, before the known run
    transitions = reconcile(tracker_after_gap(), listing(task(6), containers=[recreated]), moment(10))
    assert [(each.type, each.metadata) for each in transitions] == [("exited", make_metadata()), ("started", recreated)]


def test_reconcile_ends_all_runs_of_recreated_containers() -> None:
    tracker = tracker_with_container()
    tracker.update_metadata(make_metadata(DB))
    tracker.process_event(started(7, 0.3, DB), moment(0.3))
    tracker.disconnect()
    recreated = [make_metadata(key, created_at=wall(5)) for key in (WEB, DB)]
    assert merge(tracker, listing(containers=recreated)) == [("exited", "inferred", 5), ("exited", "inferred", 7)]


def test_reconcile_keeps_scope_of_run_while_filters_are_the_same() -> None:
    tracker = tracker_after_gap()
    assert merge(tracker, listing(task(5), containers=[make_metadata(in_scope=False)])) == []
    assert len(tracker.snapshot_records(moment(11))) == 1


def test_reconcile_keeps_run_when_known_metadata_was_older() -> None:
    tracker = tracker_after_gap()
    assert merge(tracker, listing(task(5), containers=[make_metadata(created_at=wall(0.1))])) == []


def test_reconcile_keeps_run_when_clock_was_set_back() -> None:
    tracker = tracker_after_gap()
    assert merge(tracker, listing(task(5), containers=[make_metadata(created_at=wall(11))])) == []


def test_reconcile_reevaluates_scope_when_filters_have_changed() -> None:
    tracker = tracker_after_gap()
    excluded = replace(make_metadata(), in_scope=False)
    assert reconcile(tracker, listing(task(5), containers=[excluded]), moment(10), filters_changed=True) == []
    assert tracker.snapshot_records(moment(10)) == []
    included = listing(task(5), containers=[make_metadata()])
    assert reconcile(tracker, included, moment(11), filters_changed=True) == []
    for second in (12, 13):
        assert [each.incarnation for each in tracker.snapshot_records(moment(second))] == ["5f3c9a1e-5"]


@pytest.mark.parametrize(
    ("first_in_scope", "expected"),
    [(True, [("exited", "inferred", 5)]), (False, [("started", "inferred", 5), ("exited", "inferred", 5)])],
    ids=["published before", "never published"],
)
def test_run_that_enters_scope_and_is_over_starts_at_most_once(
    *, first_in_scope: bool, expected: TransitionSummary
) -> None:
    tracker = synced_tracker()
    tracker.update_metadata(make_metadata(in_scope=first_in_scope))
    tracker.process_event(started(5, 0), moment(0))
    tracker.disconnect()
    excluded = listing(task(5), containers=[make_metadata(in_scope=False)])
    assert reconcile(tracker, excluded, moment(10), filters_changed=True) == []
    tracker.disconnect()
    included = listing(task(5, TaskStatus.STOPPED))
    assert summarize(reconcile(tracker, included, moment(11), filters_changed=True)) == expected


@pytest.mark.parametrize("deleted_at", [1, 100], ids=["steady clock", "clock set back since"])
def test_reconcile_takes_metadata_newer_than_known_deletion(deleted_at: float) -> None:
    tracker = tracker_with_container()
    tracker.process_event(ContainerDeleted(WEB, wall(deleted_at)), moment(1))
    tracker.disconnect()
    tracker.process_event(exited(9, 6, exec_id="sh"), moment(6))
    tracker.process_event(created(6, 7), moment(7))
    recreated = make_metadata(created_at=wall(5))
    merge(tracker, listing(containers=[recreated]))
    entry = tracker.find(WEB)
    assert entry is not None
    assert (entry.metadata, entry.deleted) == (recreated, False)


def test_reconcile_adds_container_recreated_after_old_deletion() -> None:
    tracker = synced_tracker()
    tracker.process_event(ContainerDeleted(WEB, wall(1)), moment(1))
    tracker.disconnect()
    tracker.process_event(exited(5, 2, exec_id="sh"), moment(2))
    tracker.process_event(created(6, 2), moment(2))
    merge(tracker, listing())
    assert names(tracker) == ["web"]


def test_reconcile_removes_unlisted_stopped_container_unless_new() -> None:
    tracker = tracker_with_container()
    tracker.process_event(exited(5, 1), moment(1))
    tracker.disconnect()
    tracker.update_metadata(make_metadata(DB))
    tracker.process_event(ContainerCreated(DB, wall(2), "busybox", "runc"), moment(2))
    merge(tracker, listing(containers=[]))
    assert names(tracker) == ["db"]
    assert due_query_keys(tracker) == []


# --- the audit ---


@pytest.mark.parametrize(
    ("listed_task", "expected"),
    [
        (task(5), set()),
        (task(5, TaskStatus.PAUSED), {WEB}),
        (task(5, TaskStatus.STOPPED), {WEB}),
        (task(6), {WEB}),
        (task(6, TaskStatus.CREATED), {WEB}),
        (UNKNOWN, {WEB}),
        (None, {WEB}),
    ],
)
def test_mismatch_found_when_listing_contradicts_incarnation(
    listed_task: Task | None, expected: set[ContainerKey]
) -> None:
    tracker = tracker_with_container()
    tracker.update_metadata(make_metadata(DB))
    assert find_mismatches(tracker, listing(*filter(None, [listed_task]))) == expected


@pytest.mark.parametrize(
    ("listed_task", "expected"),
    [
        (task(5), {WEB}),
        (task(5, TaskStatus.STOPPED), set()),
        (replace(task(5, TaskStatus.STOPPED), exited_at=wall(2)), {WEB}),
        (task(6), {WEB}),
        (task(6, TaskStatus.CREATED), set()),
        (task(9, key=DB), {DB}),
        (task(9, TaskStatus.STOPPED, key=DB), {DB}),
        (UNKNOWN, set()),
    ],
)
def test_mismatch_of_stopped_container_requires_new_running_task(
    listed_task: Task, expected: set[ContainerKey]
) -> None:
    tracker = tracker_with_container()
    tracker.process_event(exited(5, 1), moment(1))
    assert find_mismatches(tracker, listing(listed_task)) == expected


def test_mismatch_found_when_state_is_unconfirmed() -> None:
    tracker = tracker_with_container()
    tracker.update_metadata(make_metadata(DB))
    tracker.query_failed(tracker.make_query(WEB))
    tracker.query_failed(tracker.make_query(DB))
    assert has_unconfirmed(tracker)
    assert find_mismatches(tracker, listing(task(5))) == {WEB, DB}
    for key in (WEB, DB):
        tracker.apply_query_result(tracker.make_query(key), task(5, key=WEB) if key == WEB else None, moment(3))
    assert not has_unconfirmed(tracker)
    assert find_mismatches(tracker, listing(task(5))) == set()


def test_mismatch_not_found_in_failed_or_excluded_namespaces() -> None:
    tracker = tracker_with_container()
    assert find_mismatches(tracker, listing(failed=["shop"])) == set()
    assert find_mismatches(tracker, Listing(namespaces=["default"], excluded=["shop"])) == set()


def test_mismatch_found_when_namespace_has_been_removed() -> None:
    assert find_mismatches(tracker_with_container(), Listing(namespaces=["default"])) == {WEB}
