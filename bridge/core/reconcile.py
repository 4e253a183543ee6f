"""Reconcile the tracked state with containerd's listing and the window of events around the listing.

containerd is listed between two markers, the low and the high watermark, while events keep arriving (see Debezium's
incremental snapshots). Shims publish after they change state, so either the listed task or the event may be older, and
the order of arrival does not show which: tasks and events are merged by incarnation, and queries resolve the remaining
conflicts.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field

from bridge.core.container_metadata import KUBERNETES_NAMESPACE
from bridge.core.container_state import ContainerState, PendingExit, Transition
from bridge.core.containerd_model import ContainerKey, Instant, Metadata, RecordedExit, Task, TaskStatus
from bridge.core.start_checks import START_CHECKED_NS
from bridge.core.tracker import Tracker


class Listing(Struct):
    """containerd's listing, namespace by namespace; it says nothing about the namespaces in ``failed``.

    ``excluded`` are the namespaces that are not watched. ``exits`` are the containers that have exited according to
    CRI, in the order of creation, with its records where they were requested; ``exits_listed``: CRI has responded.
    """

    namespaces: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    containers: dict[ContainerKey, Metadata] = field(default_factory=dict)
    tasks: dict[ContainerKey, Task] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)
    exits: dict[ContainerKey, RecordedExit | None] = field(default_factory=dict)
    exits_listed: bool = False


def reconcile(tracker: Tracker, listing: Listing, now: Instant, *, filters_changed: bool = False) -> list[Transition]:
    """Return the transitions that turn the tracked state into the listed one.

    The listing must have been taken after the call of ``tracker.disconnect()``, and the tracker must have processed
    the events of the window. Conflicts that the listing cannot decide become due queries: run them before the snapshot
    is completed.

    ``filters_changed``: the filters differ from before, so the scope of every listed container is reevaluated.

    Returns:
        The missed transitions, in order for each container.
    """
    transitions: list[Transition] = []
    tracker.connect(now)
    remember_old_exits(tracker, listing, now)
    for metadata in listing.containers.values():
        if _was_recreated(tracker.find(metadata.key), metadata, listing.tasks.get(metadata.key), now):
            transitions += tracker.apply_task_state(metadata.key, None, now)
        _merge_metadata(tracker, metadata, now)
        if filters_changed:
            tracker.reevaluate_scope(metadata.key)
        if metadata.key not in listing.tasks and metadata.key not in listing.exits and _is_young(metadata, now):
            tracker.begin_start_checks(metadata.key, now)
        transitions += tracker.emit_metadata_change(metadata.key, now)
    transitions += apply_exits(tracker, listing, listing.exits, now)
    ended = {key: None for key in listing.exits if key in listing.containers}  # first, to query them in this order
    for key in {**ended, **listing.containers, **listing.tasks}:
        if not _is_settled(tracker, listing, key):
            transitions += _merge_task(tracker, key, listing.tasks.get(key), now)
    return transitions + _handle_absent(tracker, listing, now)


def reevaluate_scope(tracker: Tracker, listing: Listing, listed_at: int, now: Instant) -> list[Transition]:
    """Reevaluate, while following events, which containers are in scope, from metadata listed under changed filters.

    Containers that are not listed keep their scope. ``listed_at`` (wall clock) is the start of the listing: the create
    events of younger containers are still to come.

    Returns:
        The additional events for changes of metadata that no event reported.
    """
    transitions: list[Transition] = []
    for metadata in listing.containers.values():
        _merge_metadata(tracker, metadata, now)
        tracker.reevaluate_scope(metadata.key)
        if (metadata.created_at or 0) <= listed_at:
            transitions += tracker.emit_metadata_change(metadata.key, now)
    return transitions


def find_unknown_exits(tracker: Tracker, listing: Listing) -> list[ContainerKey]:
    """Return the containers that have exited according to CRI, and of whose end the tracker does not know.

    Listed tasks decide. Runs from before the bridge watched, which no record has shown, are not published.
    """
    unknown = []
    for key in listing.exits:
        entry = tracker.find(key)
        is_running = entry is not None and entry.incarnation is not None
        is_news = is_running or not _may_be_old(tracker, key)
        if is_news and key not in listing.tasks and is_end_unseen(entry):
            unknown.append(key)
    return unknown


def is_end_unseen(entry: ContainerState | None) -> bool:
    """Return whether no exit of a container is known, except that of a task whose start was not seen.

    An exit whose start may still arrive is known.
    """
    if entry is None:
        return True
    state = entry.state
    return (not state.exited or state.newest_unstarted is not None) and state.find(PendingExit) is None


def remember_old_exits(tracker: Tracker, listing: Listing, now: Instant) -> None:
    """Remember the exits from before the bridge watched, which are all that CRI lists when it is first listed.

    Exempt are containers of which a task is known, and those that have been created since the bridge watches.
    """
    for key in listing.exits:
        entry = tracker.find(key)
        exists = key in listing.containers or (entry is not None and entry.metadata is not None)
        if exists and _may_be_old(tracker, key) and (entry is None or _has_no_task(entry)):
            tracker.apply_recorded_exit(RecordedExit(key), now)
    if listing.exits_listed and KUBERNETES_NAMESPACE not in listing.failed:
        tracker.exits_synced = True


def _may_be_old(tracker: Tracker, key: ContainerKey) -> bool:
    """Return whether an exit that CRI lists may be from before the bridge watched, or before CRI was listed."""
    if tracker.has_synced_exits(key.namespace):
        return False
    entry = tracker.find(key)
    return not tracker.has_synced(key.namespace) or (entry is not None and entry.metadata is not None)


def _has_no_task(entry: ContainerState) -> bool:
    """Return whether no task of a container is known."""
    state = entry.state
    return entry.incarnation is None and not (state.exited or state.created or state.evidence)


def apply_exits(tracker: Tracker, listing: Listing, keys: Iterable[ContainerKey], now: Instant) -> list[Transition]:
    """Return the transitions that follow from CRI's records of exits: those that were missed, in the order of creation.

    Containers with events in the window are left to task queries.
    """
    transitions: list[Transition] = []
    for key in keys:
        entry, recorded = tracker.find(key), listing.exits[key]
        if entry is None or entry.touched or entry.metadata is None or key in listing.tasks or not is_end_unseen(entry):
            continue
        if recorded is not None:
            transitions += tracker.apply_recorded_exit(recorded, now)
    return transitions


def _is_settled(tracker: Tracker, listing: Listing, key: ContainerKey) -> bool:
    """Return whether CRI confirms that the known exit is the last change of a container."""
    if key not in listing.exits or key in listing.tasks or (entry := tracker.find(key)) is None:
        return False
    state = entry.state
    return not entry.touched and state.running is None and state.confirmed and bool(state.exited and not state.evidence)


def find_mismatches(tracker: Tracker, listing: Listing) -> set[ContainerKey]:
    """Return the containers whose listed task and tracked state do not match, for the audit.

    A mismatch may be temporary, because the listing overlaps with events in flight; only a task query decides. A
    namespace that is not listed has been removed, with its containers, unless it is excluded or its listing failed.
    """
    unlisted = {*listing.failed, *listing.excluded}
    mismatches = {
        key
        for key, task in listing.tasks.items()
        if (task.running and not _agrees(tracker.find(key), task)) or _is_unknown_exit(tracker.find(key), task)
    }
    for entry in tracker.entries():
        listed_task = listing.tasks.get(entry.key)
        missing = entry.incarnation is not None and (listed_task is None or not listed_task.running)
        if entry.key.namespace not in unlisted and (missing or _is_unconfirmed(entry)):
            mismatches.add(entry.key)
    return mismatches


def has_unconfirmed(tracker: Tracker) -> bool:
    """Return whether the state of any container is unconfirmed: the snapshot is then partial."""
    return any(map(_is_unconfirmed, tracker.entries()))


def _is_unconfirmed(entry: ContainerState) -> bool:
    return not entry.state.confirmed


def _merge_metadata(tracker: Tracker, metadata: Metadata, now: Instant) -> None:
    """Store listed metadata unless the window's events brought newer metadata or a deletion."""
    entry = tracker.find(metadata.key)
    if entry is None or not entry.touched or not _is_stale(entry, metadata, now):
        tracker.update_metadata(metadata)


