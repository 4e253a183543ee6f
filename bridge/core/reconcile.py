"""Reconcile the tracked state with containerd's listing and the window of events around the listing.

containerd is listed between two markers, the low and the high watermark, while events keep arriving (see Debezium's
incremental snapshots). Shims publish after they change state, so a listed task and an event may each be the older one,
and arrival order decides nothing: tasks and events are merged by incarnation, and queries resolve what still conflicts.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field

from bridge.core.lives import Entry, Transition
from bridge.core.model import ContainerKey, Instant, Metadata, Task, TaskStatus
from bridge.core.tracker import Tracker


class Listing(Struct):
    """containerd's listing, namespace by namespace; it says nothing about the namespaces in ``failed``."""

    namespaces: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    containers: dict[ContainerKey, Metadata] = field(default_factory=dict)
    tasks: dict[ContainerKey, Task] = field(default_factory=dict)


def reconcile(tracker: Tracker, listing: Listing, now: Instant, *, rescoped: bool = False) -> list[Transition]:
    """Return the transitions that turn the tracked state into the listed one.

    The listing must have been taken after the tracker was disconnected, and the tracker must have processed the events
    of the window. Conflicts that the listing cannot decide become due queries: run them before the snapshot is
    completed.

    ``filters_changed``: the filters differ from before, so the scope of every listed container is reevaluated.

    Returns:
        The missed transitions, in order for each container.
    """
    transitions: list[Transition] = []
    for metadata in listing.containers.values():
        if _is_another(tracker.find(metadata.key), metadata, listing.tasks.get(metadata.key)):
            transitions += tracker.settle(metadata.key, None, now)
        _learn(tracker, metadata)
        if rescoped:
            tracker.rescope(metadata.key)
        transitions += tracker.announce(metadata.key, now)
    for key in {**listing.containers, **listing.tasks}:
        transitions += _place(tracker, key, listing.tasks.get(key), now)
    return transitions + _miss(tracker, listing, now)


def rescope(tracker: Tracker, listing: Listing, listed_at: int, now: Instant) -> list[Transition]:
    """Reevaluate, while following events, which containers are in scope, from metadata listed under changed filters.

    Containers that are not listed keep their scope. ``listed_at`` (wall clock) is the start of the listing: the create
    events of younger containers are still to come.

    Returns:
        The additional events for changes of metadata that no event reported.
    """
    transitions: list[Transition] = []
    for metadata in listing.containers.values():
        _learn(tracker, metadata)
        tracker.rescope(metadata.key)
        if (metadata.created_at or 0) <= listed_at:
            transitions += tracker.announce(metadata.key, now)
    return transitions


def suspects(tracker: Tracker, listing: Listing) -> set[ContainerKey]:
    """Return the containers whose listed task and tracked state do not match, for the audit.

    A mismatch may be temporary, because the listing overlaps with events in flight; only a task query decides.
    """
    listed_namespaces = set(listing.namespaces) - set(listing.failed)
    found = {key for key, task in listing.tasks.items() if task.alive and not _agrees(tracker.find(key), task)}
    for entry in tracker.entries():
        listed_task = listing.tasks.get(entry.key)
        missing = entry.life is not None and (listed_task is None or not listed_task.alive)
        if entry.key.namespace in listed_namespaces and (missing or _is_unproven(entry)):
            found.add(entry.key)
    return found


def unproven(tracker: Tracker) -> bool:
    """Return whether the state of any container is unconfirmed: the snapshot is then partial."""
    return any(map(_is_unproven, tracker.entries()))


def _is_unproven(entry: Entry) -> bool:
    return entry.unanswered or (entry.life is not None and not entry.life.proven)


def _learn(tracker: Tracker, metadata: Metadata) -> None:
    """Store listed metadata unless the window's events brought newer metadata or a deletion."""
    entry = tracker.find(metadata.key)
    if entry is None or not entry.version or not _is_stale(entry, metadata):
        tracker.learn(metadata)


def _is_another(entry: Entry | None, metadata: Metadata, row: Task | None) -> bool:
    """Return whether container and task were both recreated in a gap: the missed exit needs the old metadata."""
    if entry is None or entry.version or entry.life is None or entry.metadata is None or row is None or not row.pid:
        return False
    return row.pid != entry.life.pid and metadata.created_at not in (entry.metadata.created_at, None)


def _is_stale(entry: Entry, metadata: Metadata) -> bool:
    known, listed = _age(entry.metadata), _age(metadata)
    if entry.deleted:
        return listed[0] <= max(known[0], entry.deleted_at)
    return listed < known


def _age(metadata: Metadata | None) -> tuple[int, int]:
    return (0, 0) if metadata is None else (metadata.created_at or 0, metadata.updated_at or 0)


def _place(tracker: Tracker, key: ContainerKey, row: Task | None, now: Instant) -> list[Transition]:
    """Apply a listed task that nothing contradicts; query a task that is missing or has status UNKNOWN."""
    entry = tracker.find(key)
    if row is None or row.status is TaskStatus.UNKNOWN:
        tracker.ask(key)
        return []
    touched = entry is not None and entry.version > 0
    if not touched or _agrees(entry, row) or _ends(entry, row):
        return tracker.settle(key, row, now)
    tracker.ask(key)
    return []


def _agrees(entry: Entry | None, row: Task) -> bool:
    """Return whether a listed task repeats the tracked state or is older."""
    if entry is None:
        return False
    incarnation = entry.life
    if incarnation is None:
        return row.pid in entry.ended
    return entry.held is None and row.alive and incarnation.pid == row.pid and incarnation.paused is row.paused


def _ends(entry: Entry | None, row: Task) -> bool:
    """Return whether a listed task is the exit of the tracked run: STOPPED overrides RUNNING of a pid."""
    incarnation = entry.life if entry is not None else None
    return incarnation is not None and row.status is TaskStatus.STOPPED and incarnation.pid == row.pid


def _miss(tracker: Tracker, listing: Listing, now: Instant) -> list[Transition]:
    """Query running containers that are missing from the listing; remove containers that are gone."""
    transitions: list[Transition] = []
    failed = set(listing.failed)
    for entry in _absent(tracker, listing):
        if entry.key.namespace in failed:
            continue
        if entry.life is not None:
            tracker.ask(entry.key)
        if not entry.version and (entry.life is None or entry.metadata is not None):
            tracker.forget(entry.key)
            transitions += tracker.announce(entry.key, now)
    return transitions


def _absent(tracker: Tracker, listing: Listing) -> Iterable[Entry]:
    return [
        entry for entry in tracker.entries() if entry.key not in listing.containers and entry.key not in listing.tasks
    ]
