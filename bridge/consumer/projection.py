"""Projection of records to the running containers, by the rules for consumers (docs/events.md). Pure.

Invariant: the result depends only on the set of received records, not on their order or on duplicates. For each
container the record with the highest position applies, unless a completed snapshot that started after this record does
not contain the container. A snapshot is applied once all of its records have arrived, and ignored if some are lost.
A consumer that starts late is therefore consistent after the next completed snapshot. There are two exceptions, for
which order matters: a later record that has arrived before a retirement proves that the source is alive, and a record
that arrives after a loss of its position counts as a repetition.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zlib import crc32

from msgspec import Struct

from bridge.consumer.dedup import Deduplicator, Positions, SequenceRange
from bridge.consumer.record_decoder import (
    REPEATING_TYPES,
    RUNNING_TYPES,
    Container,
    DecodedRecord,
    Position,
    Retired,
    Snapshot,
    Source,
)
from bridge.core.container_metadata import intern

STALE_INTERVALS = 3
"""A source is stale after this number of heartbeat intervals without a heartbeat or record."""
STALE_MINIMUM = timedelta(minutes=1)
MAX_DIGESTS = 64
"""Number of records of each source, the last ones of its newest epoch, whose repetitions are compared."""
MAX_ALTERED = 100
_UINT32 = 0xFFFF_FFFF
_ORIGIN: Position = (0, 0)
_UNKNOWN_TIME = datetime.min.replace(tzinfo=UTC)


class Change(NamedTuple):
    """A new record, and what it changes: the containers that run now, and those that do not run any more, by id."""

    record: DecodedRecord
    updated: dict[str, Container]
    removed: dict[str, Container]

    @property
    def source(self) -> Source:
        """The record's source."""
        return self.record.source


class SourceInfo(NamedTuple):
    """What is known of a source.

    ``complete`` says whether the containers are exactly those that ran at ``position``: a snapshot was complete, and
    since then no record is missing or lost. ``failed_namespaces`` could not be listed in that snapshot.
    ``watermark`` is the time up to which the state is known; ``stale`` is None if it cannot be known, before the first
    heartbeat. ``missing`` are sequences that have not arrived although later ones have, ``altered`` the positions of
    repeated records that differ from their first copies.
    """

    source: Source
    position: Position
    watermark: datetime
    stale: bool | None
    complete: bool
    failed_namespaces: tuple[str, ...]
    retired: Retired | None
    missing: list[SequenceRange]
    altered: list[Position]


class _LastKnown(Struct, frozen=True, array_like=True, gc=False):
    """The last known state of a container; ``container`` is None if it has exited."""

    position: Position
    namespace: str
    container: Container | None


class _OpenSnapshot(NamedTuple):
    """The received control records of a snapshot; ``first_position`` is the position of the first to arrive."""

    first_position: Position
    start: Position | None
    end: Position | None
    completed: Snapshot | None


class _Digests:
    """The CRC-32 of the last records of the newest epoch, to compare repetitions.

    A record's place is its sequence modulo ``MAX_DIGESTS``; what is stored there is its sequence and digest, in 32 bits
    each. This takes a tenth of the memory of a dictionary, which is more than that of some containers.
    """

    def __init__(self, saved: Iterable[tuple[Position, int]] = ()) -> None:
        self._epoch = 0
        self._slots = array("Q", bytes(8 * MAX_DIGESTS))
        for position, digest in saved:
            self.add(position, digest)

    def add(self, position: Position, digest: int) -> None:
        epoch, sequence = position
        if epoch > self._epoch:
            self._epoch, self._slots = epoch, array("Q", bytes(8 * MAX_DIGESTS))
        if epoch == self._epoch and sequence > self._slots[sequence % MAX_DIGESTS] >> 32:
            self._slots[sequence % MAX_DIGESTS] = (sequence & _UINT32) << 32 | digest

    def differs(self, position: Position, digest: int) -> bool:
        """Return whether the first copy of a record is known to have another digest."""
        epoch, sequence = position
        slot = self._slots[sequence % MAX_DIGESTS]
        return epoch == self._epoch and sequence & _UINT32 == slot >> 32 and slot & _UINT32 != digest

    def save(self) -> list[tuple[Position, int]]:
        return [((self._epoch, slot >> 32), slot & _UINT32) for slot in self._slots if slot]


