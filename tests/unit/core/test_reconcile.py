"""Listing, window and memory against each other: what is told, what is asked, what is left alone."""

from __future__ import annotations

import pytest

from bridge.core.lives import Ending
from bridge.core.model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    Metadata,
    Task,
    TaskStatus,
)
from bridge.core.reconcile import Listing, reconcile, suspects, unproven
from bridge.core.tracker import Tracker
from tests.unit.core.made import (
    BOOT,
    DB,
    WEB,
    Told,
    created,
    exited,
    following,
    listening,
    moment,
    paused,
    record,
    started,
    task,
    told,
    wall,
)

UNKNOWN = task(0, TaskStatus.UNKNOWN)


def listing(*rows: Task, records: list[Metadata] | None = None, failed: list[str] | None = None) -> Listing:
    containers = [record()] if records is None else records
    return Listing(
        namespaces=["default", "shop"],
        failed=failed or [],
        containers={each.key: each for each in containers},
        tasks={row.key: row for row in rows},
    )


def after_a_gap(*window: ContainerEvent) -> Tracker:
    """A tracker that knew of a running container, lost its stream, and got these events since the new one began."""
    tracker = following()
    tracker.disconnect()
    for event in window:
        tracker.step(event, moment(10))
    return tracker


def merge(tracker: Tracker, listed: Listing) -> Told:
    return told(reconcile(tracker, listed, moment(10)))


def asked(tracker: Tracker) -> list[ContainerKey]:
    return [question.key for question in tracker.due_questions(moment(10))]


def names(tracker: Tracker) -> list[str]:
    return [entry.key.id for entry in tracker.entries()]


# --- nothing happened meanwhile ---