def _was_recreated(entry: ContainerState | None, metadata: Metadata, task: Task | None, now: Instant) -> bool:
    """Return whether a running container was recreated in a gap: its run is over, even if a task has the same pid now.

    If so, the missed exit must be published with the old metadata, before it is replaced. The known metadata may have
    been older than the run, so another time of creation alone proves nothing, nor one after the clock was set back.
    """
    if entry is None or entry.touched or entry.metadata is None or (run := entry.state.running) is None:
        return False
    if metadata.created_at is None or metadata.created_at == entry.metadata.created_at:
        return False
    return (task is not None and task.pid not in (0, run.pid)) or run.since < metadata.created_at <= now.wall


def _is_stale(entry: ContainerState, metadata: Metadata, now: Instant) -> bool:
    """Return whether listed metadata is older than the known one.

    If the clock was set back since the known update, or since another container's creation, nothing proves it.
    """
    known, listed = _revision(entry.metadata), _revision(metadata)
    is_same_container = known[0] == listed[0] and not entry.deleted
    if known[2] > now.wall or (max(known[0], entry.deleted_at) > now.wall and not is_same_container):
        return False
    if entry.deleted:
        return listed[0] <= max(known[0], entry.deleted_at)
    return listed < known


def _revision(metadata: Metadata | None) -> tuple[int, bool, int]:
    """Return what orders the revisions of metadata; an update before the creation follows a clock that was set back."""
    created_at, updated_at = (metadata.created_at or 0, metadata.updated_at or 0) if metadata is not None else (0, 0)
    return created_at, updated_at < created_at, updated_at


