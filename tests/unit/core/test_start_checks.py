"""Start checks: containers whose shims send no events, or not all."""

from __future__ import annotations

import pytest

from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerKey,
    ContainerUpdated,
    ExitStatus,
    Instant,
    Task,
    TaskStatus,
)
from bridge.core.reconcile import Listing, find_mismatches, reconcile
from bridge.core.start_checks import LAST_START_CHECK_NS
from bridge.core.time import SECOND
from bridge.core.tracker import Tracker
from tests.unit.core.factories import (
    BOOT_ID,
    WEB,
    TransitionSummary,
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

CREATED = TaskStatus.CREATED
STOPPED = TaskStatus.STOPPED
SILENT_START = ("started", "inferred", 5)
SILENT_EXIT = ("exited", "inferred", 5)


def container_created(seconds: float = 0, key: ContainerKey = WEB) -> ContainerCreated:
    return ContainerCreated(key, wall(seconds), "busybox", "silent")


def tracker_with_new_container() -> Tracker:
    """Return a tracker with a container that was created at moment 0."""
    tracker = synced_tracker()
    tracker.update_metadata(make_metadata())
    tracker.process_event(container_created(), moment(0))
    return tracker


class Containerd:
    """Returns a task for checks and queries, and moves the time to the next one that is due."""

    def __init__(self, tracker: Tracker, task: Task | None = None) -> None:
        self.tracker = tracker
        self.task = task
        self.now = moment(0)
        self.checks: list[float] = []
        self.published: TransitionSummary = []

    def run(self, until: float) -> TransitionSummary:
        """Complete all that is due until a moment; return the transitions."""
        tracker, before = self.tracker, len(self.published)
        while (due := tracker.next_due()) is not None and due <= until * SECOND:
            self.now = Instant(wall(due / SECOND), due)
            for query in tracker.due_queries(self.now):
                self.published += summarize(tracker.apply_query_result(query, self.task, self.now))
            for check in tracker.due_start_checks(self.now):
                self.checks.append(due / SECOND)
                tracker.apply_start_check(check, self.task, self.now)
            self.published += summarize(expire_pending_exits(tracker, self.now))
        return self.published[before:]


def test_container_without_task_is_checked_at_growing_intervals() -> None:
    containerd = Containerd(tracker_with_new_container())
    assert containerd.run(10_000) == []
    assert containerd.checks == [2, 6, 14, 32, 64, 128, 256]
    assert containerd.tracker.next_due() is None


@pytest.mark.parametrize("start_at", [0.1, 1.9, 2.1, 5.9, 6.1])
def test_silent_start_and_exit_are_published_within_15_seconds(start_at: float) -> None:
    tracker = tracker_with_new_container()
    containerd = Containerd(tracker)
    containerd.run(start_at)
    containerd.task = task(5)
    assert containerd.run(start_at + 15) == [SILENT_START]
    assert tracker.next_due() is None, "a running container is not checked"
    containerd.task = task(5, STOPPED)
    tracker.apply_wait_result(WEB, 5, ExitStatus(3, wall(40)), moment(40))
    assert containerd.run(42) == [SILENT_EXIT]


def test_deletion_of_container_ends_start_checks() -> None:
    tracker = tracker_with_new_container()
    (check,) = tracker.due_start_checks(moment(2))
    tracker.process_event(ContainerDeleted(WEB, wall(2)), moment(2))
    assert not tracker.apply_start_check(check, task(5), moment(3))
    assert tracker.next_due() is None


def test_event_during_start_check_decides() -> None:
    tracker = tracker_with_new_container()
    (check,) = tracker.due_start_checks(moment(2))
    assert summarize(tracker.process_event(started(5, 2), moment(2))) == [("started", "live", 5)]
    assert not tracker.apply_start_check(check, task(5), moment(3))
    assert tracker.next_due() is None


def test_query_result_older_than_start_check_ends_no_found_run() -> None:
    tracker = tracker_with_new_container()
    older = tracker.make_query(WEB)
    (check,) = tracker.due_start_checks(moment(2))
    assert tracker.apply_start_check(check, task(5), moment(2))
    assert tracker.apply_query_result(older, None, moment(2)) == []
    (query,) = tracker.due_queries(moment(2))
    assert summarize(tracker.apply_query_result(query, task(5), moment(3))) == [SILENT_START]


def test_silent_restart_is_published() -> None:
    tracker = tracker_with_new_container()
    containerd = Containerd(tracker, task(5, STOPPED))
    assert containerd.run(10) == [SILENT_START, SILENT_EXIT]
    containerd.run(20)
    containerd.task = task(6)
    assert containerd.run(40) == [("started", "inferred", 6)]


def test_restart_is_checked_after_exit_of_silent_start() -> None:
    tracker = tracker_with_new_container()
    containerd = Containerd(tracker, task(5))
    assert containerd.run(10) == [SILENT_START]
    assert summarize(tracker.process_event(exited(5, 11, 3), moment(11))) == [("exited", "live", 5)]
    containerd.task = task(6)
    assert containerd.run(20) == [("started", "inferred", 6)]


def test_exit_without_start_is_published_soon_when_task_stopped() -> None:
    tracker = tracker_with_new_container()
    tracker.process_event(exited(5, 1, 3), moment(1))
    assert Containerd(tracker, task(5, STOPPED)).run(5) == [SILENT_START, ("exited", "live", 5)]


def test_update_begins_start_checks_unless_container_is_running() -> None:
    containerd = Containerd(tracker_with_new_container())
    tracker = containerd.tracker
    containerd.run(1_000)
    update = ContainerUpdated(WEB, wall(1_001), "busybox", {})
    tracker.process_event(update, moment(1_001))
    containerd.task = task(5)
    assert containerd.run(1_010) == [SILENT_START]
    tracker.process_event(update, moment(1_011))
    assert tracker.next_due() is None


@pytest.mark.parametrize(
    ("age", "expected"), [(200, [WEB]), (300, []), (-3600, [])], ids=["young", "old", "clock set back"]
)
def test_young_listed_container_without_task_is_checked(age: float, expected: list[ContainerKey]) -> None:
    tracker = Tracker(BOOT_ID)
    listing = Listing(["shop"], [], {WEB: make_metadata(created_at=wall(1_000 - age))}, {})
    reconcile(tracker, listing, moment(1_000))
    assert [check.key for check in tracker.due_start_checks(moment(1_003))] == expected


def test_listed_created_task_is_checked() -> None:
    tracker = Tracker(BOOT_ID)
    reconcile(tracker, Listing(["shop"], [], {WEB: make_metadata()}, {WEB: task(5, CREATED)}), moment(0))
    tracker.mark_synced(set())
    assert Containerd(tracker, task(5)).run(5) == [SILENT_START]


def test_audit_finds_unknown_exit_once() -> None:
    tracker = synced_tracker()
    tracker.update_metadata(make_metadata())
    listing = Listing(["shop"], [], {}, {WEB: task(5, STOPPED)})
    assert find_mismatches(tracker, listing) == {WEB}
    result = tracker.apply_query_result(tracker.make_query(WEB), task(5, STOPPED), moment(400))
    assert summarize(result) == [SILENT_START, SILENT_EXIT]
    assert find_mismatches(tracker, listing) == set()


def test_audit_ignores_exit_from_before_first_snapshot() -> None:
    tracker = Tracker(BOOT_ID)
    listing = Listing(["shop"], [], {WEB: make_metadata()}, {WEB: task(5, STOPPED)})
    assert reconcile(tracker, listing, moment(1)) == []
    tracker.mark_synced(set())
    assert find_mismatches(tracker, listing) == set()


def test_start_checks_are_bounded_for_unstarted_containers() -> None:
    """Containers that are created in quick succession are checked together, and no more after the last check."""
    tracker, count = synced_tracker(), 1_000
    rounds: list[int] = []
    for number in range(count):
        key, now = ContainerKey("shop", f"c{number}"), moment(number / 10)
        tracker.update_metadata(make_metadata(key))
        tracker.process_event(container_created(number / 10, key), now)
        rounds += check_all(tracker, now)
    while (due := tracker.next_due()) is not None:
        assert due <= 100 * SECOND + 3 * LAST_START_CHECK_NS
        rounds += check_all(tracker, Instant(wall(due / SECOND), due))
    assert sum(rounds) == 7 * count
    assert len(rounds) < count / 2


def check_all(tracker: Tracker, now: Instant) -> list[int]:
    """Run the due checks, none of which finds a task; return the number of each round."""
    checks = tracker.due_start_checks(now)
    for check in checks:
        assert not tracker.apply_start_check(check, None, now)
    return [len(checks)] if checks else []
