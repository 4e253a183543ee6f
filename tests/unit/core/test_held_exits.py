"""Exits that wait for an OOM event: how long, what ends the wait, and what ``exit.oom`` says afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bridge.core.container_state import ExitInfo, Transition
from bridge.core.containerd_model import ContainerCreated, ContainerDeleted, TaskOOM
from bridge.core.time import from_seconds, to_seconds
from bridge.core.tracker import Tracker
from bridge.core.transition_emitter import KILLED_OOM_GRACE_NS, OOM_GRACE_NS, RELEASE_SLACK_NS
from tests.unit.core.factories import (
    BOOT_ID,
    DB,
    WEB,
    created,
    deleted,
    exited,
    make_metadata,
    moment,
    started,
    summarize,
    task,
    wall,
)
from tests.unit.core.harness import ADDITIONAL_EVENTS

EXIT_AT = 3.0
OOM = TaskOOM(WEB, wall(EXIT_AT + 0.01))
EXITED = [("exited", "live", 5)]


def running_tracker(*, runtime: str = "io.containerd.runc.v2", started_at: float = 0.2) -> Tracker:
    """Return a tracker that has seen the start of a container, and emits all additional events."""
    tracker = Tracker(BOOT_ID, ADDITIONAL_EVENTS)
    tracker.mark_synced(set())
    tracker.update_metadata(make_metadata(runtime=runtime))
    tracker.process_event(ContainerCreated(WEB, wall(0.05), "busybox", runtime), moment(0.05))
    tracker.process_event(created(5, 0.1), moment(0.1))
    tracker.process_event(started(5, started_at), moment(started_at))
    return tracker


def exit_web(tracker: Tracker, status: int = 0) -> None:
    assert tracker.process_event(exited(5, EXIT_AT, status), moment(EXIT_AT)) == []


def release(tracker: Tracker, seconds: float = 1000) -> list[Transition]:
    """Release the exits that are due ``seconds`` after the boot."""
    return tracker.release_exits(tracker.take_due_exits(moment(seconds)))


def oom(transitions: list[Transition]) -> bool | None:
    """Return ``exit.oom`` of the only exit."""
    (exit_info,) = [each.exit_info for each in transitions if each.exit_info is not None]
    return exit_info.oom


@pytest.mark.parametrize(("status", "grace"), [(0, OOM_GRACE_NS), (3, OOM_GRACE_NS), (137, KILLED_OOM_GRACE_NS)])
def test_exit_is_emitted_when_its_time_has_passed(status: int, grace: int) -> None:
    tracker = running_tracker()
    exit_web(tracker, status)
    deadline = from_seconds(EXIT_AT) + grace
    assert tracker.next_due() == deadline + RELEASE_SLACK_NS
    assert release(tracker, to_seconds(deadline - 1)) == []
    (exit_,) = release(tracker, to_seconds(deadline))
    assert (summarize([exit_]), exit_.at) == (EXITED, wall(EXIT_AT))
    assert tracker.next_due() is None


@pytest.mark.parametrize("status", [0, 137])
def test_oom_event_after_exit_makes_oom_true(status: int) -> None:
    tracker = running_tracker()
    exit_web(tracker, status)
    transitions = tracker.process_event(OOM, moment(EXIT_AT + 0.01))
    assert summarize(transitions) == [("oom", "live", 5), *EXITED]
    assert transitions[1].exit_info == ExitInfo(status, wall(EXIT_AT), oom=True)
    assert release(tracker) == []


def test_oom_event_counts_when_received_before_release() -> None:
    """The exit is due, but the OOM event was received before that, and is still in the queue."""
    tracker = running_tracker()
    exit_web(tracker)
    due = tracker.take_due_exits(moment(100))
    assert tracker.take_due_exits(moment(100)) == []
    assert oom(tracker.process_event(OOM, moment(100))) is True
    assert tracker.release_exits(due) == []


def test_oom_event_before_exit_emits_exit_at_once() -> None:
    tracker = running_tracker()
    tracker.process_event(OOM, moment(2))
    assert oom(tracker.process_event(exited(5, EXIT_AT, 137), moment(EXIT_AT))) is True


@pytest.mark.parametrize("next_event", [created(6, 3.01), started(6, 3.01)])
def test_next_task_releases_exit_before_its_start(next_event: object) -> None:
    tracker = running_tracker()
    exit_web(tracker)
    transitions = tracker.process_event(next_event, moment(3.01))  # type: ignore[arg-type]
    assert summarize(transitions)[:1] == EXITED
    assert oom(transitions) is None
    tracker.process_event(OOM, moment(3.02))
    assert release(tracker) == []


def test_query_result_releases_exit_before_next_start() -> None:
    tracker = running_tracker()
    exit_web(tracker)
    transitions = tracker.apply_task_state(WEB, task(6), moment(3.01))
    assert summarize(transitions) == [*EXITED, ("started", "inferred", 6)]


def test_due_exit_is_not_confused_with_next_exit() -> None:
    tracker = running_tracker()
    exit_web(tracker)
    due = tracker.take_due_exits(moment(100))
    tracker.process_event(started(6, 100), moment(100))
    tracker.process_event(exited(6, 102), moment(102))
    assert tracker.release_exits(due) == []
    assert summarize(release(tracker)) == [("exited", "live", 6)]


def test_deletions_neither_release_nor_overtake_exit() -> None:
    tracker = running_tracker()
    exit_web(tracker)
    assert tracker.process_event(deleted(5, 3.01), moment(3.01)) == []
    assert tracker.process_event(ContainerDeleted(WEB, wall(3.02)), moment(3.02)) == []
    transitions = release(tracker)
    assert summarize(transitions) == [*EXITED, ("deleted", "live", 0)]
    assert oom(transitions) is False
    assert tracker.find(WEB) not in list(tracker.entries())


def test_held_exit_is_no_running_container() -> None:
    tracker = running_tracker()
    exit_web(tracker)
    assert tracker.running_containers(moment(EXIT_AT)) == []
    assert oom(tracker.release_all_exits()) is None
    assert tracker.release_all_exits() == []


def test_exit_all_emits_held_exit_once() -> None:
    tracker = running_tracker()
    tracker.process_event(started(8, 0.2, DB), moment(0.2))
    exit_web(tracker)
    assert summarize(tracker.exit_all(moment(4))) == [*EXITED, ("exited", "inferred", 8)]
    assert tracker.next_due() is None


def test_exit_out_of_scope_is_not_held() -> None:
    tracker = Tracker(BOOT_ID)
    tracker.mark_synced(set())
    tracker.update_metadata(make_metadata(in_scope=False))
    tracker.process_event(started(5, 0.2), moment(0.2))
    exit_web(tracker)
    assert tracker.next_due() is None


# --- what is known without an OOM event ---


def test_oom_is_false_when_run_was_watched_completely() -> None:
    tracker = running_tracker()
    exit_web(tracker, 3)
    assert oom(release(tracker)) is False


@pytest.mark.parametrize(
    ("run", "status"),
    [
        pytest.param({}, 137, id="SIGKILL"),
        pytest.param({"runtime": "io.containerd.kata.v2"}, 0, id="other runtime"),
        pytest.param({"started_at": EXIT_AT - 0.9}, 0, id="short run"),
    ],
)
def test_oom_is_unknown_when_event_may_be_missing(run: dict[str, Any], status: int) -> None:
    tracker = running_tracker(**run)
    exit_web(tracker, status)
    assert oom(release(tracker)) is None


def other_task_created(tracker: Tracker) -> None:
    tracker.process_event(created(6, 1), moment(1))


def connected(tracker: Tracker) -> None:
    tracker.connect(moment(1))


@pytest.mark.parametrize("interrupt", [Tracker.disconnect, other_task_created, connected])
def test_oom_is_unknown_when_run_was_not_watched(interrupt: Callable[[Tracker], None]) -> None:
    tracker = running_tracker()
    interrupt(tracker)
    exit_web(tracker)
    assert oom(release(tracker)) is None


# --- inferred exits ---


def test_delete_event_waits_for_oom_event() -> None:
    tracker = running_tracker()
    assert tracker.process_event(deleted(5, 3, 137), moment(3)) == []
    transitions = tracker.process_event(OOM, moment(3.01))
    assert summarize(transitions) == [("oom", "live", 5), ("exited", "inferred", 5)]
    assert oom(transitions) is True
    tracker = running_tracker()
    tracker.process_event(deleted(5, 3), moment(3))
    assert oom(release(tracker)) is None
