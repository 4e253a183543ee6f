"""Checkpoint: the tracker's state and the sources' positions as keys and values that survive restarts.

Invariants:
- The checkpoint corresponds exactly to the published records: both are persisted in one transaction.
- The checkpoint is sufficient to continue as after a broken connection: incarnations keep their ids, exited pids stay
  known, a pending exit keeps waiting for its start, and a held exit is published. State that only an open connection
  confirms is not stored.
- Keys and fields of a newer version are ignored, and not kept: they would not match what this version publishes.
  Other changes need a new format of the outbox (``bridge.outbox.schema``), which older versions reject.
- Labels are stored as they may be published; stricter rules are applied before the next record is published
  (``Tracker.apply_filters``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bridge.core.container_metadata import share_strings
from bridge.core.container_state import (
    NO_INCARNATION,
    ContainerState,
    CreatedTask,
    Evidence,
    ExitedTask,
    HeldExit,
    Incarnation,
    OOMKill,
    PendingExit,
    Running,
    TaskState,
    Transition,
    UnconfirmedStart,
    WaitedExit,
)
from bridge.core.container_store import StateChange
from bridge.core.containerd_model import ContainerKey, Engine, ExitStatus, Metadata, TaskExited, TaskStarted
from bridge.core.exit_counts import STATUSES, ExitNamespace, Exits, NamespaceExits

HEADER_KEY = "header"
EXITS_KEY = "exits"
_POSITION, _STATE, _METADATA = "position", "state", "metadata"


class SourceId(Struct, frozen=True, order=True):
    """Identity of a source: one containerd on one host."""

    host: str
    engine: str


class CheckpointHeader(Struct, frozen=True):
    """Header of the checkpoint: the source, boot and filters under which its containers were watched.

    ``filter_fingerprint`` identifies the filters of namespaces, containers and labels, ``selection_fingerprint`` those
    of namespaces and containers ("": not known, or changed and not applied yet). ``unsynced_namespaces`` and
    ``exits_synced``: see ``Tracker``.
    """

    host: str
    engine: Engine
    boot_id: str
    filter_fingerprint: str
    unsynced_namespaces: list[str] | None
    exits_synced: bool = False
    selection_fingerprint: str = ""

    @property
    def source(self) -> SourceId:
        """Return the source of the containers."""
        return SourceId(self.host, self.engine.id)


class StoredPosition(Struct, frozen=True, array_like=True):
    """Position of a source's last record; up to ``watermark_at`` (wall clock) no event can have been missed."""

    epoch: int
    sequence: int
    watermark_at: int | None = None


class Checkpoint(Struct):
    """The decoded checkpoint; ``header`` is None if it contains no containers.

    ``unknown_keys`` are those of a newer version.
    """

    header: CheckpointHeader | None = None
    positions: dict[SourceId, StoredPosition] = {}
    entries: list[ContainerState] = []
    exits: Exits = {}
    unknown_keys: list[str] = []


class _StoredState(Struct, frozen=True, array_like=True):
    """A container's state without metadata; pid 0 means no incarnation. New fields go to the end, with a default."""

    namespace: str
    id: str
    exited: tuple[int | ExitedTask, ...]  # pids alone in checkpoints of earlier versions, as in ``created``
    pid: int
    incarnation: str
    paused: bool
    in_scope: bool
    preexisting: bool
    oom: bool | tuple[int, ...]  # pids; in earlier versions, whether the run or the pending exit has an OOM kill
    deleted: bool
    state_unknown: bool
    created: tuple[int | CreatedTask, ...]
    pending_exit: TaskExited | None  # only in earlier versions
    waited_exit: tuple[int, ExitStatus] | None
    held: tuple[Transition, ...] = ()  # the held exit, and what waits behind it
    pending_exits: tuple[TaskExited, ...] = ()
    unconfirmed_starts: tuple[tuple[TaskStarted, bool], ...] = ()
    since: int = 0
    start_seen: bool = False
    last_pid: int = 0
    pid_cycle: int = 0
    was_published: bool = False


_ENCODER = msgspec.msgpack.Encoder()
_HEADER_DECODER = msgspec.msgpack.Decoder(CheckpointHeader)
_POSITION_DECODER = msgspec.msgpack.Decoder(StoredPosition)
_STATE_DECODER = msgspec.msgpack.Decoder(_StoredState)
_METADATA_DECODER = msgspec.msgpack.Decoder(Metadata)
# The names of the statuses, so that another version may count others; then the counts, in that order.
_EXITS_DECODER = msgspec.msgpack.Decoder(tuple[list[str], list[tuple[ExitNamespace, NamespaceExits]]])


def encode_header(header: CheckpointHeader) -> bytes:
    """Encode the header, whose key is ``HEADER_KEY``."""
    return _ENCODER.encode(header)


def encode_position(source: SourceId, position: StoredPosition) -> tuple[str, bytes]:
    """Encode a source's position; return its key and value."""
    return position_key(source), _ENCODER.encode(position)


def encode_exits(exits: Exits) -> bytes:
    """Encode the counts of exits, whose key is ``EXITS_KEY``."""
    return _ENCODER.encode((STATUSES, list(exits.items())))


def encode_changes(changes: Iterable[StateChange]) -> Iterator[tuple[str, bytes | None]]:
    """Encode changed containers; yield their keys and values, None to remove a key.

    Metadata is encoded only if it has changed, because it can be a thousand times as large as the rest.
    """
    for key, entry, metadata, metadata_changed in changes:
        yield _key(_STATE, *key), _encode_state(entry)
        if metadata_changed:
            yield metadata_key(key), None if metadata is None else _ENCODER.encode(metadata)


