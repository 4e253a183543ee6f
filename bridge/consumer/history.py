"""The state of all sources at a past moment, and what changed between two moments, from the records of a topic. Pure.

A transition counts from the time at which it happened: ``start.at`` or ``exit.at`` if known, otherwise the timestamp.
Later records are needed, too: they have the times of changes that were noticed late, and show what was missed.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from bridge.consumer.projection import Change, SourceInfo, SourceProjection, parse_time
from bridge.consumer.record_decoder import Container, DecodedRecord, Exit, Snapshot, Source
from bridge.consumer.state import Running

_TRANSITIONS = frozenset({"started", "exited", "paused", "unpaused"})
_CONNECTION_GAPS = frozenset({"start", "reconnect", "overflow", "outbox_reset", "second_bridge"})


def time_of_change(record: DecodedRecord) -> str | None:
    """Return when a transition happened; None if that is not known, only when it was noticed."""
    if record.type == "started" and record.start and record.start.at:
        return record.start.at
    if record.type == "exited" and record.exit and record.exit.at:
        return record.exit.at
    return None if record.origin == "inferred" else record.timestamp


class PastSource(NamedTuple):
    """What the records show of a source at a moment; ``unknown`` says what they do not show, one sentence each."""

    info: SourceInfo
    unknown: list[str]


class PastState:
    """The state of all sources at a moment.

    Attributes:
        at: The moment.
        begins_at: The timestamp of the oldest record so far; None if there is none.
    """

    def __init__(self, at: datetime) -> None:
        self.at = at
        self.begins_at: datetime | None = None
        self._sources: dict[Source, _SourceAtMoment] = {}

    def apply(self, record: DecodedRecord) -> Change | None:
        """Apply a record; return its change, or None if it is a repetition, or later than the moment."""
        timestamp = parse_time(record.timestamp)
        if self.begins_at is None or timestamp < self.begins_at:
            self.begins_at = timestamp
        source = self._sources.get(record.source)
        if source is None:
            source = self._sources[record.source] = _SourceAtMoment(self.at)
        return source.apply(record, timestamp)

    def containers(self) -> list[Running]:
        """Return the containers that were running, or may have been: see ``Running.stale``."""
        return [each for source, state in self._sources.items() for each in state.containers(source)]

    def sources(self) -> list[PastSource]:
        """Return what is known of each source."""
        return [PastSource(state.info(source), state.unknown()) for source, state in self._sources.items()]

    def complete_sources(self) -> dict[Source, tuple[str, ...]]:
        """Return the sources whose containers are known exactly, except in the namespaces that could not be listed."""
        return {
            each.info.source: each.info.failed_namespaces
            for each in self.sources()
            if each.info.complete and not each.unknown
        }


class _SourceAtMoment:
    """The state of one source at a moment."""

    def __init__(self, at: datetime) -> None:
        self._at = at
        self._projection = SourceProjection()
        self._begins_at: datetime | None = None
        self._next: DecodedRecord | None = None  # the one with the lowest position after the moment
        self._gap: Snapshot | None = None  # a snapshot that is being read, of a gap that has begun before the moment
        self._changed_in_gap: dict[str, tuple[str, Snapshot]] = {}  # by id: the types of changes without a known time

    def apply(self, record: DecodedRecord, timestamp: datetime) -> Change | None:
        if self._begins_at is None or timestamp < self._begins_at:
            self._begins_at = timestamp
        happened_at = time_of_change(record)
        if (timestamp if happened_at is None else parse_time(happened_at)) <= self._at:
            return self._projection.apply(record)
        if not self._projection.skip(record) or record.type == "lost":
            return None
        if self._next is None or record.position < self._next.position:
            self._next = record
        if record.snapshot:
            since = record.snapshot.since
            has_begun = record is self._next if since is None else parse_time(since) <= self._at
            self._gap = record.snapshot if record.type == "snapshot_started" and has_begun else None
        elif self._gap and record.id and record.type in _TRANSITIONS and happened_at is None:
            self._changed_in_gap.setdefault(record.id, (record.type, self._gap))
        return None

    def containers(self, source: Source) -> list[Running]:
        is_unknown = bool(self._projection.is_stale(self._at)) or self._is_in_unknown_time()
        return [
            Running(source, id_, container, is_unknown or id_ in self._changed_in_gap)
            for id_, container in self._projection.running.items()
        ]

    def info(self, source: Source) -> SourceInfo:
        return self._projection.info(source, self._at)

    def unknown(self) -> list[str]:
        """Say what the records do not show."""
        if self._begins_at is not None and self._begins_at > self._at:
            return [f"the records begin at {self._begins_at:%Y-%m-%dT%H:%M:%SZ}"]
        if self._is_in_unknown_time() and self._next:
            return [f"what happened until {self._next.timestamp}, when whalebridge was started without its state"]
        texts = []
        running = self._projection.running
        for id_, (type_, gap) in self._changed_in_gap.items():
            if id_ in running or type_ == "started":
                texts.append(f"when {id_} has {type_}: {_between(gap)}")
        if missed := self._connection_gap():
            texts.append(f"containers that ran only {_between(missed)}")
        return texts

    def _connection_gap(self) -> Snapshot | None:
        """Return the first snapshot after the moment, if events of the moment may have been missed before it."""
        snapshot = self._next.snapshot if self._next is not None and self._next.type == "snapshot_started" else None
        if snapshot is None or snapshot.reason not in _CONNECTION_GAPS:
            return None
        return snapshot if snapshot.since is None or parse_time(snapshot.since) <= self._at else None

    def _is_in_unknown_time(self) -> bool:
        """Return whether the moment is between two epochs, the second of which knows nothing of the first."""
        gap = self._connection_gap()
        return gap is not None and gap.since is None and gap.previous is None


def _between(gap: Snapshot) -> str:
    return f"between {gap.since or 'the record before'} and {gap.until} ({gap.reason})"


class Run(NamedTuple):
    """A run that has started or ended.

    ``at`` is None if only the time is known at which that was noticed, or if no record shows it but a snapshot; then
    ``noticed_at`` is None, too. ``exit`` says how a run has ended, if that is known.
    """

    source: Source
    id: str
    container: Container
    at: str | None
    noticed_at: str | None
    exit: Exit | None = None


class Period:
    """What started and ended after one moment, up to another one."""

    def __init__(self, since: datetime, until: datetime) -> None:
        self.before = PastState(since)
        self.after = PastState(until)
        self._started: dict[tuple[Source, str, str], Run] = {}
        self._ended: dict[tuple[Source, str, str], Run] = {}

    def apply(self, record: DecodedRecord) -> None:
        """Apply a record."""
        self.before.apply(record)
        if not self.after.apply(record) or record.container is None or record.id is None:
            return
        changes = {"started": self._started, "exited": self._ended}.get(record.type)
        at = time_of_change(record)
        if changes is not None and self.before.at < parse_time(at or record.timestamp):
            run = Run(record.source, record.id, record.container, at, record.timestamp, record.exit)
            changes[record.source, record.id, record.container.incarnation] = run

    def started(self) -> list[Run]:
        """Return the runs that have started; also those without a record of it, if they certainly did not run before.

        A run that is not in ``before`` and has no ``started`` record was noticed by a snapshot.
        """
        before, complete = _runs(self.before), self.before.complete_sources()
        noticed = {
            key: run
            for key, run in _runs(self.after).items()
            if key not in before
            and key not in self._started
            and run.source in complete
            and run.container.namespace not in complete[run.source]
        }
        return _sorted([*self._started.values(), *noticed.values()])

    def ended(self) -> list[Run]:
        """Return the runs that have ended; also those that are not there any more without a record of their exit."""
        after, ran = _runs(self.after), self._started | _runs(self.before)
        gone = [
            run._replace(at=None, noticed_at=None)
            for key, run in ran.items()
            if key not in after and key not in self._ended
        ]
        return _sorted([*self._ended.values(), *gone])


def _runs(state: PastState) -> dict[tuple[Source, str, str], Run]:
    return {
        (each.source, each.id, each.container.incarnation): Run(each.source, each.id, each.container, None, None)
        for each in state.containers()
    }


def _sorted(runs: list[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (parse_time(run.at or run.noticed_at or ""), run.source, run.id))