class SavedSource(Struct, frozen=True, omit_defaults=True):
    """A source's projection as stored: see ``SourceProjection``."""

    host: str
    engine: str
    position: Position
    received: Positions
    last_known: dict[str, _LastKnown]
    baseline: Position
    namespace_baselines: dict[str, Position]
    open_snapshots: dict[str, _OpenSnapshot]
    losses: list[Position]
    snapshot_start: Position | None = None
    failed_namespaces: tuple[str, ...] = ()
    last_record_at: str = ""
    last_heartbeat_at: str = ""
    heartbeat_interval: float | None = None
    retired: Retired | None = None
    digests: list[tuple[Position, int]] = []
    altered: list[Position] = []
    heartbeat_position: Position = (0, 0)


class SourceProjection:
    """The running containers of one source."""

    def __init__(self) -> None:
        self._deduplicator = Deduplicator()
        self._position = _ORIGIN  # the highest one, also of a retirement
        self._last_known: dict[str, _LastKnown] = {}
        self._baselines = _Baselines()
        self._open_snapshots: dict[str, _OpenSnapshot] = {}
        self._losses: list[Position] = []  # the last position of each loss
        self._snapshot_start: Position | None = None  # of the last complete snapshot
        self._failed_namespaces: tuple[str, ...] = ()
        self._last_record_at = self._last_heartbeat_at = ""
        self._heartbeat_position = _ORIGIN
        self._heartbeat_interval: float | None = None
        self._digests = _Digests()
        self._altered: list[Position] = []
        self._skipped_from: Position | None = None  # the lowest position that was skipped
        self.retired: Retired | None = None
        """Why the source has ended; None if it has not, or if a later record has arrived."""

    @property
    def running(self) -> dict[str, Container]:
        """The running containers, by display id."""
        return {id_: known.container for id_, known in self._last_known.items() if known.container is not None}

    def apply(self, record: DecodedRecord, data: bytes = b"") -> Change | None:
        """Apply a record and return its change; None for a repeated record, and for a heartbeat.

        A record of unknown type changes nothing. With the record's ``data``, repetitions are compared.
        """
        newest_epoch, type_ = self._position[0], record.type
        epoch = newest_epoch if record.epoch == newest_epoch else record.epoch  # one object for all positions
        position = epoch, record.sequence
        if type_ in REPEATING_TYPES:
            return self._apply_repeating(record, position)
        if not self._accept(record, position, data):
            return None
        if position > self._position:
            self._position, self._last_record_at = position, record.timestamp
            self.retired = None
        change = Change(record, {}, {})
        if record.container is not None:
            self._apply_container(change, position, record.id, record.container)
        elif type_ == "lost":
            self._losses.append(position)
        elif record.snapshot and type_ in ("snapshot_started", "snapshot_completed"):
            self._apply_control_record(record, record.snapshot)
        if self._open_snapshots:
            change.removed.update(self._apply_complete_snapshots())
        return change

    def skip(self, record: DecodedRecord) -> bool:
        """Take note of a record that is later than the time which the projection is for; return whether it is new.

        It does not change the state, but it may show that earlier records are missing.
        """
        if record.type in REPEATING_TYPES:
            self._deduplicator.expect(record.position)
            return False
        if not self._deduplicator.accept(record):
            return False
        if record.type == "lost":  # of records that may be earlier
            self._losses.append(record.position)
            return True
        if record.snapshot and record.snapshot.previous:
            previous = record.snapshot.previous
            self._deduplicator.link(record.epoch, (previous.epoch, previous.sequence))
        self._skipped_from = min(record.position, self._skipped_from or record.position)
        return True

    def info(self, source: Source, now: datetime) -> SourceInfo:
        """Return what is known of the source, which is ``source``, at a time."""
        missing = [each for each in self._deduplicator.missing() if self._precedes_skipped((each.epoch, each.first))]
        watermark = self._watermark()
        return SourceInfo(
            source,
            self._position,
            watermark,
            self._is_stale(watermark, now),
            self._is_complete(missing),
            self._failed_namespaces,
            self.retired,
            missing,
            list(self._altered),
        )

    def is_stale(self, now: datetime) -> bool | None:
        """Return whether the state of the source's containers is unknown at a time; None if that cannot be known."""
        return self._is_stale(self._watermark(), now)

    def start_from(self, completed: DecodedRecord, entries: Iterable[DecodedRecord]) -> None:
        """Start from a state table: the source's entry and those of its containers."""
        position = completed.position
        self._deduplicator = Deduplicator(Positions(evicted_up_to=position))
        self._position, self._last_record_at = position, completed.timestamp
        self._baselines, self._snapshot_start = _Baselines(), position
        if completed.snapshot:
            self._failed_namespaces = completed.snapshot.failed
        for each in entries:
            if each.id is not None and each.container is not None:
                self._update(each.id, _LastKnown(each.position, each.container.namespace, each.container))

    def save(self, source: Source) -> SavedSource:
        """Return the projection in the form in which it is stored."""
        return SavedSource(
            *source,
            self._position,
            self._deduplicator.positions(),
            self._last_known,
            self._baselines.default,
            self._baselines.by_namespace,
            self._open_snapshots,
            self._losses,
            self._snapshot_start,
            self._failed_namespaces,
            self._last_record_at,
            self._last_heartbeat_at,
            self._heartbeat_interval,
            self.retired,
            self._digests.save(),
            self._altered,
            self._heartbeat_position,
        )

    @classmethod
    def load(cls, saved: SavedSource) -> SourceProjection:
        """Restore a projection."""
        projection = cls()
        projection._position = saved.position
        projection._deduplicator = Deduplicator(saved.received)
        projection._last_known = saved.last_known
        projection._baselines = _Baselines(saved.baseline, saved.namespace_baselines)
        projection._open_snapshots = saved.open_snapshots
        projection._losses = saved.losses
        projection._snapshot_start = saved.snapshot_start
        projection._failed_namespaces = saved.failed_namespaces
        projection._last_record_at = saved.last_record_at
        projection._last_heartbeat_at = saved.last_heartbeat_at
        projection._heartbeat_interval = saved.heartbeat_interval
        projection.retired = saved.retired
        projection._digests = _Digests(saved.digests)
        projection._altered = saved.altered
        projection._heartbeat_position = saved.heartbeat_position
        return projection

    def _accept(self, record: DecodedRecord, position: Position, data: bytes) -> bool:
        """Return whether a record is new; compare a repeated one with its first copy."""
        is_new = self._deduplicator.accept(record)
        if data and record.type != "lost":  # one may replace a record that has arrived
            digest = crc32(data)
            if is_new:
                self._digests.add(position, digest)
            elif self._digests.differs(position, digest):
                self._altered = [*self._altered[1 - MAX_ALTERED :], position]
        return is_new

    def _apply_container(self, change: Change, position: Position, id_: str | None, container: Container) -> None:
        record = change.record
        if id_ is None:
            return
        if record.type in RUNNING_TYPES:
            container = _share_strings(container)
            if self._update(id_, _LastKnown(position, container.namespace, container)):
                change.updated[id_] = container
        elif record.type == "exited":
            before = self._last_known.get(id_)
            exited = _LastKnown(position, container.namespace, None)
            if self._update(id_, exited) and before is not None and before.container is not None:
                change.removed[id_] = container

    def _apply_repeating(self, record: DecodedRecord, position: Position) -> Change | None:
        """Apply a record that has the position of the last one before it."""
        if record.type == "heartbeat":
            self._deduplicator.expect(position)
            latest = (self._heartbeat_position, self._last_heartbeat_at)
            if (position, record.timestamp) >= latest:  # otherwise it is a repetition, or was overtaken
                self._heartbeat_position, self._last_heartbeat_at = position, record.timestamp
                if record.heartbeat:
                    self._heartbeat_interval = record.heartbeat.interval
            return None
        if position < self._position or (position == self._position and self.retired is not None):
            return None  # the source is alive, or this is a repetition
        removed = self.running
        self._position, self.retired = position, record.retired or Retired()
        self._baselines, self._snapshot_start = _Baselines(position), None
        self._last_known, self._open_snapshots, self._losses = {}, {}, []
        self._failed_namespaces = ()
        return Change(record, {}, removed)

    def _update(self, id_: str, latest: _LastKnown) -> bool:
        """Set the state of a container, unless a later one is known; return whether it was set."""
        known = self._last_known.get(id_)
        if latest.position > self._baselines.get(latest.namespace) and (
            known is None or latest.position > known.position
        ):
            self._last_known[id_] = latest
            return True
        return False

    def _apply_control_record(self, record: DecodedRecord, snapshot: Snapshot) -> None:
        known = self._open_snapshots.get(snapshot.id, _OpenSnapshot(record.position, None, None, None))
        if record.type == "snapshot_started":
            snapshot_state = known._replace(start=record.position)
            if snapshot.previous:
                self._deduplicator.link(record.epoch, (snapshot.previous.epoch, snapshot.previous.sequence))
        else:
            snapshot_state = known._replace(end=record.position, completed=snapshot)
        self._open_snapshots[snapshot.id] = snapshot_state

    def _apply_complete_snapshots(self) -> dict[str, Container]:
        """Apply the snapshots of which all records have arrived; return the running containers that they remove."""
        removed: dict[str, Container] = {}
        for id_, (_, start, end, completed) in list(self._open_snapshots.items()):
            if start is None or end is None or completed is None or not self._deduplicator.covers(start, end):
                continue
            del self._open_snapshots[id_]
            if not any(start < lost < end for lost in self._losses):
                removed |= self._apply_snapshot(start, completed)
        return removed

    def _apply_snapshot(self, start: Position, completed: Snapshot) -> dict[str, Container]:
        if self._snapshot_start is None or start > self._snapshot_start:
            self._snapshot_start, self._failed_namespaces = start, completed.failed
        self._baselines.advance(start, completed.failed)
        kept, removed = {}, {}
        for id_, last in self._last_known.items():
            if last.position > self._baselines.get(last.namespace):
                kept[id_] = last
            elif last.container is not None:
                removed[id_] = last.container
        self._last_known = kept
        # Snapshots and losses before all baselines have no effect any more.
        lowest = self._baselines.lowest
        self._open_snapshots = {id_: each for id_, each in self._open_snapshots.items() if each.first_position > lowest}
        self._losses = [lost for lost in self._losses if lost > lowest]
        return removed

    def _watermark(self) -> datetime:
        """Return the time up to which the state is known, by the clock of the node."""
        return max(parse_time(self._last_record_at), parse_time(self._last_heartbeat_at))

    def _is_stale(self, watermark: datetime, now: datetime) -> bool | None:
        if self._heartbeat_interval is None:
            return None
        silence = (now - watermark).total_seconds()  # an interval may be larger than a timedelta
        return silence > max(STALE_MINIMUM.total_seconds(), STALE_INTERVALS * self._heartbeat_interval)

    def _is_complete(self, missing: list[SequenceRange]) -> bool:
        start = self._snapshot_start
        return (
            start is not None
            and self._deduplicator.is_linked(start[0], self._position[0])
            and not any((epoch, last) > start for epoch, _, last in missing)
            and not any(lost > start and self._precedes_skipped(lost) for lost in self._losses)
        )

    def _precedes_skipped(self, position: Position) -> bool:
        return self._skipped_from is None or position < self._skipped_from


