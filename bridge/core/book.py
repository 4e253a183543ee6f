"""Container store: the state of every container by id, and the changes of that state (client-go's Store).

The store has no rules; they are the tracker's. An id without metadata and incarnation is kept for a while as a
tombstone, to recognize late and duplicate events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from msgspec.structs import replace

from bridge.core.labels import LabelRules, ruled
from bridge.core.lives import Entry, Life, Question
from bridge.core.model import ContainerKey, Instant, Labels, Metadata

SECOND = 1_000_000_000
HOLD = 30 * SECOND  # an exit waits this long for its start: shims retry a failed publish for 15 to 45 s
GRAVES_KEPT = 10_000  # kept ids without metadata and incarnation


class Change(NamedTuple):
    """A container id whose state has changed.

    ``entry`` is None if nothing is known about the id any more; ``metadata`` is None if the metadata is to be removed.
    ``metadata_changed``: the metadata differs from before.
    """

    key: ContainerKey
    entry: Entry | None
    metadata: Metadata | None
    relearned: bool


class Book:
    """Store the state of each container of one containerd, and the scheduled task queries."""

    def __init__(self) -> None:
        self._entries: dict[ContainerKey, Entry] = {}
        self._graves: dict[ContainerKey, Entry] = {}
        self._sandboxes: dict[str, tuple[ContainerKey, Labels | None]] = {}
        self._questions: dict[ContainerKey, int] = {}
        self._holding: set[ContainerKey] = set()
        self._blind: set[str] | None = None
        self._rules: LabelRules | None = None  # set if metadata may still arrive that was built with other rules
        self._changed: dict[ContainerKey, bool] = {}  # since the last call of changes(); True: metadata, too

    # --- state ---

    def entries(self) -> Iterator[Entry]:
        """Return the state of every container with metadata or an incarnation."""
        return iter(self._entries.values())

    def find(self, key: ContainerKey) -> Entry | None:
        """Return the state of a container id, if any."""
        return self._entries.get(key) or self._graves.get(key)

    def lives(self) -> Iterator[tuple[Entry, Life]]:
        """Return every incarnation, in scope or not."""
        return ((entry, entry.life) for entry in self._entries.values() if entry.life is not None)

    def remembers(self, namespace: str) -> bool:
        """Return whether a namespace is synced, so that an unknown container in it is new (client-go's HasSynced)."""
        return self._blind is not None and namespace not in self._blind

    def next_due(self) -> int | None:
        """Return when (monotonic) the next pending exit or query is due; None if there is none."""
        dues = [*self._questions.values(), *(self._entries[key].held_until for key in self._holding)]
        return min(dues, default=None)

    # --- persistence ---

    @property
    def blind(self) -> set[str] | None:
        """Return the namespaces that are not synced; None if no namespace is synced."""
        return self._blind

    @property
    def changed(self) -> bool:
        """Return whether anything has changed since the last call of ``changes``."""
        return bool(self._changed)

    def changes(self) -> Iterator[Change]:
        """Yield the changes since the last call."""
        changed, self._changed = self._changed, {}
        for key, metadata_changed in changed.items():
            entry = self._entries.get(key)
            if entry is None:
                yield Change(key, self._graves.get(key), None, relearned=True)
            else:
                yield Change(key, entry, entry.metadata, metadata_changed)

    def restore(self, entries: Iterable[Entry], blind: set[str] | None, now: Instant) -> None:
        """Restore the state of an earlier moment; containers may have changed unseen since then."""
        for entry in entries:
            self._entries[entry.key] = entry
            if entry.metadata is not None:
                self._index(entry.metadata)
            if entry.held is not None:
                entry.held_until = now.monotonic + HOLD
                self._holding.add(entry.key)
            self._tidy(entry)
        self._blind = blind
        self.disconnect()
        self._changed = {}

    def restrict(self, watched: Callable[[str], bool], rules: LabelRules) -> None:
        """Apply other filters of namespaces and labels from now on.

        Containers in namespaces that are not watched any more are removed, and only labels that the rules keep remain.
        No namespace is synced afterwards: an unknown container may be new, or the old filters may have excluded it.
        """
        for entries in (self._entries, self._graves):
            for entry in [*entries.values()]:
                if not watched(entry.key.namespace):
                    self._delete(entry)
                    del entries[entry.key]
                    self._questions.pop(entry.key, None)
                    self._holding.discard(entry.key)
                    self._changed[entry.key] = True
        self.rule(rules)
        self._blind = None

    def rule(self, rules: LabelRules) -> None:
        """Keep only labels that the rules keep, also in metadata that is still being fetched."""
        self._rules = rules
        for entry in chain(self._entries.values(), self._graves.values()):
            self._rule(entry, rules)

    def _rule(self, entry: Entry, rules: LabelRules) -> None:
        entry.announced = None if entry.announced is None else ruled(entry.announced, rules)
        if entry.metadata is not None and (metadata := ruled(entry.metadata, rules)) != entry.metadata:
            entry.metadata = metadata
            self._changed[entry.key] = True
            if self._pod_known_by(entry):
                self._index(metadata)

    # --- updates ---

    def learn(self, metadata: Metadata) -> None:
        """Store the current metadata of a container."""
        if self._rules is not None:
            metadata = ruled(metadata, self._rules)
        entry = self._enter(metadata.key)
        known = entry.metadata
        if known is not None and not metadata.runtime:  # built from an update event: the container is gone
            metadata = replace(metadata, runtime=known.runtime, created_at=known.created_at)
        if metadata != known:
            self._changed[metadata.key] = True
        entry.metadata, entry.deleted = metadata, False
        self._index(metadata)

    def disconnect(self) -> None:
        """Handle the end of the stream: from now on containers may change unseen."""
        self._questions.clear()
        for entry in chain(self._entries.values(), self._graves.values()):
            entry.version = 0
            exited = entry.held.pid if entry.held is not None else None
            entry.created = tuple(pid for pid in entry.created if pid == exited)  # the others may start unseen
            entry.deleted &= entry.metadata is not None  # an unknown container may be recreated unseen
            if entry.life is not None:
                entry.life.proven = False

    def complete(self, failed: set[str]) -> None:
        """Set all namespaces but the failed ones to synced: a snapshot is complete, so unknown containers are new."""
        self._blind = failed if self._blind is None else self._blind & failed

    def forget(self, key: ContainerKey) -> None:
        """Remove a container that a listing does not contain any more."""
        entry = self._entries.get(key)
        if entry is not None:
            self._delete(entry)
            self._tidy(entry)

    # --- task queries ---

    def ask(self, key: ContainerKey, due: int = 0) -> None:
        """Schedule a query of a container's task, immediately or at ``due`` (monotonic)."""
        self._questions[key] = min(due, self._questions.get(key, due))

    def due_questions(self, now: Instant) -> list[Question]:
        """Return the due queries; each must be completed with ``apply_query_result`` or ``query_failed``."""
        due = [key for key, at in self._questions.items() if at <= now.monotonic]
        for key in due:
            del self._questions[key]
        return [self.question(key) for key in due]

    def question(self, key: ContainerKey) -> Question:
        """Return a query of a container's task."""
        entry = self.find(key)
        return Question(key, entry.version if entry is not None else 0)

    # --- entries ---

    def _enter(self, key: ContainerKey) -> Entry:
        """Return the state of an id; create it, or revive its tombstone, if necessary."""
        entry = self._entries.get(key)
        if entry is None:
            tombstone = self._graves.pop(key, None)
            entry = self._entries[key] = Entry(key) if tombstone is None else tombstone
        return entry

    def _tidy(self, entry: Entry) -> None:
        """Note that a state has changed; turn an id without metadata and incarnation into a tombstone."""
        self._changed.setdefault(entry.key, False)
        gone = entry.deleted or entry.metadata is None
        if gone and entry.life is None and entry.held is None and not entry.unanswered:
            del self._entries[entry.key]
            self._graves[entry.key] = entry
            if len(self._graves) > GRAVES_KEPT:
                oldest = next(iter(self._graves))
                del self._graves[oldest]
                self._changed[oldest] = True

    def _delete(self, entry: Entry) -> None:
        entry.deleted = True
        if uid := self._pod_known_by(entry):
            del self._sandboxes[uid]

    def _pod_known_by(self, entry: Entry) -> str | None:
        """Return the pod's uid if this container is the sandbox that provides the pod's labels."""
        pod = entry.metadata.pod if entry.metadata is not None else None
        sandbox = self._sandboxes.get(pod.uid) if pod is not None else None
        return pod.uid if pod is not None and sandbox is not None and sandbox[0] == entry.key else None

    def _index(self, metadata: Metadata) -> None:
        """Index the labels of a pod, which its sandbox carries, for the pod's other containers."""
        if metadata.kind == "sandbox" and metadata.pod is not None:
            self._sandboxes[metadata.pod.uid] = (metadata.key, metadata.pod_labels)

    def _pod_labels(self, metadata: Metadata | None) -> Labels | None:
        """Return the labels of a container's pod, which its sandbox carries."""
        pod = metadata.pod if metadata is not None else None
        sandbox = self._sandboxes.get(pod.uid) if pod is not None else None
        return sandbox[1] if sandbox is not None else None
