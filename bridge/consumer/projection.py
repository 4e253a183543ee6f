"""Projection of records to the running containers, by the rules for consumers (docs/events.md). Pure.

Invariant: the result depends only on the set of received records, not on their order or on duplicates. For each
container the record with the highest position applies, unless a completed snapshot that started after this record does
not contain the container. A snapshot is applied once all of its records have arrived, and ignored if some are lost.
A consumer that starts late is therefore consistent after the next completed snapshot. The exception is a retired
source, for which order matters: a later record that has arrived before proves that the source is alive.
"""

from __future__ import annotations

from typing import NamedTuple

from bridge.consumer.dedup import Deduplicator
from bridge.consumer.record_decoder import RUNNING_TYPES, Container, DecodedRecord, Position, Retired, Snapshot, Source

_ORIGIN: Position = (0, 0)


class _LastKnown(NamedTuple):
    """The last known state of a container; ``container`` is None if it has exited."""

    position: Position
    namespace: str
    container: Container | None


class SourceProjection:
    """The running containers of one source."""

    def __init__(self) -> None:
        self._deduplicator = Deduplicator()
        self._last_known: dict[str, _LastKnown] = {}
        self._baselines = _Baselines()
        self._open_snapshots: dict[str, _OpenSnapshot] = {}
        self._losses: list[Position] = []  # the last position of each loss
        self.retired: Retired | None = None
        """Why the source has ended; None if it has not, or if a later record has arrived."""

    @property
    def running(self) -> dict[str, Container]:
        """The running containers, by display id."""
        return {id_: known.container for id_, known in self._last_known.items() if known.container is not None}

    def apply(self, record: DecodedRecord) -> bool:
        """Apply a record and return whether it is new; a record of unknown type only counts as received."""
        newest = self._deduplicator.newest
        if not self._deduplicator.accept(record):
            return False
        if record.position > newest:
            self.retired = None
        if record.type in ("snapshot_started", "snapshot_completed") and record.snapshot:
            self._apply_control_record(record, record.snapshot)
        elif record.type == "lost":
            self._losses.append(record.position)
        elif record.type == "source_retired":
            if record.position >= newest:
                self._retire(record.position, record.retired or Retired())
        elif record.id is not None and record.container is not None:
            if record.type in RUNNING_TYPES:
                self._update(record.id, _LastKnown(record.position, record.container.namespace, record.container))
            elif record.type == "exited":
                self._update(record.id, _LastKnown(record.position, record.container.namespace, None))
        self._apply_complete_snapshots()
        return True

    def _update(self, id_: str, latest: _LastKnown) -> None:
        known = self._last_known.get(id_)
        if latest.position > self._baselines.get(latest.namespace) and (
            known is None or latest.position > known.position
        ):
            self._last_known[id_] = latest

    def _apply_control_record(self, record: DecodedRecord, snapshot: Snapshot) -> None:
        known = self._open_snapshots.get(snapshot.id, _OpenSnapshot(record.position, None, None, None))
        if record.type == "snapshot_started":
            snapshot_state = known._replace(start=record.position)
        else:
            snapshot_state = known._replace(end=record.position, completed=snapshot)
        self._open_snapshots[snapshot.id] = snapshot_state

    def _retire(self, position: Position, retired: Retired) -> None:
        """Forget everything up to the last record that was known when the source was retired."""
        self.retired = retired
        self._baselines = _Baselines(position)
        self._last_known, self._open_snapshots, self._losses = {}, {}, []

    def _apply_complete_snapshots(self) -> None:
        """Apply the snapshots of which all records have arrived."""
        for id_, (_, start, end, completed) in list(self._open_snapshots.items()):
            if start is None or end is None or completed is None or not self._deduplicator.covers(start, end):
                continue
            del self._open_snapshots[id_]
            if not any(start < lost < end for lost in self._losses):
                self._apply_snapshot(start, completed)

    def _apply_snapshot(self, start: Position, completed: Snapshot) -> None:
        self._baselines.advance(start, completed.failed)
        self._last_known = {
            id_: last for id_, last in self._last_known.items() if last.position > self._baselines.get(last.namespace)
        }
        # Snapshots and losses before all baselines have no effect any more.
        lowest = self._baselines.lowest
        self._open_snapshots = {id_: each for id_, each in self._open_snapshots.items() if each.first_position > lowest}
        self._losses = [lost for lost in self._losses if lost > lowest]


class _OpenSnapshot(NamedTuple):
    """The received control records of a snapshot; ``first_position`` is the position of the first to arrive."""

    first_position: Position
    start: Position | None
    end: Position | None
    completed: Snapshot | None


class _Baselines:
    """The start of the last completed snapshot of each namespace, or a retirement; earlier records are obsolete."""

    def __init__(self, default: Position = _ORIGIN) -> None:
        self._default = default
        self._by_namespace: dict[str, Position] = {}

    def get(self, namespace: str) -> Position:
        return self._by_namespace.get(namespace, self._default)

    @property
    def lowest(self) -> Position:
        """The lowest baseline."""
        return min([self._default, *self._by_namespace.values()])

    def advance(self, start: Position, failed: tuple[str, ...]) -> None:
        """Advance the baselines to the start of a completed snapshot, except those of failed namespaces."""
        names = {*self._by_namespace, *failed}
        baselines = {name: self.get(name) if name in failed else max(self.get(name), start) for name in names}
        self._default = max(self._default, start)
        self._by_namespace = {name: baseline for name, baseline in baselines.items() if baseline != self._default}


class Projection:
    """The running containers of all sources."""

    def __init__(self) -> None:
        self.sources: dict[Source, SourceProjection] = {}

    def apply(self, record: DecodedRecord) -> bool:
        """Apply a record and return whether it is new."""
        projection = self.sources.get(record.source)
        if projection is None:
            projection = self.sources[record.source] = SourceProjection()
        return projection.apply(record)
