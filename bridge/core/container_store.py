"""Container store: the state of every container by id, and the changes of that state (client-go's Store).

The store has no rules; they are the tracker's. An id without metadata and incarnation is kept for a while as a
tombstone, to recognize late and duplicate events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from msgspec.structs import replace

from bridge.core.container_state import ContainerState, Incarnation, TaskQuery
from bridge.core.containerd_model import ContainerKey, Instant, Labels, Metadata
from bridge.core.label_rules import LabelRules, filter_labels
from bridge.core.schedule import Schedule
from bridge.core.time import MILLISECOND, SECOND

PENDING_EXIT_NS = 30 * SECOND  # an exit waits this long for its start: shims retry a failed publish for 15 to 45 s
RELEASE_SLACK_NS = 20 * MILLISECOND  # a held exit waits this long for other events, to be persisted with them
FIRST_START_CHECK_NS = 2 * SECOND  # after the creation of a container or task; the delay doubles from check to check
LAST_START_CHECK_NS = 128 * SECOND  # the next delay would be about the time between two audits, which find the rest
START_CHECKED_NS = 2 * LAST_START_CHECK_NS  # the age up to which a container without a task is checked, about
MAX_TOMBSTONES = 10_000  # kept ids without metadata and incarnation


class StateChange(NamedTuple):
    """A container id whose state has changed.

    ``entry`` is None if nothing is known about the id any more; ``metadata`` is None if the metadata is to be removed.
    ``metadata_changed``: the metadata differs from before.
    """

    key: ContainerKey
    entry: ContainerState | None
    metadata: Metadata | None
    metadata_changed: bool


class ContainerStore:
    """Store the state of each container of one containerd, the scheduled task queries and the start checks."""

    def __init__(self) -> None:
        self._entries: dict[ContainerKey, ContainerState] = {}
        self._tombstones: dict[ContainerKey, ContainerState] = {}
        self._sandboxes: dict[str, tuple[ContainerKey, Labels | None]] = {}
        self._scheduled_queries = Schedule()
        self._start_checks = Schedule()
        self._pending_exits: set[ContainerKey] = set()
        self._held_exits: dict[ContainerKey, int] = {}  # deadlines (monotonic)
        self._unsynced_namespaces: set[str] | None = None
        self._rules: LabelRules | None = None  # set if metadata may still arrive that was built with other rules
        self._changed: dict[ContainerKey, bool] = {}  # since the last call of changes(); True: metadata, too

    # --- state ---

    def entries(self) -> Iterator[ContainerState]:
        """Return the state of every container with metadata or an incarnation."""
        return iter(self._entries.values())

    def find(self, key: ContainerKey) -> ContainerState | None:
        """Return the state of a container id, if any."""
        return self._entries.get(key) or self._tombstones.get(key)

    def incarnations(self) -> Iterator[tuple[ContainerState, Incarnation]]:
        """Return every incarnation, in scope or not."""
        return ((entry, entry.incarnation) for entry in self._entries.values() if entry.incarnation is not None)

    def has_synced(self, namespace: str) -> bool:
        """Return whether a namespace is synced, so that an unknown container in it is new (client-go's HasSynced)."""
        return self._unsynced_namespaces is not None and namespace not in self._unsynced_namespaces

    def next_due(self, *, start_checks: bool = True) -> int | None:
        """Return when (monotonic) the next pending or held exit, query or start check is due; None if there is none."""
        dues = [
            self._scheduled_queries.next_due(),
            self._start_checks.next_due() if start_checks else None,
            *(deadline + RELEASE_SLACK_NS for deadline in self._held_exits.values()),
            *(self._entries[key].pending_exit_deadline for key in self._pending_exits),
        ]
        return min((due for due in dues if due is not None), default=None)

    # --- persistence ---

    @property
    def unsynced_namespaces(self) -> set[str] | None:
        """Return the namespaces that are not synced; None if no namespace is synced."""
        return self._unsynced_namespaces

    @property
    def changed(self) -> bool:
        """Return whether anything has changed since the last call of ``changes``."""
        return bool(self._changed)

    def changes(self) -> Iterator[StateChange]:
        """Yield the changes since the last call."""
        changed, self._changed = self._changed, {}
        for key, metadata_changed in changed.items():
            entry = self._entries.get(key)
            if entry is None:
                yield StateChange(key, self._tombstones.get(key), None, metadata_changed=True)
            else:
                yield StateChange(key, entry, entry.metadata, metadata_changed)

    def restore(self, entries: Iterable[ContainerState], unsynced_namespaces: set[str] | None, now: Instant) -> None:
        """Restore the state of an earlier moment; containers may have changed unseen since then."""
        for entry in entries:
            self._entries[entry.key] = entry
            if entry.metadata is not None:
                self._index_sandbox(entry.metadata)
            if entry.held_exit is not None:
                self._held_exits[entry.key] = now.monotonic
            if entry.pending_exit is not None:
                entry.pending_exit_deadline = now.monotonic + PENDING_EXIT_NS
                self._pending_exits.add(entry.key)
            self._evict_if_idle(entry)
        self._unsynced_namespaces = unsynced_namespaces
        self.disconnect()
        self._changed = {}

    def apply_filters(self, is_watched: Callable[[str], bool], rules: LabelRules) -> None:
        """Apply other filters of namespaces and labels from now on.

        Containers in namespaces that are not watched any more are removed, and only labels that the rules keep remain.
        No namespace is synced afterwards: an unknown container may be new, or the old filters may have excluded it.
        """
        for entries in (self._entries, self._tombstones):
            for entry in [*entries.values()]:
                if not is_watched(entry.key.namespace):
                    self._mark_deleted(entry)
                    del entries[entry.key]
                    self._scheduled_queries.discard(entry.key)
                    self._pending_exits.discard(entry.key)
                    self._held_exits.pop(entry.key, None)
                    self._changed[entry.key] = True
        self.apply_label_rules(rules)
        self._unsynced_namespaces = None

    def apply_label_rules(self, rules: LabelRules) -> None:
        """Keep only labels that the rules keep, also in metadata that is still being fetched."""
        self._rules = rules
        for entry in chain(self._entries.values(), self._tombstones.values()):
            self._apply_label_rules(entry, rules)

    def _apply_label_rules(self, entry: ContainerState, rules: LabelRules) -> None:
        entry.published_metadata = (
            None if entry.published_metadata is None else filter_labels(entry.published_metadata, rules)
        )
        if (held := entry.held_exit) is not None:
            transitions = tuple(each.with_label_rules(rules) for each in held.transitions)
            entry.held_exit = replace(held, transitions=transitions)
            self._changed.setdefault(entry.key, False)
        if entry.metadata is not None and (metadata := filter_labels(entry.metadata, rules)) != entry.metadata:
            entry.metadata = metadata
            self._changed[entry.key] = True
            if self._sandbox_pod_uid(entry):
                self._index_sandbox(metadata)

    # --- updates ---

    def update_metadata(self, metadata: Metadata) -> None:
        """Store the current metadata of a container."""
        if self._rules is not None:
            metadata = filter_labels(metadata, self._rules)
        entry = self._get_or_create(metadata.key)
        known = entry.metadata
        if known is not None and not metadata.runtime:  # built from an update event: the container is gone
            metadata = replace(metadata, runtime=known.runtime, created_at=known.created_at)
        if metadata != known:
            self._changed[metadata.key] = True
        entry.metadata, entry.deleted = metadata, False
        self._index_sandbox(metadata)

    def disconnect(self) -> None:
        """Handle the end of the stream: from now on containers may change unseen."""
        self._scheduled_queries.clear()
        self._start_checks.clear()
        for entry in chain(self._entries.values(), self._tombstones.values()):
            entry.generation = entry.start_check_delay = entry.stopped_deadline = 0
            exited = entry.pending_exit.pid if entry.pending_exit is not None else None
            # The other created tasks may start unseen.
            entry.created_pids = tuple(pid for pid in entry.created_pids if pid == exited)
            entry.deleted &= entry.metadata is not None  # an unknown container may be recreated unseen
            if entry.incarnation is not None:
                entry.incarnation.confirmed = False
                entry.incarnation.watched_from = 0

    def mark_synced(self, failed: set[str]) -> None:
        """Set all namespaces but the failed ones to synced: a snapshot is complete, so unknown containers are new."""
        self._unsynced_namespaces = failed if self._unsynced_namespaces is None else self._unsynced_namespaces & failed

    def remove(self, key: ContainerKey) -> None:
        """Remove a container that a listing does not contain any more."""
        entry = self._entries.get(key)
        if entry is not None:
            self._mark_deleted(entry)
            self._evict_if_idle(entry)

    # --- task queries ---

    def schedule_query(self, key: ContainerKey, due: int = 0) -> None:
        """Schedule a query of a container's task, immediately or at ``due`` (monotonic)."""
        self._scheduled_queries.add(key, due)

    def due_queries(self, now: Instant) -> list[TaskQuery]:
        """Return the due queries; each must be completed with ``apply_query_result`` or ``query_failed``."""
        return [self.make_query(key) for key in self._scheduled_queries.pop_due(now.monotonic)]

    def make_query(self, key: ContainerKey) -> TaskQuery:
        """Return a query of a container's task."""
        entry = self.find(key)
        return TaskQuery(key, entry.generation if entry is not None else 0)

    # --- start checks ---

    def begin_start_checks(self, key: ContainerKey, now: Instant) -> None:
        """Check soon, and then at growing intervals, whether a container has a task whose events do not arrive."""
        entry = self._get_or_create(key)
        entry.start_check_delay = FIRST_START_CHECK_NS
        self._schedule_start_check(entry, now)

    def due_start_checks(self, now: Instant) -> list[TaskQuery]:
        """Return the due start checks; each must be completed with ``apply_start_check``."""
        return [self.make_query(key) for key in self._start_checks.pop_due(now.monotonic)]

    def _continue_start_checks(self, entry: ContainerState, now: Instant) -> None:
        if entry.start_check_delay < LAST_START_CHECK_NS:
            entry.start_check_delay *= 2
            self._schedule_start_check(entry, now)
        else:
            self._end_start_checks(entry)

    def _schedule_start_check(self, entry: ContainerState, now: Instant) -> None:
        """Schedule the next check at a full quarter of its delay, so that many containers are checked together."""
        due, grid = now.monotonic + entry.start_check_delay, entry.start_check_delay // 4
        self._start_checks.add(entry.key, due + -due % grid)

    def _end_start_checks(self, entry: ContainerState, *, resume: bool = False) -> None:
        """End the checks; ``resume``: they begin again after the current run, because an event of it is missing."""
        entry.start_check_delay = FIRST_START_CHECK_NS if resume else 0
        self._start_checks.discard(entry.key)

    def _resume_start_checks(self, entry: ContainerState, now: Instant) -> None:
        """Resume the checks after a run for which an event was missing: the next one may be silent as well."""
        existing = entry.metadata is not None and not entry.deleted
        if entry.incarnation is None and entry.start_check_delay and existing:
            self._schedule_start_check(entry, now)

    # --- entries ---

    def _get_or_create(self, key: ContainerKey) -> ContainerState:
        """Return the state of an id; create it, or revive its tombstone, if necessary."""
        entry = self._entries.get(key)
        if entry is None:
            tombstone = self._tombstones.pop(key, None)
            entry = self._entries[key] = ContainerState(key) if tombstone is None else tombstone
        return entry

    def _evict_if_idle(self, entry: ContainerState) -> None:
        """Note that a state has changed; turn an id without metadata and incarnation into a tombstone."""
        self._changed.setdefault(entry.key, False)
        gone = entry.deleted or entry.metadata is None
        waiting = entry.pending_exit is not None or entry.held_exit is not None
        if gone and entry.incarnation is None and not waiting and not entry.state_unknown:
            del self._entries[entry.key]
            self._tombstones[entry.key] = entry
            if len(self._tombstones) > MAX_TOMBSTONES:
                oldest = next(iter(self._tombstones))
                del self._tombstones[oldest]
                self._changed[oldest] = True

    def _mark_deleted(self, entry: ContainerState) -> None:
        entry.deleted = True
        self._end_start_checks(entry)
        if uid := self._sandbox_pod_uid(entry):
            del self._sandboxes[uid]

    def _sandbox_pod_uid(self, entry: ContainerState) -> str | None:
        """Return the pod's uid if this container is the sandbox that provides the pod's labels."""
        pod = entry.metadata.pod if entry.metadata is not None else None
        sandbox = self._sandboxes.get(pod.uid) if pod is not None else None
        return pod.uid if pod is not None and sandbox is not None and sandbox[0] == entry.key else None

    def _index_sandbox(self, metadata: Metadata) -> None:
        """Index the labels of a pod, which its sandbox carries, for the pod's other containers."""
        if metadata.kind == "sandbox" and metadata.pod is not None:
            self._sandboxes[metadata.pod.uid] = (metadata.key, metadata.pod_labels)

    def _pod_labels(self, metadata: Metadata | None) -> Labels | None:
        """Return the labels of a container's pod, which its sandbox carries."""
        pod = metadata.pod if metadata is not None else None
        sandbox = self._sandboxes.get(pod.uid) if pod is not None else None
        return sandbox[1] if sandbox is not None else None
