"""The current state of a source, computed from its records: an entry per running container, and one per source. Pure.

For sinks that maintain a state table beside the stream (a compacted topic, a KV bucket). The value of a container's
entry is the last record about the container, plus the id of the snapshot that lists it, or of the last completed one.
The value of the source's entry is the ``snapshot_completed`` record of its last snapshot.

Invariants:
- After a completed snapshot, the table contains exactly the running containers.
- ``apply_records`` does not modify its argument; it returns a new state. The caller adopts the new state when
  the broker has acknowledged the changes, so a batch that is published again is applied to the same state again.
- A snapshot whose start is missing, or of which records were lost, removes no entry.
- After a ``source_retired`` record, the table contains nothing of the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from bridge.core.container_metadata import DEFAULT_NAMESPACE
from bridge.core.records import Record

_RUNNING_TYPES = frozenset({"present", "started", "paused", "unpaused"})


class StateKey(NamedTuple):
    """The key of an entry: a container, or the source if ``namespace`` and ``id`` are empty."""

    host: str
    engine: str
    namespace: str = ""
    id: str = ""


class StateChange(NamedTuple):
    """The new value of an entry, None to remove it, and the (epoch, sequence) of the record that causes the change."""

    key: StateKey
    value: bytes | None
    position: tuple[int, int]


class OpenSnapshot(NamedTuple):
    """A snapshot in progress: its id, and the containers listed so far."""

    id: str
    listed: frozenset[StateKey]


class TableState(NamedTuple):
    """The state of one source: the keys of its entries, the id of its last snapshot, and the snapshot in progress."""

    keys: frozenset[StateKey] = frozenset()
    snapshot_id: str | None = None
    open_snapshot: OpenSnapshot | None = None


class _SnapshotInfo(Struct, frozen=True):
    id: str
    failed: list[str]


class _ControlRecord(Struct, frozen=True):
    snapshot: _SnapshotInfo


_DECODER = msgspec.json.Decoder(_ControlRecord)


def source_key(record: Record) -> StateKey:
    """Return the key of a record's source."""
    return StateKey(record.host, record.engine)


def record_key(record: Record) -> StateKey:
    """Return the key of a record's container; for a control record, of its source."""
    namespace, subject = record.namespace, record.subject
    id_ = subject if namespace == DEFAULT_NAMESPACE else subject[len(namespace) + 1 :]
    return StateKey(record.host, record.engine, namespace, id_)


def apply_records(state: TableState, records: Iterable[Record]) -> tuple[TableState, list[StateChange]]:
    """Return the state after ``records`` of one source, and the changes to the table, at most one per key."""
    update = _TableUpdate(state)
    for record in records:
        update.apply(record)
    return update.to_state(), list(update.changes.values())


def group_by_source(batch: Sequence[Record]) -> Iterator[tuple[StateKey, Sequence[Record]]]:
    """Split a batch into consecutive records of the same source, in order."""
    start = 0
    while start < len(batch):
        host, engine = batch[start].host, batch[start].engine
        end = start + 1
        while end < len(batch) and batch[end].host == host and batch[end].engine == engine:
            end += 1
        yield StateKey(host, engine), batch[start:end]
        start = end


class _TableUpdate:
    def __init__(self, state: TableState) -> None:
        self._keys = set(state.keys)
        self._snapshot_id = state.snapshot_id
        self._open_id = state.open_snapshot and state.open_snapshot.id
        self._listed = set(state.open_snapshot.listed) if state.open_snapshot else set()
        self.changes: dict[StateKey, StateChange] = {}

    def to_state(self) -> TableState:
        return TableState(
            frozenset(self._keys),
            self._snapshot_id,
            OpenSnapshot(self._open_id, frozenset(self._listed)) if self._open_id is not None else None,
        )

    def apply(self, record: Record) -> None:
        if record.type in _RUNNING_TYPES:
            self._set_running(record)
        elif record.type == "exited":
            self._remove(record_key(record), record)
        elif record.type == "snapshot_started":
            self._open_id = _DECODER.decode(record.data).snapshot.id
            self._listed = set()
        elif record.type == "snapshot_completed":
            self._complete_snapshot(record, _DECODER.decode(record.data).snapshot)
        elif record.type == "lost":
            self._open_id = None
        elif record.type == "source_retired":
            self._retire(record)

    def _set_running(self, record: Record) -> None:
        key = record_key(record)
        self._keys.add(key)
        self._listed.add(key)
        self._add_change(key, _add_snapshot_id(record.data, self._open_id or self._snapshot_id), record)

    def _remove(self, key: StateKey, record: Record) -> None:
        self._keys.discard(key)
        self._listed.discard(key)
        self._add_change(key, None, record)

    def _complete_snapshot(self, record: Record, snapshot: _SnapshotInfo) -> None:
        if self._open_id == snapshot.id:
            for key in sorted(self._keys - self._listed):
                if key.namespace not in snapshot.failed:
                    self._remove(key, record)
            self._snapshot_id = snapshot.id
            self._add_change(source_key(record), _add_snapshot_id(record.data, snapshot.id), record)
        self._open_id = None

    def _retire(self, record: Record) -> None:
        for key in (*sorted(self._keys), source_key(record)):
            self._remove(key, record)
        self._snapshot_id = self._open_id = None

    def _add_change(self, key: StateKey, value: bytes | None, record: Record) -> None:
        self.changes.pop(key, None)  # so that changes are in the order of their last records
        self.changes[key] = StateChange(key, value, (record.epoch, record.sequence))


def _add_snapshot_id(document: bytes, snapshot_id: str | None) -> bytes:
    """Add ``snapshot_id`` to a document; its other bytes do not change."""
    return b'%s,"snapshot_id":%s}' % (document[:-1], msgspec.json.encode(snapshot_id))


def drop_labels(value: bytes) -> bytes:
    """Return the value of an entry without the container's labels, for entries that are too large."""
    document = msgspec.json.decode(value)
    if container := document["container"]:
        container |= {"labels": None, "labels_dropped": True}
        if container["pod"]:
            container["pod"]["labels"] = None
    return msgspec.json.encode(document)
