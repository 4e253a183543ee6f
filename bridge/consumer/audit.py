"""Proves or refutes that the records of topics, streams and files are what the contract promises. Pure.

Records are collected first, because several inputs may complete each other, and judged at the end, in the order of
their positions. What the records cannot show, such as the end of the last epoch, is listed as unknown.

The runs of containers are judged only where their state is certain: not before the first complete snapshot, nor from a
hole or loss to the next one.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

from bridge.consumer.dedup import Deduplicator
from bridge.consumer.record_decoder import DecodedRecord, Lost, Position, Snapshot, Source
from bridge.core.container_metadata import intern

FindingKind: TypeAlias = Literal["missing", "altered", "order", "incarnation", "snapshot", "invalid"]
_Problem: TypeAlias = tuple[FindingKind, str]

_AGREEING = frozenset({"audit", "interval", "on_demand"})  # reasons for which no filter has changed
_INCARNATION = re.compile(r".{0,8}-(\d+)(-\d+)?")  # digits of the boot id, the pid, and the pid cycle
_RUN_STATES: dict[str, tuple[str, ...]] = {  # of a run before a record; "new": it has none yet
    "started": ("new", "unknown"),
    "present": ("new", "unknown", "running", "paused"),
    "paused": ("running", "unknown"),
    "unpaused": ("paused", "unknown"),
    "exited": ("running", "paused", "unknown"),
}
_CONTENT = {  # the field that a record of a type needs
    **dict.fromkeys((*_RUN_STATES, "created", "deleted", "renamed", "oom"), "container"),
    **dict.fromkeys(("snapshot_started", "snapshot_completed"), "snapshot"),
    "lost": "lost",
}


class Finding(Struct, frozen=True):
    """A defect: sequences of a source, and the timestamps of the records before and after it, if there are any."""

    kind: FindingKind
    text: str
    host: str = ""
    engine: str = ""
    epoch: int = 0
    first: int = 0
    last: int = 0
    after: str = ""
    before: str = ""


class SourceSummary(Struct, frozen=True):
    """The records of a source: the first and last position, their timestamps, and what they cannot show."""

    host: str
    engine: str
    records: int
    first: Position
    last: Position
    first_at: str
    last_at: str
    unknown: list[str]


class Report(Struct, frozen=True):
    """The result of an audit; ``holds`` is true if there are records and no findings."""

    holds: bool
    messages: int
    records: int
    repeated: int
    heartbeats: int
    sources: list[SourceSummary]
    findings: list[Finding]


class Audit:
    """Collects the records of one or several inputs, and judges them."""

    def __init__(self) -> None:
        self.messages = 0
        self._sources: dict[Source, _SourceAudit] = {}
        self._invalid: list[Finding] = []

    def add(self, record: DecodedRecord, data: bytes, *, input_number: int = 0, ordered: bool = True) -> None:
        """Add a record with its bytes, in the order of its input.

        ``ordered`` says whether the input promises the order of a source's records.
        """
        self.messages += 1
        source = record.source
        audit = self._sources.get(source)
        if audit is None:
            audit = self._sources[source] = _SourceAudit(source)
        audit.add(record, hash(data), input_number, ordered=ordered)

    def add_invalid(self, location: str, reason: str) -> None:
        """Add a message that is not a record."""
        self.messages += 1
        self._invalid.append(Finding("invalid", f"{location}: {reason}"))

    def report(self) -> Report:
        """Judge all records."""
        audits = [audit for _, audit in sorted(self._sources.items())]
        findings = [*self._invalid, *(finding for audit in audits for finding in audit.judge())]
        records = sum(each.count for each in audits)
        return Report(
            bool(records) and not findings,
            self.messages,
            records,
            sum(each.repeated for each in audits),
            sum(each.heartbeats for each in audits),
            [audit.summary() for audit in audits if audit.count],
            findings,
        )


class _Entry(NamedTuple):
    """What is kept of a record."""

    type: str
    timestamp: str
    digest: int
    id: str = ""
    namespace: str = ""
    incarnation: str = ""
    pid: int = 0
    paused: bool = False
    snapshot: Snapshot | None = None
    lost: Lost | None = None


def _make_entry(record: DecodedRecord, digest: int) -> _Entry:
    container = record.container
    if container is None:
        return _Entry(intern(record.type), record.timestamp, digest, snapshot=record.snapshot, lost=record.lost)
    return _Entry(
        intern(record.type),
        record.timestamp,
        digest,
        intern(record.id or ""),
        intern(container.namespace),
        intern(container.incarnation),
        container.pid,
        container.paused,
    )


class _InputOrder:
    """The order of a source's records in one input."""

    def __init__(self) -> None:
        self.received = Deduplicator()
        self.newest: dict[int, tuple[int, str]] = {}  # by epoch: the highest sequence, and its timestamp
        self.epoch = 0  # the newest one


