"""Container store: the state of every container by id, and the changes of that state (client-go's Store).

A data structure without rules; they are the tracker's. An id without metadata and incarnation is kept for a while as a
tombstone, to recognize late and duplicate events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

from msgspec.structs import replace

from bridge.core.container_metadata import with_known_digest
from bridge.core.container_state import ContainerState, Incarnation, PendingExit
from bridge.core.containerd_model import ContainerKey, Labels, Metadata
from bridge.core.label_rules import LabelRules, filter_labels

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
    """Store the state of each container of one containerd, and an index of its pods' labels.

    ``unsynced_namespaces``: the namespaces that are not synced; None if no namespace is synced.
    """

    def __init__(self) -> None:
        self.unsynced_namespaces: set[str] | None = None
        self._entries: dict[ContainerKey, ContainerState] = {}
        self._tombstones: dict[ContainerKey, ContainerState] = {}
        self._sandboxes: dict[str, tuple[ContainerKey, Labels | None]] = {}
        self._rules: LabelRules | None = None  # set if metadata may still arrive that was built with other rules
        self._changed: dict[ContainerKey, bool] = {}  # since the last call of changes(); True: metadata, too

    def entries(self) -> Iterator[ContainerState]:
        """Return the state of every container with metadata or an incarnation."""
        return iter(self._entries.values())

    def all_entries(self) -> Iterator[ContainerState]:
        """Return every state, including tombstones."""
        return chain(self._entries.values(), self._tombstones.values())

    def incarnations(self) -> Iterator[tuple[ContainerState, Incarnation]]:
        """Return every incarnation, in scope or not."""
        return ((entry, entry.incarnation) for entry in self._entries.values() if entry.incarnation is not None)

    def find(self, key: ContainerKey) -> ContainerState | None:
        """Return the state of a container id, if any."""
        return self._entries.get(key) or self._tombstones.get(key)

    def get_or_create(self, key: ContainerKey) -> ContainerState:
        """Return the state of an id; create it, or revive its tombstone, if necessary."""
        entry = self._entries.get(key)
        if entry is None:
            tombstone = self._tombstones.pop(key, None)
            entry = self._entries[key] = ContainerState(key) if tombstone is None else tombstone
        return entry

    def has_synced(self, namespace: str) -> bool:
        """Return whether a namespace is synced, so that an unknown container in it is new (client-go's HasSynced)."""
        return self.unsynced_namespaces is not None and namespace not in self.unsynced_namespaces

    def mark_synced(self, failed: set[str]) -> None:
        """Set all namespaces but the failed ones to synced: a snapshot is complete, so unknown containers are new."""
        self.unsynced_namespaces = failed if self.unsynced_namespaces is None else self.unsynced_namespaces & failed

    # --- changes ---

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

    def note_change(self, entry: ContainerState) -> None:
        """Note that a state has changed; turn an id without metadata and incarnation into a tombstone."""
        self._changed.setdefault(entry.key, False)
        self._bury_if_idle(entry)

    def add(self, entry: ContainerState, *, persisted: bool) -> None:
        """Add a restored state; it is a change unless the checkpoint has it."""
        self._entries[entry.key] = entry
        if not persisted:
            self._changed[entry.key] = True
        if entry.metadata is not None:
            self._index_sandbox(entry.metadata)
        self._bury_if_idle(entry)

    def _bury_if_idle(self, entry: ContainerState) -> None:
        """Turn the state of a container that does not exist into a tombstone, unless it waits for something."""
        if entry.incarnation is not None or (entry.metadata is not None and not entry.deleted):
            return
        state = entry.state
        if entry.held_exit is not None or state.unknown or (state.evidence and state.find(PendingExit)):
            return
        del self._entries[entry.key]
        self._tombstones[entry.key] = entry
        if len(self._tombstones) > MAX_TOMBSTONES:
            oldest = next(iter(self._tombstones))
            del self._tombstones[oldest]
            self._changed[oldest] = True

    def remove_all(self, matches: Callable[[ContainerKey], bool]) -> list[ContainerKey]:
        """Remove the states of the matching ids, and return these."""
        removed = [entry for entry in self.all_entries() if matches(entry.key)]
        for entry in removed:
            self.set_deleted(entry)
            if self._entries.pop(entry.key, None) is None:
                del self._tombstones[entry.key]
            self._changed[entry.key] = True
        return [entry.key for entry in removed]

    # --- metadata ---

    def update_metadata(self, metadata: Metadata) -> None:
        """Store the current metadata of a container."""
        if self._rules is not None:
            metadata = filter_labels(metadata, self._rules)
        entry = self.get_or_create(metadata.key)
        known = entry.metadata
        if known is not None and not metadata.runtime:  # built from an update event: the container is gone
            metadata = replace(metadata, runtime=known.runtime, created_at=known.created_at)
        if known is not None and metadata.pod is not None and metadata.pod_labels is None and metadata.pod == known.pod:
            metadata = replace(metadata, pod_labels=known.pod_labels)
        metadata = with_known_digest(metadata, known)
        if metadata != known:
            self._changed[metadata.key] = True
            entry.metadata = metadata
        entry.deleted = False
        self._index_sandbox(metadata)

    def set_deleted(self, entry: ContainerState) -> None:
        """Note that a container does not exist any more."""
        entry.deleted = True
        if uid := self._sandbox_pod_uid(entry):
            del self._sandboxes[uid]

    def apply_label_rules(self, rules: LabelRules) -> None:
        """Keep only labels that the rules keep, also in metadata that is still being fetched."""
        self._rules = rules
        for entry in self.all_entries():
            self._apply_label_rules(entry, rules)

    def _apply_label_rules(self, entry: ContainerState, rules: LabelRules) -> None:
        if entry.published_metadata is not None:
            entry.published_metadata = filter_labels(entry.published_metadata, rules)
        if (held := entry.held_exit) is not None:
            transitions = tuple(each.with_label_rules(rules) for each in held.transitions)
            entry.held_exit = replace(held, transitions=transitions)
            self._changed.setdefault(entry.key, False)
        if entry.metadata is not None and (metadata := filter_labels(entry.metadata, rules)) != entry.metadata:
            entry.metadata = metadata
            self._changed[entry.key] = True
            if self._sandbox_pod_uid(entry):
                self._index_sandbox(metadata)

    # --- pods ---

    def pod_labels(self, metadata: Metadata | None) -> Labels | None:
        """Return the labels of a container's pod, which its sandbox carries; without a sandbox container, CRI's."""
        if metadata is None or metadata.pod is None:
            return None
        if (sandbox := self._sandboxes.get(metadata.pod.uid)) is not None:
            return sandbox[1]
        return metadata.pod_labels if metadata.kind == "container" else None

    def _sandbox_pod_uid(self, entry: ContainerState) -> str | None:
        """Return the pod's uid if this container is the sandbox that provides the pod's labels."""
        pod = entry.metadata.pod if entry.metadata is not None else None
        sandbox = self._sandboxes.get(pod.uid) if pod is not None else None
        return pod.uid if pod is not None and sandbox is not None and sandbox[0] == entry.key else None

    def _index_sandbox(self, metadata: Metadata) -> None:
        """Index the labels of a pod, which its sandbox carries, for the pod's other containers."""
        if metadata.kind == "sandbox" and metadata.pod is not None:
            self._sandboxes[metadata.pod.uid] = (metadata.key, metadata.pod_labels)
