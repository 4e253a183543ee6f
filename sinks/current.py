"""The current state of a source, computed from its records: an entry per running container, and one per source. Pure.

For sinks that maintain a state table beside the stream (a compacted topic, a KV bucket). The value of a container's
entry is the last record about the container, plus the id of the snapshot that lists it, or of the last completed one.
The value of the source's entry is the ``snapshot_completed`` record of its last snapshot.

Invariants:
- After a completed snapshot, the table contains exactly the running containers.
- Applying records changes no state: the caller adopts the new state when the broker has acknowledged the changes, so a
  batch that is published again is applied to the same state again.
- A snapshot whose start is missing, or of which records were lost, removes no entry.
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
    """The key of an entry: a container, or the source if ``namespace`` and ``id`` are empty."""

    host: str
    engine: str
    namespace: str = ""
    id: str = ""


class Change(NamedTuple):
    """The new value of an entry, None to remove it, and the (epoch, sequence) of the record that causes the change."""

    row: Row
    value: bytes | None
    position: tuple[int, int]


class Open(NamedTuple):
    """A snapshot in progress: its id, and the containers listed so far."""

    id: str
    named: frozenset[Row]


class State(NamedTuple):
    """The state of one source: the keys of its entries, the id of its last snapshot, and the snapshot in progress."""

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
    """Return the key of a record's source."""
    return Row(record.host, record.engine)


def row_of(record: Record) -> Row:
    """Return the key of a record's container; for a control record, of its source."""
    namespace, subject = record.namespace, record.subject
    id_ = subject if namespace == DEFAULT_NAMESPACE else subject[len(namespace) + 1 :]
    return Row(record.host, record.engine, namespace, id_)


def fold(state: State, records: Iterable[Record]) -> tuple[State, list[Change]]:
    """Return the state after ``records`` of one source, and the changes to the table, at most one per key."""
    update = _Folding(state)
    for record in records:
        update.take(record)
    return update.state(), list(update.changes.values())


def runs(batch: Sequence[Record]) -> Iterator[tuple[Row, Sequence[Record]]]:
    """Split a batch into consecutive records of the same source, in order."""
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
        key = row_of(record)
        self._rows.add(key)
        self._named.add(key)
        self._change(key, _with_id(record.data, self._open or self._snapshot_id), record)

    def _gone(self, row: Row, record: Record) -> None:
        self._rows.discard(row)
        self._named.discard(row)
        self._change(row, None, record)

    def _completed(self, record: Record, frame: _Frame) -> None:
        if self._open == frame.id:
            for key in sorted(self._rows - self._named):
                if key.namespace not in frame.failed:
                    self._gone(key, record)
            self._snapshot_id = frame.id
            self._change(source_of(record), _with_id(record.data, frame.id), record)
        self._open = None

    def _change(self, row: Row, value: bytes | None, record: Record) -> None:
        self.changes.pop(row, None)  # so that changes are in the order of their last records
        self.changes[row] = Change(row, value, (record.epoch, record.sequence))


def _with_id(document: bytes, snapshot_id: str | None) -> bytes:
    """Add ``snapshot_id`` to a document; its other bytes do not change."""
    return b'%s,"snapshot_id":%s}' % (document[:-1], msgspec.json.encode(snapshot_id))


def without_labels(value: bytes) -> bytes:
    """Return the value of an entry without the container's labels, for entries that are too large."""
    document = msgspec.json.decode(value)
    if container := document["container"]:
        container |= {"labels": None, "labels_dropped": True}
        if container["pod"]:
            container["pod"]["labels"] = None
    return msgspec.json.encode(document)
