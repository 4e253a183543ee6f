"""Checkpoint: the tracker's state and the sources' positions as keys and values that survive restarts.

Invariants:
- The checkpoint corresponds exactly to the published records: both are persisted in one transaction.
- The checkpoint is sufficient to continue as after a broken connection: incarnations keep their ids, exited pids stay
  known, and a pending exit keeps waiting for its start. State that only an open connection confirms is not stored.
- Labels are stored as they may be published; stricter rules are applied before the next record is published
  (``ContainerStore.apply_filters``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct

from bridge.core.book import Change
from bridge.core.lives import ENDED_KEPT, NO_LIFE, Entry, Life
from bridge.core.model import ContainerKey, Engine, Metadata, TaskEnd, TaskExited

WATCHED = "header"
_POSITION, _LIFE, _RECORD = "position", "state", "metadata"


class SourceName(Struct, frozen=True, order=True):
    """Identity of a source: one containerd on one host."""

    host: str
    engine: str


class Watched(Struct, frozen=True):
    """Header of the checkpoint: the source, boot and filters under which its containers were watched.

    ``filter_fingerprint`` identifies the filters of namespaces, containers and labels. ``unsynced_namespaces`` are the
    tracker's.
    """

    host: str
    engine: Engine
    boot_id: str
    scope: str
    blind: list[str] | None

    @property
    def source(self) -> SourceName:
        """Return the source of the containers."""
        return SourceName(self.host, self.engine.id)


class Position(Struct, frozen=True, array_like=True):
    """Position of a source's last record; up to ``watermark_at`` (wall clock) no event can have been missed."""

    epoch: int
    sequence: int
    proven_at: int | None = None


class Memory(Struct):
    """The decoded checkpoint; ``header`` is None if it contains no containers."""

    watched: Watched | None = None
    positions: dict[SourceName, Position] = {}
    entries: list[Entry] = []


class _Kept(Struct, frozen=True, array_like=True):
    """A container's state without metadata; pid 0 means no incarnation. New fields go to the end, with a default."""

    namespace: str
    id: str
    ended: tuple[int, ...]
    pid: int
    incarnation: str
    paused: bool
    told: bool
    silent: bool
    oom: bool
    deleted: bool
    unanswered: bool
    created: tuple[int, ...]
    held: TaskExited | None
    witnessed: tuple[int, TaskEnd] | None


_ENCODER = msgspec.msgpack.Encoder()
_WATCHED = msgspec.msgpack.Decoder(Watched)
_POSITIONS = msgspec.msgpack.Decoder(Position)
_LIVES = msgspec.msgpack.Decoder(_Kept)
_RECORDS = msgspec.msgpack.Decoder(Metadata)


def encode_watched(watched: Watched) -> bytes:
    """Encode the header, whose key is ``HEADER_KEY``."""
    return _ENCODER.encode(watched)


def encode_position(source: SourceName, position: Position) -> tuple[str, bytes]:
    """Encode a source's position; return its key and value."""
    return key_of_position(source), _ENCODER.encode(position)


def encode_changes(changes: Iterable[Change]) -> Iterator[tuple[str, bytes | None]]:
    """Encode changed containers; yield their keys and values, None to remove a key.

    Metadata is encoded only if it has changed, because it can be a thousand times as large as the rest.
    """
    for key, entry, metadata, metadata_changed in changes:
        yield _key(_LIFE, *key), _encode_life(entry)
        if metadata_changed:
            yield key_of_record(key), None if metadata is None else _ENCODER.encode(metadata)


def _encode_life(entry: Entry | None) -> bytes | None:
    if entry is None or not (entry.life or entry.ended or entry.held or entry.unanswered or entry.deleted):
        return None
    incarnation = entry.life or NO_LIFE
    return _ENCODER.encode(
        _Kept(
            entry.key.namespace,
            entry.key.id,
            tuple(entry.ended),
            incarnation.pid,
            incarnation.incarnation,
            incarnation.paused,
            incarnation.told,
            incarnation.silent,
            entry.oom,
            entry.deleted,
            entry.unanswered,
            entry.created if entry.held is not None else (),
            entry.held,
            entry.witnessed,
        )
    )


def decode(values: Mapping[str, bytes]) -> Memory:
    """Decode a stored checkpoint.

    Raises:
        ValueError: A key or value is invalid.
    """
    checkpoint = Memory()
    entries: dict[ContainerKey, Entry] = {}
    for key, value in values.items():
        if key == WATCHED:
            checkpoint.watched = _WATCHED.decode(value)
            continue
        kind, first, second = key.split(_SEPARATOR, 2)
        if kind == _POSITION:
            checkpoint.positions[SourceName(first, second)] = _POSITIONS.decode(value)
            continue
        container = ContainerKey(first, second)
        entry = entries.setdefault(container, Entry(container))
        if kind == _RECORD:
            entry.metadata = _RECORDS.decode(value)
        else:
            _fill(entry, _LIVES.decode(value))
    for entry in entries.values():
        entry.announced = None if entry.deleted else entry.metadata
    checkpoint.entries = list(entries.values())
    return checkpoint


def keys_of_containers(values: Iterable[str]) -> Iterator[str]:
    """Return the keys of containers' state and metadata."""
    return (key for key in values if key.startswith((_LIFE, _RECORD)))


def key_of_record(container: ContainerKey) -> str:
    """Return the key of a container's metadata."""
    return _key(_RECORD, *container)


def key_of_position(source: SourceName) -> str:
    """Return the key of a source's position."""
    return _key(_POSITION, source.host, source.engine)


def _fill(entry: Entry, kept: _Kept) -> None:
    entry.ended = deque(kept.ended, maxlen=ENDED_KEPT)
    entry.oom, entry.deleted, entry.unanswered = kept.oom, kept.deleted, kept.unanswered
    entry.created, entry.held, entry.witnessed = kept.created, kept.held, kept.witnessed
    if kept.pid:
        entry.life = Life(
            pid=kept.pid,
            incarnation=kept.incarnation,
            paused=kept.paused,
            proven=False,
            told=kept.told,
            silent=kept.silent,
        )


_SEPARATOR = "\x00"  # no name in containerd and no host name contains it


def _key(kind: str, *names: str) -> str:
    return _SEPARATOR.join((kind, *names))