class _SourceAudit:
    """The records of one source."""

    def __init__(self, source: Source) -> None:
        self.repeated = 0
        self.heartbeats = 0
        self._source = source
        self._entries: dict[int, dict[int, _Entry]] = {}  # by epoch and sequence
        self._losses: dict[int, dict[int, _Entry]] = {}  # the same, because a loss may repeat the position of a record
        self._inputs: dict[int, _InputOrder] = {}
        self._named: dict[int, int] = {}  # by epoch: the highest sequence that a heartbeat or a later epoch names
        self._last_heartbeat: tuple[Position, str] = ((0, 0), "")
        self._retired_at: set[Position] = set()
        self._regressions: list[Finding] = []  # records of an epoch after those of a newer one
        self._findings: list[Finding] = []

    @property
    def count(self) -> int:
        """The number of different records, without heartbeats and retirements."""
        return sum(map(len, (*self._entries.values(), *self._losses.values())))

    def add(self, record: DecodedRecord, digest: int, input_number: int, *, ordered: bool) -> None:
        epoch, sequence = record.position
        if record.type == "heartbeat":
            self.heartbeats += 1
            self._name(record.position)
            self._last_heartbeat = max(self._last_heartbeat, (record.position, record.timestamp))
            return
        if record.type == "source_retired":
            self._name(record.position)
            self._retired_at.add(record.position)
            return
        if ordered:
            self._check_order(record, input_number)
        content = _CONTENT.get(record.type)
        if content is not None and getattr(record, content) is None:
            text = f"{record.type} without {content}"
            self._findings.append(self._finding("invalid", text, epoch, sequence, sequence, record.timestamp))
        entry = _make_entry(record, digest)
        entries = (self._entries if record.lost is None else self._losses).setdefault(epoch, {})
        first = entries.setdefault(sequence, entry)
        if first is not entry:
            self.repeated += 1
            if first.digest != digest:
                text = "a repeated record differs from its first copy"
                self._findings.append(self._finding("altered", text, epoch, sequence, sequence, first.timestamp))

    def judge(self) -> list[Finding]:
        """Return all findings, in the order of their positions."""
        epochs = sorted({*self._entries, *self._losses})
        for epoch in epochs:
            if previous := self._previous(epoch):
                self._name(previous)
        runs, published = _Runs(), sorted(self._entries)
        for epoch in sorted({*epochs, *(each for each in self._named if epochs and each > epochs[0])}):
            self._findings += self._judge_epoch(epoch, runs, published, is_oldest=bool(epochs) and epoch == epochs[0])
        snapshots = (entry.snapshot for entries in self._entries.values() for entry in entries.values())
        if not any(snapshot and snapshot.reason == "second_bridge" for snapshot in snapshots):
            self._findings += self._regressions
        return sorted(self._findings, key=lambda each: (each.epoch, each.first))

    def summary(self) -> SourceSummary:
        """Return what is there, and what cannot be known."""
        records = {**self._losses, **self._entries}
        first_epoch, last_epoch = min(records), max(records)
        first = min({**self._losses.get(first_epoch, {}), **self._entries.get(first_epoch, {})})
        last = max({**self._losses.get(last_epoch, {}), **self._entries.get(last_epoch, {})})
        oldest = self._entry(first_epoch, first)
        newest = self._entry(last_epoch, last)
        return SourceSummary(
            *self._source,
            self.count,
            (first_epoch, first),
            (last_epoch, last),
            oldest.timestamp,
            newest.timestamp,
            list(self._unknown((first_epoch, first), (last_epoch, last))),
        )

    def _entry(self, epoch: int, sequence: int) -> _Entry:
        return self._entries.get(epoch, {}).get(sequence) or self._losses[epoch][sequence]

    def _name(self, position: Position) -> None:
        epoch, sequence = position
        self._named[epoch] = max(sequence, self._named.get(epoch, 0))

    def _previous(self, epoch: int) -> Position | None:
        """Return the last position before an epoch, as its first record says."""
        first = self._entries.get(epoch, {}).get(1)
        previous = first.snapshot.previous if first and first.snapshot else None
        return (previous.epoch, previous.sequence) if previous else None

    def _finding(
        self, kind: FindingKind, text: str, epoch: int, first: int, last: int, after: str = "", before: str = ""
    ) -> Finding:
        return Finding(kind, text, *self._source, epoch, first, last, after, before)

    def _unknown(self, first: Position, last: Position) -> Iterator[str]:
        """Say what the records cannot show."""
        oldest = self._entry(*first).snapshot
        if first[1] > 1 or oldest is None or oldest.previous is not None:
            yield f"whether there were records before {first[0]}-{first[1]}"
        for before, epoch in pairwise(sorted({*self._entries, *self._losses})):
            if self._previous(epoch) is None:
                yield f"the end of epoch {before}: epoch {epoch} does not name the record before it"
        position, timestamp = self._last_heartbeat
        named = f"; a heartbeat of {timestamp} says that it was the last one then" if position == last else ""
        yield f"whether there are records after {last[0]}-{last[1]}{named}"

    def _check_order(self, record: DecodedRecord, input_number: int) -> None:
        """Check that the first copies of an input arrive in order, within an epoch and from one to the next."""
        order = self._inputs.get(input_number)
        if order is None:
            order = self._inputs[input_number] = _InputOrder()
        if not order.received.accept(record):
            return
        epoch, sequence = record.position
        before, timestamp = order.newest.get(epoch, (0, ""))
        if sequence < before:
            text = f"arrives after sequence {before}"
            finding = self._finding("order", text, epoch, sequence, sequence, record.timestamp, timestamp)
            self._findings.append(finding)
            return
        if epoch < order.epoch:
            text = f"arrives after a record of epoch {order.epoch}"
            self._regressions.append(self._finding("order", text, epoch, sequence, sequence, record.timestamp))
        order.newest[epoch] = sequence, record.timestamp
        order.epoch = max(order.epoch, epoch)

    def _judge_epoch(self, epoch: int, runs: _Runs, published: Sequence[int], *, is_oldest: bool) -> Iterator[Finding]:
        """Judge the records of an epoch; ``published`` are all epochs that have any, except losses, in order."""
        entries, losses = self._entries.get(epoch, {}), self._losses.get(epoch, {})
        expected, at = 1, ""  # the next sequence, and the timestamp of the record before it
        if not is_oldest:
            yield from self._judge_begin(epoch, runs, published)
        for sequence in sorted({*entries, *losses}):
            entry, loss = entries.get(sequence), losses.get(sequence)
            first = sequence if loss is None or loss.lost is None else min(sequence, loss.lost.first)
            timestamp = self._entry(epoch, sequence).timestamp
            if expected == 1 and is_oldest:
                expected = first
            if first > expected:
                yield self._finding("missing", "not there", epoch, expected, first - 1, at, timestamp)
                runs.lose()
            if loss is not None and loss.lost is not None:
                if loss.lost.epoch != epoch or not 1 <= loss.lost.first <= loss.lost.last == sequence:
                    yield self._finding("invalid", "lost names an impossible range", epoch, sequence, sequence, at)
                if any(each not in entries for each in range(max(1, loss.lost.first), sequence + 1)):
                    runs.lose()
            if entry is not None:
                if sequence == 1 and entry.type != "snapshot_started":
                    text = "the first record of an epoch does not start a snapshot"
                    yield self._finding("snapshot", text, epoch, 1, 1, at, timestamp)
                for kind, text in runs.apply(entry, is_first=sequence == 1):
                    yield self._finding(kind, text, epoch, sequence, sequence, at, timestamp)
            if (epoch, sequence) in self._retired_at:
                runs.lose()
            expected, at = max(expected, sequence + 1), timestamp
        if self._named.get(epoch, 0) >= expected and (entries or losses or not is_oldest):
            text = "not there, although a later record or a heartbeat names it"
            yield self._finding("missing", text, epoch, expected, self._named[epoch], at)
            runs.lose()

    def _judge_begin(self, epoch: int, runs: _Runs, published: Sequence[int]) -> Iterator[Finding]:
        """Judge how an epoch follows those before it."""
        previous = self._previous(epoch)
        if previous is None:
            runs.forget()
            return
        last = max((*self._entries.get(previous[0], ()), *self._losses.get(previous[0], ())), default=0)
        if previous[0] >= epoch or previous[1] < last:
            text = f"names {previous[0]}-{previous[1]} as the record before it, but {previous[0]}-{last} is there"
            yield self._finding("snapshot", text, epoch, 1, 1)
        if bisect_right(published, previous[0]) < bisect_left(published, epoch):  # there are epochs in between
            runs.lose()  # of another bridge


