"""Merge and difference: containerd's listing, the window of events around it, and what is remembered.

Between two marks containerd is listed while events go on arriving; either may be older than the other, also by the
same shim's doing. So nothing is decided by arrival: rows and events are merged by incarnation, and what still
disagrees is asked for (DESIGN section 3, step 4).
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field

from bridge.core.lives import Entry, Transition
from bridge.core.model import ContainerKey, Instant, Metadata, Task, TaskStatus
from bridge.core.tracker import Tracker


class Listing(Struct):
    """What containerd listed, namespace by namespace; of those in ``failed`` nothing may be concluded."""

    namespaces: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    containers: dict[ContainerKey, Metadata] = field(default_factory=dict)
    tasks: dict[ContainerKey, Task] = field(default_factory=dict)


def reconcile(tracker: Tracker, listing: Listing, now: Instant, *, rescoped: bool = False) -> list[Transition]:
    """Bring what is remembered into line with a listing taken after the tracker was disconnected.

    The events of the window must have been fed to the tracker before. What cannot be decided from the rows is left
    as questions that are due: ask them before the snapshot is completed.

    ``rescoped``: other filters hold than before, so that it is decided anew who is told of.

    Returns:
        The transitions that were missed, in order for each container.
    """
    told: list[Transition] = []
    for metadata in listing.containers.values():
        if _is_another(tracker.find(metadata.key), metadata, listing.tasks.get(metadata.key)):
            told += tracker.settle(metadata.key, None, now)
        _learn(tracker, metadata)
        if rescoped:
            tracker.rescope(metadata.key)
        told += tracker.announce(metadata.key, now)
    for key in {**listing.containers, **listing.tasks}:
        told += _place(tracker, key, listing.tasks.get(key), now)
    return told + _miss(tracker, listing, now)


def rescope(tracker: Tracker, listing: Listing, listed_at: int, now: Instant) -> list[Transition]:
    """Decide anew who is told of, by records that were listed under other filters than before, while following.

    Whose record was not listed stays what it was. ``listed_at`` (wall clock) is when the listing was begun: of records
    that are younger, containerd's event is still to come.

    Returns:
        What became of records unnoticed, for readers of such extras.
    """
    told: list[Transition] = []
    for metadata in listing.containers.values():
        _learn(tracker, metadata)
        tracker.rescope(metadata.key)
        if (metadata.created_at or 0) <= listed_at:
            told += tracker.announce(metadata.key, now)
    return told


def suspects(tracker: Tracker, listing: Listing) -> set[ContainerKey]:
    """Return the containers of which the tasks listed and the portfolio disagree (the audit's question).

    A disagreement proves nothing: rows and events cross each other. Asking for the task does.
    """
    listed = set(listing.namespaces) - set(listing.failed)
    found = {key for key, task in listing.tasks.items() if task.alive and not _agrees(tracker.find(key), task)}
    for entry in tracker.entries():
        row = listing.tasks.get(entry.key)
        lost = entry.life is not None and (row is None or not row.alive)
        if entry.key.namespace in listed and (lost or _is_unproven(entry)):
            found.add(entry.key)
    return found


def unproven(tracker: Tracker) -> bool:
    """Whether there is a container whose state nobody could confirm: the snapshot is partial."""
    return any(map(_is_unproven, tracker.entries()))


def _is_unproven(entry: Entry) -> bool:
    return entry.unanswered or (entry.life is not None and not entry.life.proven)


def _learn(tracker: Tracker, metadata: Metadata) -> None:
    """Take a listed record, unless the window's events told more: a newer one, or that it is gone."""
    entry = tracker.find(metadata.key)
    if entry is None or not entry.version or not _is_stale(entry, metadata):
        tracker.learn(metadata)


def _is_another(entry: Entry | None, metadata: Metadata, row: Task | None) -> bool:
    """Whether record and task were both made anew in a gap: how the old life ended is told with the old record."""
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
    """Settle a row where nothing contradicts it; a row that is missing or UNKNOWN proves nothing."""
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
    """Whether a row only says what is known, or is older than it."""
    if entry is None:
        return False
    life = entry.life
    if life is None:
        return row.pid in entry.ended
    return entry.held is None and row.alive and life.pid == row.pid and life.paused is row.paused


def _ends(entry: Entry | None, row: Task) -> bool:
    """STOPPED beats RUNNING of the same pid."""
    life = entry.life if entry is not None else None
    return life is not None and row.status is TaskStatus.STOPPED and life.pid == row.pid


def _miss(tracker: Tracker, listing: Listing, now: Instant) -> list[Transition]:
    """Ask for the lives that no row spoke of; forget records that are gone."""
    told: list[Transition] = []
    failed = set(listing.failed)
    for entry in _absent(tracker, listing):
        if entry.key.namespace in failed:
            continue
        if entry.life is not None:
            tracker.ask(entry.key)
        if not entry.version and (entry.life is None or entry.metadata is not None):
            tracker.forget(entry.key)
            told += tracker.announce(entry.key, now)
    return told


def _absent(tracker: Tracker, listing: Listing) -> Iterable[Entry]:
    return [
        entry for entry in tracker.entries() if entry.key not in listing.containers and entry.key not in listing.tasks
    ]
