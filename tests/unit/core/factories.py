"""Factories for the tests of the core: moments, events, metadata, tasks, trackers, and summaries of transitions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from bridge.core.container_state import Transition
from bridge.core.containerd_model import (
    ContainerEvent,
    ContainerKey,
    Instant,
    Kind,
    Labels,
    Metadata,
    PodReference,
    Task,
    TaskCreated,
    TaskDeleted,
    TaskExited,
    TaskPaused,
    TaskResumed,
    TaskStarted,
    TaskStatus,
)
from bridge.core.time import SECOND, from_seconds
from bridge.core.tracker import Tracker

BOOT_ID = "5f3c9a1e-2c1d-4b0e-8c5e-0d6b8c1f2a3b"
WEB = ContainerKey("shop", "web")
DB = ContainerKey("shop", "db")
BOOT_TIME_NS = 1_795_447_267 * SECOND

TransitionSummary: TypeAlias = list[tuple[str, str, int]]


def moment(seconds: float) -> Instant:
    """Return a moment on both clocks, given in seconds since the boot of the machine."""
    return Instant(wall(seconds), from_seconds(seconds))


def wall(seconds: float) -> int:
    return BOOT_TIME_NS + from_seconds(seconds)


def created(pid: int, seconds: float, key: ContainerKey = WEB) -> TaskCreated:
    return TaskCreated(key, wall(seconds), pid)


def started(pid: int, seconds: float, key: ContainerKey = WEB) -> TaskStarted:
    return TaskStarted(key, wall(seconds), pid)


def exited(pid: int, seconds: float, status: int = 0, *, exec_id: str = "", key: ContainerKey = WEB) -> TaskExited:
    return TaskExited(key, wall(seconds), exec_id, pid, status, wall(seconds))


def deleted(pid: int, seconds: float, status: int = 0, *, exec_id: str = "") -> TaskDeleted:
    return TaskDeleted(WEB, wall(seconds), exec_id, pid, status, wall(seconds))


def paused(seconds: float) -> TaskPaused:
    return TaskPaused(WEB, wall(seconds))


def resumed(seconds: float) -> TaskResumed:
    return TaskResumed(WEB, wall(seconds))


def task(pid: int, status: TaskStatus = TaskStatus.RUNNING, key: ContainerKey = WEB) -> Task:
    stopped = status is TaskStatus.STOPPED
    return Task(key, pid, status, 3 if stopped else None, wall(0.5) if stopped else None)


def make_metadata(
    key: ContainerKey = WEB,
    labels: Labels | None = None,
    *,
    created_at: int | None = 1,
    updated_at: int | None = 1,
    runtime: str = "runc",
    kind: Kind = "container",
    pod: PodReference | None = None,
    pod_labels: Labels | None = None,
    name: str = "",
    in_scope: bool = True,
) -> Metadata:
    return Metadata(
        key,
        name or key.id,
        "shop",
        "web",
        "busybox",
        runtime,
        created_at,
        updated_at,
        labels,
        kind,
        pod,
        pod_labels,
        in_scope,
    )


class ImmediateTracker(Tracker):
    """A tracker that emits each exit at once, without waiting for an OOM event; test_held_exits.py covers the wait."""

    def process_event(self, event: ContainerEvent, now: Instant) -> list[Transition]:
        return super().process_event(event, now) + self.release_all_exits()


def synced_tracker() -> Tracker:
    """Return a tracker whose namespaces are all synced and empty, so that every container that appears is new."""
    tracker = ImmediateTracker(BOOT_ID)
    tracker.mark_synced(set())
    tracker.exits_synced = True
    return tracker


def tracker_with_container(pid: int = 5) -> Tracker:
    """Return a tracker with one container, which was created and started within the first second."""
    tracker = synced_tracker()
    tracker.update_metadata(make_metadata())
    tracker.process_event(created(pid, 0.1), moment(0.1))
    tracker.process_event(started(pid, 0.2), moment(0.2))
    return tracker


def expire_pending_exits(tracker: Tracker, now: Instant) -> list[Transition]:
    """Resolve the pending exits whose deadline has passed, without CRI's records."""
    return tracker.resolve_overdue_exits(tracker.take_overdue_exits(now), now)


def summarize(transitions: Iterable[Transition]) -> TransitionSummary:
    return [(each.type, each.origin, each.pid) for each in transitions]