@pytest.mark.parametrize(
    ("row", "expected"),
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
def test_a_row_tells_what_was_missed(row: Task, expected: Told) -> None:
    tracker = after_a_gap()
    transitions = reconcile(tracker, listing(row), moment(10))
    assert told(transitions) == expected
    assert asked(tracker) == []
    assert not unproven(tracker)
    if row.status is TaskStatus.STOPPED:
        assert transitions[-1].ending == Ending(3, wall(0.5))


@pytest.mark.parametrize("rows", [[], [UNKNOWN]])
def test_a_row_that_is_missing_or_unknown_proves_nothing(rows: list[Task]) -> None:
    tracker = after_a_gap()
    assert merge(tracker, listing(*rows)) == []
    assert unproven(tracker)
    assert asked(tracker) == [WEB]


def test_whoever_is_listed_first_is_adopted() -> None:
    tracker = Tracker(BOOT)
    stopped, unstarted = ContainerKey("shop", "stopped"), ContainerKey("shop", "unstarted")
    rows = [
        task(5),
        task(6, TaskStatus.PAUSED, DB),
        task(7, TaskStatus.STOPPED, stopped),
        task(8, TaskStatus.CREATED, unstarted),
    ]
    assert merge(tracker, listing(*rows, records=[record(row.key) for row in rows])) == []
    assert [(row.key.id, row.pid, row.paused) for row in tracker.rows(moment(10))] == [
        ("web", 5, False),
        ("db", 6, True),
    ]
    assert tracker.adopted == 2
    assert asked(tracker) == []


def test_a_record_without_a_row_is_asked_for() -> None:
    tracker = Tracker(BOOT)
    assert merge(tracker, listing()) == []
    assert asked(tracker) == [WEB]


def test_a_task_without_a_record_lives_all_the_same() -> None:
    tracker = listening()
    assert merge(tracker, listing(task(5), records=[])) == [("started", "inferred", 5)]


def test_a_life_that_is_not_listed_at_all_is_asked_for() -> None:
    tracker = after_a_gap()
    assert merge(tracker, listing(records=[])) == []
    assert asked(tracker) == [WEB]


def test_of_a_namespace_that_failed_nothing_is_concluded() -> None:
    tracker = after_a_gap()
    tracker.learn(record(DB))
    assert merge(tracker, listing(records=[], failed=["shop"])) == []
    assert asked(tracker) == []
    assert names(tracker) == ["web", "db"]
    assert unproven(tracker)


# --- events of the window ---


@pytest.mark.parametrize(
    ("window", "row", "expected"),
    [
        pytest.param([exited(5, 2), created(6, 2), started(6, 3)], task(7), [], id="another new life"),
        pytest.param([exited(5, 2), created(6, 3)], task(6), [], id="its start still to come"),
        pytest.param([paused(2)], task(5), [], id="paused, not told yet"),
        pytest.param([exited(6, 2)], task(5), [], id="an exit of another life, its row older or newer"),
        pytest.param([exited(5, 2), exited(6, 3)], task(6), [], id="an exit without a start"),
        pytest.param([created(6, 2), started(6, 3)], task(6), [], id="a new life, the old one's exit lost"),
        pytest.param([created(6, 3)], task(6, TaskStatus.CREATED), [], id="created over a life"),
        pytest.param(
            [exited(5, 2), created(6, 2), started(6, 3)],
            task(5, TaskStatus.STOPPED),
            [],
            id="the row of the life before",
        ),
    ],
)
def test_where_a_row_and_events_disagree_it_is_asked(window: list[ContainerEvent], row: Task, expected: Told) -> None:
    tracker = after_a_gap(*window)
    before = [(life.pid, life.paused) for _entry, life in tracker.lives()]
    assert merge(tracker, listing(row)) == expected
    assert [(life.pid, life.paused) for _entry, life in tracker.lives()] == before
    assert WEB in asked(tracker)


@pytest.mark.parametrize(
    ("window", "row"),
    [
        pytest.param([exited(5, 2)], task(5), id="the row older than the exit"),
        pytest.param([exited(5, 2)], task(5, TaskStatus.STOPPED), id="both know of the exit"),
        pytest.param([exited(5, 2), created(6, 2), started(6, 3)], task(6), id="both know of the new life"),
        pytest.param([ContainerUpdated(WEB, wall(2), "busybox", {})], task(5), id="only its record changed"),
    ],
)
def test_where_a_row_says_no_more_than_events_did_nothing_is_told(window: list[ContainerEvent], row: Task) -> None:
    tracker = after_a_gap(*window)
    assert merge(tracker, listing(row)) == []
    assert asked(tracker) == []
    assert not unproven(tracker)


def test_a_row_older_than_an_exit_that_waits_does_not_decide_on_it() -> None:
    tracker = after_a_gap(exited(6, 2, 9))
    merge(tracker, listing(task(5)))
    (question,) = tracker.due_questions(moment(10))
    assert told(tracker.answer(question, task(6, TaskStatus.STOPPED), moment(10))) == [
        ("exited", "inferred", 5),
        ("started", "inferred", 6),
        ("exited", "live", 6),
    ]


def test_a_stopped_row_beats_a_start_of_the_same_pid() -> None:
    tracker = after_a_gap(exited(5, 2), started(6, 3))
    transitions = reconcile(tracker, listing(task(6, TaskStatus.STOPPED)), moment(10))
    assert told(transitions) == [("exited", "inferred", 6)]
    assert transitions[0].ending == Ending(3, wall(0.5))
    assert asked(tracker) == []


def test_a_row_clears_up_what_had_not_been_answered() -> None:
    tracker = after_a_gap(exited(5, 2))
    (question,) = [tracker.question(WEB)]
    tracker.no_answer(question)
    assert unproven(tracker)
    merge(tracker, listing(task(5, TaskStatus.STOPPED)))
    assert not unproven(tracker)


# --- records ---


def _known(tracker: Tracker, key: ContainerKey = WEB) -> Metadata | None:
    entry = tracker.find(key)
    assert entry is not None
    return entry.metadata


UPDATED = ContainerUpdated(WEB, wall(2), "busybox", {})
OLD, NEW = record(labels={"is": "old"}, updated_at=5), record(labels={"is": "new"}, updated_at=6)


def test_without_events_the_listed_record_counts_whatever_its_timestamp() -> None:
    tracker = following()
    tracker.learn(NEW)
    tracker.disconnect()
    merge(tracker, listing(task(5), records=[OLD]))
    assert _known(tracker) == OLD


@pytest.mark.parametrize(
    ("told_by_event", "listed", "expected"),
    [(NEW, OLD, NEW), (OLD, NEW, NEW), (record(created_at=None, updated_at=None), OLD, OLD)],
)
def test_of_two_records_in_the_window_the_newer_one_counts(
    told_by_event: Metadata, listed: Metadata, expected: Metadata
) -> None:
    tracker = after_a_gap()
    tracker.learn(told_by_event)
    tracker.step(UPDATED, moment(2))
    merge(tracker, listing(task(5), records=[listed]))
    assert _known(tracker) == expected


def test_a_record_whose_timestamps_are_the_same_is_taken_as_listed() -> None:
    tracker = after_a_gap()
    tracker.learn(record(labels=None, updated_at=5))
    tracker.step(UPDATED, moment(2))
    merge(tracker, listing(task(5), records=[OLD]))
    assert _known(tracker) == OLD


def test_a_record_deleted_in_the_window_does_not_come_back() -> None:
    tracker = after_a_gap(exited(5, 2), ContainerDeleted(WEB, wall(3)), ContainerDeleted(DB, wall(3)))
    merge(tracker, listing(records=[record(), record(DB)]))
    assert names(tracker) == []


def test_but_one_that_was_made_anew_does() -> None:
    tracker = after_a_gap(exited(5, 2), ContainerDeleted(WEB, wall(3)))
    merge(tracker, listing(records=[record(created_at=wall(4))]))
    assert names(tracker) == ["web"]


def test_a_record_made_in_the_gap_and_deleted_in_the_window_does_not_come_back() -> None:
    tracker = after_a_gap(exited(5, 2), ContainerDeleted(WEB, wall(3)))
    merge(tracker, listing(records=[record(created_at=wall(2.5), updated_at=wall(2.7))]))
    assert names(tracker) == []


def test_a_record_gone_before_the_gap_and_made_anew_in_it_is_known_by_its_new_labels() -> None:
    tracker = following()
    tracker.learn(NEW)
    tracker.step(exited(5, 1), moment(1))
    tracker.step(ContainerDeleted(WEB, wall(2)), moment(2))
    tracker.disconnect()
    merge(tracker, listing(task(6), records=[OLD]))
    assert _known(tracker) == OLD, "though the clock was set back meanwhile"
    assert names(tracker) == ["web"]


def test_a_life_that_ended_in_a_gap_is_told_with_its_own_record_and_not_with_the_one_made_after_it() -> None:
    tracker = after_a_gap()
    listed = listing(task(6), records=[record(labels={"of": "the new one"}, created_at=wall(5), name="new")])
    end, start = reconcile(tracker, listed, moment(10))
    assert (end.type, end.pid, end.metadata) == ("exited", 5, record())
    assert (start.type, start.pid, start.metadata) == ("started", 6, listed.containers[WEB])


def test_nor_does_an_old_deletion_hide_a_record_made_in_the_gap() -> None:
    tracker = listening()
    tracker.step(ContainerDeleted(WEB, wall(1)), moment(1))
    tracker.disconnect()
    tracker.step(exited(5, 2, exec_id="sh"), moment(2))
    tracker.step(created(6, 2), moment(2))
    merge(tracker, listing())
    assert names(tracker) == ["web"]


def test_lifeless_records_that_are_not_listed_are_forgotten_but_not_new_ones() -> None:
    tracker = following()
    tracker.step(exited(5, 1), moment(1))
    tracker.disconnect()
    tracker.learn(record(DB))
    tracker.step(ContainerCreated(DB, wall(2), "busybox", "runc"), moment(2))
    merge(tracker, listing(records=[]))
    assert names(tracker) == ["db"]
    assert asked(tracker) == []


# --- the audit ---


@pytest.mark.parametrize(
    ("row", "expected"),
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
def test_an_audit_suspects_a_life_that_is_not_as_listed(row: Task | None, expected: set[ContainerKey]) -> None:
    tracker = following()
    tracker.learn(record(DB))
    assert suspects(tracker, listing(*filter(None, [row]))) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (task(5), set()),
        (task(5, TaskStatus.STOPPED), set()),
        (task(6), {WEB}),
        (task(6, TaskStatus.CREATED), set()),
        (task(9, key=DB), {DB}),
        (UNKNOWN, set()),
    ],
)
def test_an_audit_suspects_a_lifeless_container_only_if_another_task_is_listed(
    row: Task, expected: set[ContainerKey]
) -> None:
    tracker = following()
    tracker.step(exited(5, 1), moment(1))
    assert suspects(tracker, listing(row)) == expected


def test_an_audit_suspects_whatever_is_unproven() -> None:
    tracker = following()
    tracker.learn(record(DB))
    tracker.no_answer(tracker.question(WEB))
    tracker.no_answer(tracker.question(DB))
    assert unproven(tracker)
    assert suspects(tracker, listing(task(5))) == {WEB, DB}
    for key in (WEB, DB):
        tracker.answer(tracker.question(key), task(5, key=WEB) if key == WEB else None, moment(3))
    assert not unproven(tracker)
    assert suspects(tracker, listing(task(5))) == set()


def test_an_audit_suspects_nobody_in_namespaces_that_were_not_listed() -> None:
    tracker = following()
    assert suspects(tracker, listing(failed=["shop"])) == set()
    assert suspects(tracker, Listing(namespaces=["default"])) == set()
