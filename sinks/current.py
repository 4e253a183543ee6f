"""The current state of a source, folded from its records: one row for each living container, and one for itself. Pure.

For sinks that keep a table beside the stream (a compacted topic, a bucket of keys and values). A row's value is the
last record about its container, with the id of the last completed snapshot, or of the one that names it, beside; that
of the source is the end of its last snapshot.

Invariants:
- Whoever reads the whole table after a completed snapshot has exactly the containers that live.
- Folding changes nothing: what was folded becomes true when the other side has acknowledged the changes, so that a
  batch that is published again is folded again from where it was.
- A snapshot whose beginning was not seen, or of which something was lost, removes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from bridge.core.events import Record
from bridge.core.identity import DEFAULT_NAMESPACE

_ALIVE = frozenset({"present", "started", "paused", "unpaused"})


class Row(NamedTuple):
    """What a row is about: a container, or the source itself where ``namespace`` and ``id`` are empty."""

    host: str
    engine: str
    namespace: str = ""
    id: str = ""


class Change(NamedTuple):
    """What a row is to be from now on, None for gone, and the (epoch, sequence) of the record that says so."""

    row: Row
    value: bytes | None
    position: tuple[int, int]


class Open(NamedTuple):
    """A snapshot that has begun: its id, and whom it has named so far."""

    id: str
    named: frozenset[Row]


class State(NamedTuple):
    """What is known of one source: the rows that are there, its last snapshot's id, and the one that has begun."""

    rows: frozenset[Row] = frozenset()
    snapshot_id: str | None = None
    open: Open | None = None


class _Frame(Struct, frozen=True):
    id: str
    failed: list[str]


class _Document(Struct, frozen=True):
    snapshot: _Frame


_DECODER = msgspec.json.Decoder(_Document)


def source_of(record: Record) -> Row:
    """Return the row of a record's source."""
    return Row(record.host, record.engine)


def row_of(record: Record) -> Row:
    """Return the row of a record's container, or of its source for a frame."""
    namespace, subject = record.namespace, record.subject
    id_ = subject if namespace == DEFAULT_NAMESPACE else subject[len(namespace) + 1 :]
    return Row(record.host, record.engine, namespace, id_)


def fold(state: State, records: Iterable[Record]) -> tuple[State, list[Change]]:
    """Return what is known after ``records``, all of one source, and what changes of the table; one change a row."""
    folding = _Folding(state)
    for record in records:
        folding.take(record)
    return folding.state(), list(folding.changes.values())


def runs(batch: Sequence[Record]) -> Iterator[tuple[Row, Sequence[Record]]]:
    """Split a batch into runs of records of one source, in order."""
    start = 0
    while start < len(batch):
        host, engine = batch[start].host, batch[start].engine
        end = start + 1
        while end < len(batch) and batch[end].host == host and batch[end].engine == engine:
            end += 1
        yield Row(host, engine), batch[start:end]
        start = end


class _Folding:
    def __init__(self, state: State) -> None:
        self._rows = set(state.rows)
        self._snapshot_id = state.snapshot_id
        self._open = state.open and state.open.id
        self._named = set(state.open.named) if state.open else set()
        self.changes: dict[Row, Change] = {}

    def state(self) -> State:
        return State(
            frozenset(self._rows),
            self._snapshot_id,
            Open(self._open, frozenset(self._named)) if self._open is not None else None,
        )

    def take(self, record: Record) -> None:
        if record.type in _ALIVE:
            self._alive(record)
        elif record.type == "exited":
            self._gone(row_of(record), record)
        elif record.type == "snapshot_started":
            self._open = _DECODER.decode(record.data).snapshot.id
            self._named = set()
        elif record.type == "snapshot_completed":
            self._completed(record, _DECODER.decode(record.data).snapshot)
        elif record.type == "lost":
            self._open = None

    def _alive(self, record: Record) -> None:
        row = row_of(record)
        self._rows.add(row)
        self._named.add(row)
        self._change(row, _with_id(record.data, self._open or self._snapshot_id), record)

    def _gone(self, row: Row, record: Record) -> None:
        self._rows.discard(row)
        self._named.discard(row)
        self._change(row, None, record)

    def _completed(self, record: Record, frame: _Frame) -> None:
        if self._open == frame.id:
            for row in sorted(self._rows - self._named):
                if row.namespace not in frame.failed:
                    self._gone(row, record)
            self._snapshot_id = frame.id
            self._change(source_of(record), _with_id(record.data, frame.id), record)
        self._open = None

    def _change(self, row: Row, value: bytes | None, record: Record) -> None:
        self.changes.pop(row, None)  # so that changes stand in the order of what they say last
        self.changes[row] = Change(row, value, (record.epoch, record.sequence))


def _with_id(document: bytes, snapshot_id: str | None) -> bytes:
    """Add ``snapshot_id`` to a document, whose other bytes stay as they are."""
    return b'%s,"snapshot_id":%s}' % (document[:-1], msgspec.json.encode(snapshot_id))


def without_labels(value: bytes) -> bytes:
    """Return a row without its container's labels, for where it is too large."""
    document = msgspec.json.decode(value)
    if container := document["container"]:
        container |= {"labels": None, "labels_dropped": True}
        if container["pod"]:
            container["pod"]["labels"] = None
    return msgspec.json.encode(document)
