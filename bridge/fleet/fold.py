"""Projection of records to the running containers, by the rules for consumers (docs/events.md). Pure.

Invariant: the result depends only on the set of received records, not on their order or on duplicates. For each
container the record with the highest position applies, unless a completed snapshot that started after this record does
not contain the container. A snapshot is applied once all of its records have arrived, and ignored if some are lost.
A consumer that starts late is therefore consistent after the next completed snapshot.
"""

from __future__ import annotations

from typing import NamedTuple

from bridge.fleet.documents import LIVING, Container, Document, Position, Snapshot, Source
from bridge.fleet.seen import Seen

_NOTHING: Position = (0, 0)


class _Told(NamedTuple):
    """The last known state of a container; ``container`` is None if it has exited."""

    position: Position
    namespace: str
    container: Container | None


class SourceFold:
    """The running containers of one source."""

    def __init__(self) -> None:
        self._seen = Seen()
        self._told: dict[str, _Told] = {}
        self._floors = _Floors()
        self._frames: dict[str, _Frames] = {}
        self._lost: list[Position] = []  # the last position of each loss

    @property
    def living(self) -> dict[str, Container]:
        """The running containers, by display id."""
        return {id_: known.container for id_, known in self._told.items() if known.container is not None}

    def take(self, document: Document) -> bool:
        """Apply a record and return whether it is new; a record of unknown type only counts as received."""
        if not self._seen.take(document):
            return False
        if document.type in ("snapshot_started", "snapshot_completed") and document.snapshot:
            self._frame(document, document.snapshot)
        elif document.type == "lost":
            self._lost.append(document.position)
        elif document.id is not None and document.container is not None:
            if document.type in LIVING:
                self._tell(document.id, _Told(document.position, document.container.namespace, document.container))
            elif document.type == "exited":
                self._tell(document.id, _Told(document.position, document.container.namespace, None))
        self._complete()
        return True

    def _tell(self, id_: str, told: _Told) -> None:
        known = self._told.get(id_)
        if told.position > self._floors.of(told.namespace) and (known is None or told.position > known.position):
            self._told[id_] = told

    def _frame(self, document: Document, snapshot: Snapshot) -> None:
        known = self._frames.get(snapshot.id, _Frames(document.position, None, None, None))
        if document.type == "snapshot_started":
            snapshot_state = known._replace(began=document.position)
        else:
            snapshot_state = known._replace(ended=document.position, completed=snapshot)
        self._frames[snapshot.id] = snapshot_state

    def _complete(self) -> None:
        """Apply the snapshots of which all records have arrived."""
        for id_, (_, start, end, completed) in list(self._frames.items()):
            if start is None or end is None or completed is None or not self._seen.whole(start, end):
                continue
            del self._frames[id_]
            if not any(start < lost < end for lost in self._lost):
                self._count(start, completed)

    def _count(self, began: Position, completed: Snapshot) -> None:
        self._floors.rise(began, completed.failed)
        self._told = {id_: last for id_, last in self._told.items() if last.position > self._floors.of(last.namespace)}
        # Snapshots and losses before all baselines have no effect any more.
        lowest = self._floors.least
        self._frames = {id_: each for id_, each in self._frames.items() if each.seen > lowest}
        self._lost = [lost for lost in self._lost if lost > lowest]


class _Frames(NamedTuple):
    """The received control records of a snapshot; ``first_position`` is the position of the first to arrive."""

    seen: Position
    began: Position | None
    ended: Position | None
    completed: Snapshot | None


class _Floors:
    """The start of the last completed snapshot of each namespace; earlier records are obsolete."""

    def __init__(self) -> None:
        self._usual = _NOTHING
        self._others: dict[str, Position] = {}

    def of(self, namespace: str) -> Position:
        return self._others.get(namespace, self._usual)

    @property
    def least(self) -> Position:
        """The lowest baseline."""
        return min([self._usual, *self._others.values()])

    def rise(self, began: Position, failed: tuple[str, ...]) -> None:
        """Advance the baselines to the start of a completed snapshot, except those of failed namespaces."""
        names = {*self._others, *failed}
        baselines = {name: self.of(name) if name in failed else max(self.of(name), began) for name in names}
        self._usual = max(self._usual, began)
        self._others = {name: baseline for name, baseline in baselines.items() if baseline != self._usual}


class Fold:
    """The running containers of all sources."""

    def __init__(self) -> None:
        self.sources: dict[Source, SourceFold] = {}

    def take(self, document: Document) -> bool:
        """Apply a record and return whether it is new."""
        projection = self.sources.get(document.source)
        if projection is None:
            projection = self.sources[document.source] = SourceFold()
        return projection.take(document)