class _Baselines:
    """The start of the last completed snapshot of each namespace, or a retirement; earlier records are obsolete."""

    def __init__(self, default: Position = _ORIGIN, by_namespace: dict[str, Position] | None = None) -> None:
        self.default = default
        self.by_namespace: dict[str, Position] = by_namespace or {}

    def get(self, namespace: str) -> Position:
        return self.by_namespace.get(namespace, self.default)

    @property
    def lowest(self) -> Position:
        """The lowest baseline."""
        return min([self.default, *self.by_namespace.values()])

    def advance(self, start: Position, failed: tuple[str, ...]) -> None:
        """Advance the baselines to the start of a completed snapshot, except those of failed namespaces."""
        names = {*self.by_namespace, *failed}
        baselines = {name: self.get(name) if name in failed else max(self.get(name), start) for name in names}
        self.default = max(self.default, start)
        self.by_namespace = {name: baseline for name, baseline in baselines.items() if baseline != self.default}


class Projection:
    """The running containers of all sources."""

    def __init__(self) -> None:
        self.sources: dict[Source, SourceProjection] = {}

    def apply(self, record: DecodedRecord, data: bytes = b"") -> Change | None:
        """Apply a record and return its change; None for a repeated record, and for a heartbeat."""
        source = record.source
        projection = self.sources.get(source)
        if projection is None:
            projection = self.sources[source] = SourceProjection()
        return projection.apply(record, data)

    def start_from(self, entries: Iterable[DecodedRecord]) -> None:
        """Start from the entries of a state table; a source without its own entry has not completed a snapshot."""
        completed: dict[Source, DecodedRecord] = {}
        containers: dict[Source, list[DecodedRecord]] = {}
        for each in entries:
            if each.type == "snapshot_completed":
                completed[each.source] = each
            else:
                containers.setdefault(each.source, []).append(each)
        for source, record in completed.items():
            self.sources[source] = SourceProjection()
            self.sources[source].start_from(record, containers.get(source, ()))


def _share_strings(container: Container) -> Container:
    """Return the container with those strings shared that many containers have; records are decoded one by one."""
    labels = container.labels
    return Container(
        container.id,
        intern(container.namespace),
        container.id if container.name == container.id else container.name,
        intern(container.project),
        intern(container.service),
        container.pid,
        container.incarnation,
        container.paused,
        intern(container.kind),
        intern(container.image),
        intern(container.runtime),
        container.created_at,
        labels and {intern(key): intern(value) for key, value in labels.items()},
        container.labels_dropped,
        container.pod,
        container.image_digest and intern(container.image_digest),
    )


def parse_time(text: str) -> datetime:
    """Parse a record's timestamp; an invalid one is the earliest time."""
    try:
        parsed = datetime.fromisoformat(text)
        return parsed.astimezone(UTC) if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return _UNKNOWN_TIME