def _encode_state(entry: ContainerState | None) -> bytes | None:
    if entry is None:
        return None
    state, incarnation = entry.state, entry.incarnation or NO_INCARNATION
    run, pending, waited = state.running or Running(0), state.find_all(PendingExit), state.find(WaitedExit)
    if not (entry.incarnation or state.exited or pending or state.unknown or entry.deleted):
        return None
    return _ENCODER.encode(
        _StoredState(
            entry.key.namespace,
            entry.key.id,
            state.exited,
            incarnation.pid,
            incarnation.id,
            incarnation.paused,
            incarnation.in_scope,
            incarnation.preexisting,
            tuple(each.pid for each in state.find_all(OOMKill) if each.pid),
            entry.deleted,
            state.unknown,
            state.created if pending else (),
            None,
            None if waited is None else (waited.pid, waited.exit_status),
            () if entry.held_exit is None else entry.held_exit.transitions,
            tuple(each.event for each in pending),
            tuple((each.event, each.late) for each in state.find_all(UnconfirmedStart)),
            run.since,
            run.start_seen,
            entry.last_pid,
            entry.pid_cycle,
            incarnation.was_published,
        )
    )


def decode(values: Mapping[str, bytes]) -> Checkpoint:
    """Decode a stored checkpoint.

    Raises:
        ValueError: A key or value is invalid.
    """
    try:
        return _decode(values)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _decode(values: Mapping[str, bytes]) -> Checkpoint:
    checkpoint = Checkpoint()
    entries: dict[ContainerKey, ContainerState] = {}
    for key, value in values.items():
        if key == HEADER_KEY:
            checkpoint.header = _HEADER_DECODER.decode(value)
            continue
        if key == EXITS_KEY:
            checkpoint.exits = _decode_exits(value)
            continue
        kind, *names = key.split(_SEPARATOR, 2)
        if kind not in {_POSITION, _STATE, _METADATA}:
            checkpoint.unknown_keys.append(key)
            continue
        first, second = names
        if kind == _POSITION:
            checkpoint.positions[SourceId(first, second)] = _POSITION_DECODER.decode(value)
            continue
        container = ContainerKey(first, second)
        entry = entries.setdefault(container, ContainerState(container))
        if kind == _METADATA:
            entry.metadata = share_strings(_METADATA_DECODER.decode(value))
        else:
            _restore_state(entry, _STATE_DECODER.decode(value))
    for entry in entries.values():
        entry.published_metadata = None if entry.deleted else entry.metadata
    checkpoint.entries = list(entries.values())
    return checkpoint


def _decode_exits(value: bytes) -> Exits:
    names, exits = _EXITS_DECODER.decode(value)
    decoded = {}
    for namespace, each in exits:
        counts = dict(zip(names, each.statuses, strict=True))
        decoded[namespace] = replace(each, statuses=tuple(counts.get(status, 0) for status in STATUSES))
    return decoded


def container_keys(values: Iterable[str]) -> Iterator[str]:
    """Return the keys of containers' state and metadata."""
    return (key for key in values if key.startswith((_STATE, _METADATA)))


def metadata_key(container: ContainerKey) -> str:
    """Return the key of a container's metadata."""
    return _key(_METADATA, *container)


def position_key(source: SourceId) -> str:
    """Return the key of a source's position."""
    return _key(_POSITION, source.host, source.engine)


def _restore_state(entry: ContainerState, stored: _StoredState) -> None:
    entry.deleted, entry.pid_cycle = stored.deleted, stored.pid_cycle
    exits = stored.pending_exits if stored.pending_exit is None else (stored.pending_exit,)
    oom_pids = stored.oom
    if isinstance(oom_pids, bool):
        oom_pids = (stored.pid or exits[0].pid,) if oom_pids and (stored.pid or exits) else ()
    evidence: list[Evidence] = [
        *(UnconfirmedStart(event.pid, event, late) for event, late in stored.unconfirmed_starts),
        *(PendingExit(event.pid, event, deadline=0) for event in exits),
        *(OOMKill(pid) for pid in oom_pids),
    ]
    if stored.waited_exit is not None:
        evidence.append(WaitedExit(*stored.waited_exit))
    state = TaskState(
        evidence=tuple(evidence),
        unknown=stored.state_unknown,
        created=tuple(CreatedTask(each) if isinstance(each, int) else each for each in stored.created),
        exited=tuple(ExitedTask(each) if isinstance(each, int) else each for each in stored.exited),
    )
    entry.last_pid = stored.last_pid or stored.pid or (state.exited[-1].pid if state.exited else 0)
    run = Running(stored.pid, stored.paused, stored.since, stored.start_seen)
    entry.state = replace(state, task=run if stored.pid else state.newest_created())
    if stored.pid:
        entry.incarnation = Incarnation(
            pid=stored.pid,
            id=stored.incarnation,
            paused=stored.paused,
            in_scope=stored.in_scope,
            preexisting=stored.preexisting,
            was_published=stored.was_published,
        )
    if stored.held:
        entry.held_exit = HeldExit(stored.held, deadline=0, oom=None, paused=False)


_SEPARATOR = "\x00"  # no name in containerd and no host name contains it


def _key(kind: str, *names: str) -> str:
    return _SEPARATOR.join((kind, *names))
