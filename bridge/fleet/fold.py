"""From records to what lives, by the rules for consumers (docs/events.md). Pure.

The result depends on which records have come, not on their order nor on repetitions: for each container the record of
the highest position counts, unless a completed snapshot that began after it has not named the container. A snapshot
of which something was lost is void, so each counts once all of it has come. So records that overtake each other do no
harm; and as with the reference fold, whoever joins in the middle is right after the next completed snapshot.
"""

from __future__ import annotations

from typing import NamedTuple

from bridge.fleet.documents import LIVING, Container, Document, Position, Snapshot, Source
from bridge.fleet.seen import Seen

_NOTHING: Position = (0, 0)


class _Told(NamedTuple):
    """What was said of a container last; ``container`` is None where it has exited."""

    position: Position
    namespace: str
    container: Container | None


class SourceFold:
    """What lives on one source."""

    def __init__(self) -> None:
        self._seen = Seen()
        self._told: dict[str, _Told] = {}
        self._floors = _Floors()
        self._frames: dict[str, _Frames] = {}
        self._lost: list[Position] = []  # the last of each loss

    @property
    def living(self) -> dict[str, Container]:
        """The containers that live, by display id."""
        return {id_: told.container for id_, told in self._told.items() if told.container is not None}

    def take(self, document: Document) -> bool:
        """Take a record; tell whether it is new. Unknown types change nothing, but their positions count."""
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
            frames = known._replace(began=document.position)
        else:
            frames = known._replace(ended=document.position, completed=snapshot)
        self._frames[snapshot.id] = frames

    def _complete(self) -> None:
        """Let the snapshots count that are complete by now."""
        for id_, (_, began, ended, completed) in list(self._frames.items()):
            if began is None or ended is None or completed is None or not self._seen.whole(began, ended):
                continue
            del self._frames[id_]
            if not any(began < lost < ended for lost in self._lost):
                self._count(began, completed)

    def _count(self, began: Position, completed: Snapshot) -> None:
        self._floors.rise(began, completed.failed)
        self._told = {id_: told for id_, told in self._told.items() if told.position > self._floors.of(told.namespace)}
        # What is older than all floors can say nothing more, completed or not.
        least = self._floors.least
        self._frames = {id_: each for id_, each in self._frames.items() if each.seen > least}
        self._lost = [lost for lost in self._lost if lost > least]


class _Frames(NamedTuple):
    """What has come of a snapshot's frames; ``seen`` is the position of the first that came."""

    seen: Position
    began: Position | None
    ended: Position | None
    completed: Snapshot | None


class _Floors:
    """Where the last completed snapshot of each namespace began: what was told before counts no more."""

    def __init__(self) -> None:
        self._usual = _NOTHING
        self._others: dict[str, Position] = {}

    def of(self, namespace: str) -> Position:
        return self._others.get(namespace, self._usual)

    @property
    def least(self) -> Position:
        """The lowest of them."""
        return min([self._usual, *self._others.values()])

    def rise(self, began: Position, failed: tuple[str, ...]) -> None:
        """A snapshot that began there was completed; for namespaces that failed it says nothing."""
        names = {*self._others, *failed}
        floors = {name: self.of(name) if name in failed else max(self.of(name), began) for name in names}
        self._usual = max(self._usual, began)
        self._others = {name: floor for name, floor in floors.items() if floor != self._usual}


class Fold:
    """What lives on all sources."""

    def __init__(self) -> None:
        self.sources: dict[Source, SourceFold] = {}

    def take(self, document: Document) -> bool:
        """Take a record; tell whether it is new."""
        fold = self.sources.get(document.source)
        if fold is None:
            fold = self.sources[document.source] = SourceFold()
        return fold.take(document)
