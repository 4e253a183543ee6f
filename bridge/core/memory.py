"""What outlives the process: the tracker's knowledge and the sources' positions, as keys and values.

Invariants:
- What is remembered stands for exactly the records that were told: it is written down together with them.
- It is enough to go on as after a broken connection: lives keep their incarnation, ended pids stay known, an exit that
  waited for its start goes on waiting. What only a living connection can prove is not remembered.
- Labels are remembered as they may be told; rules that became stricter are applied before anything is told again
  (``Book.restrict``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct

from bridge.core.book import Change
from bridge.core.lives import ENDED_KEPT, NO_LIFE, Entry, Life
from bridge.core.model import ContainerKey, Engine, Metadata, TaskEnd, TaskExited

WATCHED = "watched"
_POSITION, _LIFE, _RECORD = "position", "life", "record"


class SourceName(Struct, frozen=True, order=True):
    """What names a source: one containerd on one host."""

    host: str
    engine: str


class Watched(Struct, frozen=True):
    """What the containers that are remembered were seen under.

    ``scope`` tells one choice of namespaces, containers and labels from another; ``blind`` is the tracker's.
    """

    host: str
    engine: Engine
    boot_id: str
    scope: str
    blind: list[str] | None

    @property
    def source(self) -> SourceName:
        """The source whose containers these are."""
        return SourceName(self.host, self.engine.id)


class Position(Struct, frozen=True, array_like=True):
    """The last record of a source; ``proven_at`` (wall clock): up to then nothing can have been missed."""

    epoch: int
    sequence: int
    proven_at: int | None = None


class Memory(Struct):
    """All that is remembered; ``watched`` is None where no container is."""

    watched: Watched | None = None
    positions: dict[SourceName, Position] = {}
    entries: list[Entry] = []


class _Kept(Struct, frozen=True, array_like=True):
    """An entry, but for the container's record; 0 is the pid of no life. New fields go to the end, with a default."""

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
    """Write down what containers are seen under; its key is ``WATCHED``."""
    return _ENCODER.encode(watched)


def encode_position(source: SourceName, position: Position) -> tuple[str, bytes]:
    """Write down a source's position."""
    return key_of_position(source), _ENCODER.encode(position)


def encode_changes(changes: Iterable[Change]) -> Iterator[tuple[str, bytes | None]]:
    """Write down what the tracker knows of containers; None: the key is to be removed.

    A record is written only where it has become another one: it can be a thousand times as large as the rest.
    """
    for key, entry, metadata, relearned in changes:
        yield _key(_LIFE, *key), _encode_life(entry)
        if relearned:
            yield key_of_record(key), None if metadata is None else _ENCODER.encode(metadata)


def _encode_life(entry: Entry | None) -> bytes | None:
    if entry is None or not (entry.life or entry.ended or entry.held or entry.unanswered or entry.deleted):
        return None
    life = entry.life or NO_LIFE
    return _ENCODER.encode(
        _Kept(
            entry.key.namespace,
            entry.key.id,
            tuple(entry.ended),
            life.pid,
            life.incarnation,
            life.paused,
            life.told,
            life.silent,
            entry.oom,
            entry.deleted,
            entry.unanswered,
            entry.created if entry.held is not None else (),
            entry.held,
            entry.witnessed,
        )
    )


def decode(values: Mapping[str, bytes]) -> Memory:
    """Read what was written down.

    Raises:
        ValueError: Some of it cannot be understood.
    """
    memory = Memory()
    entries: dict[ContainerKey, Entry] = {}
    for key, value in values.items():
        if key == WATCHED:
            memory.watched = _WATCHED.decode(value)
            continue
        kind, first, second = key.split(_SEPARATOR, 2)
        if kind == _POSITION:
            memory.positions[SourceName(first, second)] = _POSITIONS.decode(value)
            continue
        container = ContainerKey(first, second)
        entry = entries.setdefault(container, Entry(container))
        if kind == _RECORD:
            entry.metadata = _RECORDS.decode(value)
        else:
            _fill(entry, _LIVES.decode(value))
    for entry in entries.values():
        entry.announced = None if entry.deleted else entry.metadata
    memory.entries = list(entries.values())
    return memory


def keys_of_containers(values: Iterable[str]) -> Iterator[str]:
    """Return the keys that tell of containers, to have them removed."""
    return (key for key in values if key.startswith((_LIFE, _RECORD)))


def key_of_record(container: ContainerKey) -> str:
    """Return the key of a container's record."""
    return _key(_RECORD, *container)


def key_of_position(source: SourceName) -> str:
    """Return the key of a source's position, to have it removed."""
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


_SEPARATOR = "\x00"  # in no name of containerd's or of a host


def _key(kind: str, *names: str) -> str:
    return _SEPARATOR.join((kind, *names))
