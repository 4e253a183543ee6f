"""What is told of containers: the transitions of their lives, rows of snapshots, and extras.

Invariants:
- A life is told, or it is not, as was decided at its beginning; only other filters have that decided anew.
- Extras (``created``, ``deleted``, ``oom``, ``renamed``) are no part of a life: they name one only that readers know,
  and what is told of lives is the same with and without them.
"""

from __future__ import annotations

from collections.abc import Collection

from bridge.core.book import Book
from bridge.core.events import ExtraType, Origin, RowType, TransitionType
from bridge.core.lives import NO_LIFE, Ending, Entry, Life, Transition
from bridge.core.model import ContainerKey, Instant, Metadata


class Teller(Book):
    """A book that puts into words what becomes of its entries.

    ``extras``: which types of extra records are told, too; may be replaced at any time. ``adopted`` counts the lives
    that were there before anybody looked.
    """

    def __init__(self, extras: Collection[ExtraType]) -> None:
        super().__init__()
        self.adopted = 0
        self.extras = extras
        self._told: list[Transition] = []

    def rows(self, now: Instant) -> list[Transition]:
        """Return a ``present`` row for every living container in scope: the portfolio, which is to be published."""
        for entry, life in self.lives():
            if life.silent:
                life.silent = False
                self._changed.setdefault(entry.key, False)
        return self.portfolio(now)

    def portfolio(self, now: Instant) -> list[Transition]:
        """Return the same rows, only to look at them: they do not count as published."""
        return [
            self._describe(entry, life, "present", "snapshot", now.wall) for entry, life in self.lives() if life.told
        ]

    def rescope(self, key: ContainerKey) -> None:
        """Decide anew, by its record as it is now, whether a life is told.

        Who is told of only now gets a first row in the next snapshot; who is not any longer is left out of it.
        """
        entry = self._enter(key)
        if entry.life is not None:
            told = in_scope(entry.metadata)
            entry.life.silent = told and (entry.life.silent or not entry.life.told)
            entry.life.told = told
        self._tidy(entry)

    def announce(self, key: ContainerKey, now: Instant) -> list[Transition]:
        """Tell what a listing has shown to have become of a container's record, for readers of such extras."""
        entry = self._enter(key)
        self._announce(entry, now.wall)
        return self._close(entry)

    def _announce(self, entry: Entry, at: int, live: ExtraType | None = None) -> None:
        """Tell what has become of a record since it was told last; ``live``: what containerd's event says of it.

        That a record is gone although nobody saw it go is told after the exit that must have come before.
        """
        before, after = entry.announced, None if entry.deleted else entry.metadata
        if after is None and entry.life is not None and live is None:
            return
        entry.announced = after
        if before is not None and after is not None and before.created_at in (after.created_at, None):
            if before.name != after.name:
                self._tell_extra(entry, "renamed", _origin(live == "renamed"), at, after)
            return
        if before is not None:
            self._tell_extra(entry, "deleted", _origin(live == "deleted"), at, before)
        if after is not None and (live == "created" or self.remembers(entry.key.namespace)):
            self._tell_extra(entry, "created", _origin(live == "created"), at, after)

    def _tell_extra(self, entry: Entry, type_: ExtraType, origin: Origin, at: int, metadata: Metadata | None) -> None:
        """Tell an extra that is wanted and in scope; it is no part of a life, and names one only that was told."""
        if type_ not in self.extras:
            return
        life = entry.life
        if not (in_scope(metadata) if life is None else life.told):
            return
        if life is None or life.silent:
            life = NO_LIFE
        pod_labels = self._pod_labels(metadata)
        self._told.append(
            Transition(type_, origin, at, entry.key, metadata, pod_labels, life.pid, life.incarnation, life.paused)
        )

    def _tell(
        self,
        entry: Entry,
        life: Life,
        type_: TransitionType,
        origin: Origin,
        at: int,
        ending: Ending | None = None,
    ) -> None:
        if life.told:
            self._told.append(self._describe(entry, life, type_, origin, at, ending))

    def _describe(
        self,
        entry: Entry,
        life: Life,
        type_: TransitionType | RowType,
        origin: Origin,
        at: int,
        ending: Ending | None = None,
    ) -> Transition:
        metadata = entry.metadata
        return Transition(
            type_,
            origin,
            at,
            entry.key,
            metadata,
            self._pod_labels(metadata),
            life.pid,
            life.incarnation,
            life.paused,
            ending,
        )

    def _close(self, entry: Entry) -> list[Transition]:
        """End a step: hand over what is to be told."""
        self._tidy(entry)
        return self._flush()

    def _flush(self) -> list[Transition]:
        told, self._told = self._told, []
        return told


def in_scope(metadata: Metadata | None) -> bool:
    """Whether a container is told of: where nobody knows its record, it is."""
    return metadata is None or metadata.in_scope


def _origin(live: bool) -> Origin:
    return "live" if live else "inferred"