class _OpenSnapshot:
    """A snapshot whose end has not come: the runs that it lists."""

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.listed: set[tuple[str, str]] = set()
        self.count = 0  # of snapshot records
        self.is_void = False


class _Runs:
    """The runs of the containers of a source, by id and incarnation, in the order of positions."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, str], str] = {}  # of those that run
        self._past: dict[tuple[str, str], str] = {}  # of the others: exited or unknown
        self._namespaces: dict[tuple[str, str], str] = {}
        self._current: dict[str, str] = {}  # the running incarnation of each container
        self._snapshot: _OpenSnapshot | None = None
        self._is_certain = False  # whether all runs are known

    def lose(self) -> None:
        """Records are missing here: the state of all runs is unknown until the next complete snapshot."""
        self._past |= dict.fromkeys(self._states, "unknown")
        self._states.clear()
        self._current.clear()
        self._is_certain = False
        if self._snapshot is not None:
            self._snapshot.is_void = True

    def forget(self) -> None:
        """The bridge has started without its state: nothing is known of the runs before."""
        self._states.clear()
        self._past.clear()
        self._namespaces.clear()
        self._snapshot = None
        self.lose()

    def apply(self, entry: _Entry, *, is_first: bool) -> Iterator[_Problem]:
        """Apply a record; yield what is wrong with it."""
        snapshot = entry.snapshot
        if snapshot is None:
            if entry.incarnation or entry.pid:
                yield from self._apply_container(entry)
            return
        if snapshot.previous is not None and not is_first:
            yield "snapshot", "names the record before the epoch, but is not its first record"
        if entry.type == "snapshot_started":
            if self._snapshot is not None and not self._snapshot.is_void:
                yield "snapshot", f"starts a snapshot, although {self._snapshot.id} is not completed"
            self._snapshot = _OpenSnapshot(snapshot.id)
        elif self._snapshot is not None and self._snapshot.id == snapshot.id:
            yield from self._complete(snapshot, self._snapshot)
            self._snapshot = None
        else:
            if self._is_certain:
                yield "snapshot", f"completes snapshot {snapshot.id}, which was not started"
            self._snapshot = None

    def _apply_container(self, entry: _Entry) -> Iterator[_Problem]:
        run = (entry.id, entry.incarnation)
        name = f"{entry.id} {entry.incarnation}"
        form = _INCARNATION.fullmatch(entry.incarnation)
        if form is None or int(form[1]) != entry.pid:
            yield "incarnation", f"{entry.type} of {name} does not have the form BOOT-PID of pid {entry.pid}"
        states = _RUN_STATES.get(entry.type)
        if states is None:
            return  # additional events change no run
        state = self._states.get(run) or self._past.get(run, "new" if self._is_certain else "unknown")
        current = self._current.get(entry.id, entry.incarnation)
        if state not in states:
            yield "incarnation", f"{entry.type} of {name}, which is {state}"
        elif current != entry.incarnation and self._is_certain:
            yield "incarnation", f"{entry.type} of {name}, although {current} has not exited"
        elif entry.type == "present" and state in ("running", "paused") and entry.paused is not (state == "paused"):
            yield "snapshot", f"present of {name} with paused {str(entry.paused).lower()}, although it is {state}"
        elif entry.type in ("paused", "unpaused") and entry.paused is not (entry.type == "paused"):
            yield "incarnation", f"{entry.type} of {name} with paused {str(entry.paused).lower()}"
        if entry.type == "exited":
            self._states.pop(run, None)
            self._past[run] = "exited"
            self._current.pop(entry.id, None)
        else:
            self._past.pop(run, None)
            self._states[run] = "paused" if entry.paused else "running"
            self._namespaces[run] = entry.namespace
            self._current[entry.id] = entry.incarnation
        if self._snapshot is not None:
            self._snapshot.listed.add(run)
            self._snapshot.count += entry.type == "present"
        elif entry.type == "present" and self._is_certain:
            yield "snapshot", f"present of {name} outside of a snapshot"

    def _complete(self, snapshot: Snapshot, opened: _OpenSnapshot) -> Iterator[_Problem]:
        if opened.is_void:
            return
        if snapshot.containers != opened.count:
            yield "snapshot", f"{snapshot.id} has {opened.count} snapshot records instead of {snapshot.containers}"
        agrees = self._is_certain and snapshot.reason in _AGREEING and not snapshot.partial
        for run, state in list(self._states.items()):
            if run in opened.listed or self._namespaces.get(run) in snapshot.failed:
                continue
            if agrees:
                yield "snapshot", f"{snapshot.id} does not list {run[0]} {run[1]}, which is {state}"
            del self._states[run]
            self._past[run] = "unknown"
            if self._current.get(run[0]) == run[1]:
                del self._current[run[0]]
        self._is_certain |= not snapshot.failed
