"""The book: what is known of every container, by its id, and what of it has changed.

It decides nothing; the rules are the tracker's. An id without record and life is kept in its grave for a while, to know
late and repeated events by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from msgspec.structs import replace

from bridge.core.labels import LabelRules, ruled
from bridge.core.lives import Entry, Life, Question
from bridge.core.model import ContainerKey, Instant, Labels, Metadata
from bridge.core.time import SECOND

HOLD = 30 * SECOND  # an exit waits that long for its start: shims retry a failed publish for some 15 to 45 s
GRAVES_KEPT = 10_000  # ids without record and life remembered


class Change(NamedTuple):
    """An id of which more, less or other things are known than before.

    ``entry`` is None where nothing is known of it any more, ``metadata`` None where its record is not to be kept any
    longer. ``relearned``: the record is another one than before.
    """

    key: ContainerKey
    entry: Entry | None
    metadata: Metadata | None
    relearned: bool


class Book:
    """Keeps an entry for each container of one containerd, and the questions about them."""

    def __init__(self) -> None:
        self._entries: dict[ContainerKey, Entry] = {}
        self._graves: dict[ContainerKey, Entry] = {}
        self._sandboxes: dict[str, tuple[ContainerKey, Labels | None]] = {}
        self._questions: dict[ContainerKey, int] = {}
        self._holding: set[ContainerKey] = set()
        self._blind: set[str] | None = None
        self._rules: LabelRules | None = None  # where others hold than those that records may have been read under
        self._changed: dict[ContainerKey, bool] = {}  # since changes() was called last; True: also its record

    # --- what is known ---

    def entries(self) -> Iterator[Entry]:
        """Every container with a record or a life."""
        return iter(self._entries.values())

    def find(self, key: ContainerKey) -> Entry | None:
        """Return what is known under an id, if anything."""
        return self._entries.get(key) or self._graves.get(key)

    def lives(self) -> Iterator[tuple[Entry, Life]]:
        """Every life, told or not."""
        return ((entry, entry.life) for entry in self._entries.values() if entry.life is not None)

    def remembers(self, namespace: str) -> bool:
        """Whether what lived in a namespace is known, so that a container not known there is a newborn."""
        return self._blind is not None and namespace not in self._blind

    def next_due(self) -> int | None:
        """When (monotonic) a held exit or a question becomes due next; None if nothing waits."""
        dues = [*self._questions.values(), *(self._entries[key].held_until for key in self._holding)]
        return min(dues, default=None)

    # --- what outlives the process ---

    @property
    def blind(self) -> set[str] | None:
        """The namespaces of which nobody knows what lived there; None: all."""
        return self._blind

    @property
    def changed(self) -> bool:
        """Whether something has changed since ``changes`` was called last."""
        return bool(self._changed)

    def changes(self) -> Iterator[Change]:
        """Tell what has changed since the last call."""
        changed, self._changed = self._changed, {}
        for key, relearned in changed.items():
            entry = self._entries.get(key)
            if entry is None:
                yield Change(key, self._graves.get(key), None, relearned=True)
            else:
                yield Change(key, entry, entry.metadata, relearned)

    def restore(self, entries: Iterable[Entry], blind: set[str] | None, now: Instant) -> None:
        """Take up what was remembered at some moment in the past; since then anything may have happened unseen."""
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
        """Other choices of namespaces, containers and labels hold from now on.

        What is not watched any more is forgotten, and of labels only what the rules let through is kept. Nobody can
        tell who is a newborn from who was left out so far.
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
        """Of labels, keep only what the rules let through, also of records that are on their way."""
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

    # --- what is learned ---

    def learn(self, metadata: Metadata) -> None:
        """Take in a container's record as it is now."""
        if self._rules is not None:
            metadata = ruled(metadata, self._rules)
        entry = self._enter(metadata.key)
        known = entry.metadata
        if known is not None and not metadata.runtime:  # told by an update event alone: the record is gone
            metadata = replace(metadata, runtime=known.runtime, created_at=known.created_at)
        if metadata != known:
            self._changed[metadata.key] = True
        entry.metadata, entry.deleted = metadata, False
        self._index(metadata)

    def disconnect(self) -> None:
        """The stream is gone: from now on anything may happen unseen."""
        self._questions.clear()
        for entry in chain(self._entries.values(), self._graves.values()):
            entry.version = 0
            exited = entry.held.pid if entry.held is not None else None
            entry.created = tuple(pid for pid in entry.created if pid == exited)  # the others may be started unseen
            entry.deleted &= entry.metadata is not None  # one never known may be made anew unseen
            if entry.life is not None:
                entry.life.proven = False

    def complete(self, failed: set[str]) -> None:
        """A snapshot is complete but for the namespaces that failed: whoever is unknown elsewhere is a newborn."""
        self._blind = failed if self._blind is None else self._blind & failed

    def forget(self, key: ContainerKey) -> None:
        """A listing does not name this container's record any more."""
        entry = self._entries.get(key)
        if entry is not None:
            self._delete(entry)
            self._tidy(entry)

    # --- questions ---

    def ask(self, key: ContainerKey, due: int = 0) -> None:
        """Have a container's task asked for, at once or when ``due`` (monotonic)."""
        self._questions[key] = min(due, self._questions.get(key, due))

    def due_questions(self, now: Instant) -> list[Question]:
        """Hand out the questions that are due; each must be brought back by ``answer`` or ``no_answer``."""
        due = [key for key, at in self._questions.items() if at <= now.monotonic]
        for key in due:
            del self._questions[key]
        return [self.question(key) for key in due]

    def question(self, key: ContainerKey) -> Question:
        """Put the question for a container's task, whatever the reason."""
        entry = self.find(key)
        return Question(key, entry.version if entry is not None else 0)

    # --- entries ---

    def _enter(self, key: ContainerKey) -> Entry:
        """Return the entry of an id, out of its grave if need be."""
        entry = self._entries.get(key)
        if entry is None:
            grave = self._graves.pop(key, None)
            entry = self._entries[key] = Entry(key) if grave is None else grave
        return entry

    def _tidy(self, entry: Entry) -> None:
        """Take note that an entry has changed; bury an id that has neither record nor life."""
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
        """Return the uid of the pod whose labels are those of this sandbox, if that is what it is."""
        pod = entry.metadata.pod if entry.metadata is not None else None
        sandbox = self._sandboxes.get(pod.uid) if pod is not None else None
        return pod.uid if pod is not None and sandbox is not None and sandbox[0] == entry.key else None

    def _index(self, metadata: Metadata) -> None:
        """Remember the labels of a pod, which its sandbox carries, for its other containers."""
        if metadata.kind == "sandbox" and metadata.pod is not None:
            self._sandboxes[metadata.pod.uid] = (metadata.key, metadata.pod_labels)

    def _pod_labels(self, metadata: Metadata | None) -> Labels | None:
        """Return the labels of a container's pod, which its sandbox carries."""
        pod = metadata.pod if metadata is not None else None
        sandbox = self._sandboxes.get(pod.uid) if pod is not None else None
        return sandbox[1] if sandbox is not None else None