def _merge_task(tracker: Tracker, key: ContainerKey, task: Task | None, now: Instant) -> list[Transition]:
    """Apply a listed task that nothing contradicts; query a task that is missing or has status UNKNOWN.

    If the window has an event of the container, the event may be newer: only an exit of the tracked run is certain.
    """
    entry = tracker.find(key)
    if task is None or task.status is TaskStatus.UNKNOWN:
        tracker.schedule_query(key)
        return []
    if entry is None or not entry.touched or _agrees(entry, task) or _is_exit_of(entry, task):
        return tracker.apply_task_state(key, task, now)
    tracker.schedule_query(key)
    return []


def _agrees(entry: ContainerState | None, task: Task) -> bool:
    """Return whether a listed task repeats the tracked state or is older."""
    if entry is None:
        return False
    incarnation = entry.incarnation
    if incarnation is None:  # a running task may be another one with the pid of one that has exited
        return task.status is TaskStatus.STOPPED and entry.state.is_known_exit(task)
    return (
        entry.state.find(PendingExit) is None
        and task.running
        and incarnation.pid == task.pid
        and incarnation.paused is task.paused
    )


def _is_exit_of(entry: ContainerState | None, task: Task) -> bool:
    """Return whether a listed task is the exit of the tracked run: STOPPED overrides RUNNING of the same task.

    An exit before the run is that of an earlier task with the same pid, if the clock was not set back.
    """
    if entry is None or (run := entry.state.running) is None or task.status is not TaskStatus.STOPPED:
        return False
    is_earlier = task.exited_at is not None and task.exited_at < run.since
    return task.pid == run.pid and not is_earlier and entry.state.find_exited(task.pid) is None


def _is_unknown_exit(entry: ContainerState | None, task: Task) -> bool:
    """Return whether a listed task has stopped that the tracker has never heard of, or not since its creation."""
    if task.status is not TaskStatus.STOPPED or not task.pid:
        return False
    if entry is None:
        return True
    state = entry.state
    is_current = state.running is not None and state.running.pid == task.pid
    return not (is_current or state.is_known_exit(task) or state.find(PendingExit, task.pid))


def _is_young(metadata: Metadata, now: Instant) -> bool:
    """Return whether a container was created so recently that its first start is still expected."""
    return metadata.created_at is not None and 0 <= now.wall - metadata.created_at < START_CHECKED_NS


def _handle_absent(tracker: Tracker, listing: Listing, now: Instant) -> list[Transition]:
    """Query running containers that are missing from the listing; note which containers are gone."""
    transitions: list[Transition] = []
    failed = set(listing.failed)
    for entry in _unlisted(tracker, listing):
        if entry.key.namespace in failed:
            continue
        if entry.incarnation is not None:
            tracker.schedule_query(entry.key)
        if not entry.touched and (entry.incarnation is None or entry.metadata is not None):
            tracker.set_deleted(entry)
            transitions += tracker.emit_metadata_change(entry.key, now)
    return transitions


def _unlisted(tracker: Tracker, listing: Listing) -> Iterable[ContainerState]:
    return [
        entry for entry in tracker.entries() if entry.key not in listing.containers and entry.key not in listing.tasks
    ]
