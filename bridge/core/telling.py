"""Emit transitions, snapshot records and additional events.

Invariants:
- Whether an incarnation is in scope is decided when it starts; only changed filters reevaluate the decision.
- Additional events (``created``, ``deleted``, ``oom``, ``renamed``) do not affect incarnations: they name only
  incarnations that consumers know, and all other records are the same with and without them.
"""

from __future__ import annotations

from collections.abc import Collection

from bridge.core.book import Book
from bridge.core.events import ExtraType, Origin, RowType, TransitionType
from bridge.core.lives import NO_LIFE, Ending, Entry, Life, Transition
from bridge.core.model import ContainerKey, Instant, Metadata


class Teller(Book):
    """A container store that emits transitions when its states change.

    ``additional_events``: the optional event types to emit; may be replaced at any time. ``preexisting_count``: the
    number of incarnations that began before the bridge watched.
    """

    def __init__(self, extras: Collection[ExtraType]) -> None:
        super().__init__()
        self.adopted = 0
        self.extras = extras
        self._told: list[Transition] = []

    def rows(self, now: Instant) -> list[Transition]:
        """Return a ``present`` record for every running container in scope; the caller must publish them."""
        for entry, incarnation in self.lives():
            if incarnation.silent:
                incarnation.silent = False
                self._changed.setdefault(entry.key, False)
        return self.portfolio(now)

    def portfolio(self, now: Instant) -> list[Transition]:
        """Return a ``present`` record for every running container in scope, without counting it as published."""
        return [
            self._describe(entry, incarnation, "present", "snapshot", now.wall)
            for entry, incarnation in self.lives()
            if incarnation.told
        ]

    def rescope(self, key: ContainerKey) -> None:
        """Reevaluate from the current metadata whether a container's incarnation is in scope.

        A container that enters the scope is first published in the next snapshot; one that leaves it is omitted there.
        """
        entry = self._enter(key)
        if entry.life is not None:
            matches = in_scope(entry.metadata)
            entry.life.silent = matches and (entry.life.silent or not entry.life.told)
            entry.life.told = matches
        self._tidy(entry)

    def announce(self, key: ContainerKey, now: Instant) -> list[Transition]:
        """Emit a change of a container's metadata that a listing has shown, as an additional event."""
        entry = self._enter(key)
        self._announce(entry, now.wall)
        return self._close(entry)

    def _announce(self, entry: Entry, at: int, live: ExtraType | None = None) -> None:
        """Emit the difference between published and current metadata; ``event_type``: type of the live event, if any.

        A deletion without a live event is emitted only after the exit that must have preceded it.
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
        """Emit an additional event if it is enabled and in scope; name the incarnation only if it is published."""
        if type_ not in self.extras:
            return
        incarnation = entry.life
        if not (in_scope(metadata) if incarnation is None else incarnation.told):
            return
        if incarnation is None or incarnation.silent:
            incarnation = NO_LIFE
        pod_labels = self._pod_labels(metadata)
        self._told.append(
            Transition(
                type_,
                origin,
                at,
                entry.key,
                metadata,
                pod_labels,
                incarnation.pid,
                incarnation.incarnation,
                incarnation.paused,
            )
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
        """Finish a step: note the change, and return the emitted transitions."""
        self._tidy(entry)
        return self._flush()

    def _flush(self) -> list[Transition]:
        emitted, self._told = self._told, []
        return emitted


def in_scope(metadata: Metadata | None) -> bool:
    """Return whether a container is in scope; true if its metadata is unknown."""
    return metadata is None or metadata.in_scope


def _origin(live: bool) -> Origin:
    return "live" if live else "inferred"
