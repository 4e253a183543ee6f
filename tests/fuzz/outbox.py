"""Fuzz targets for what the outbox and the watch read after a crash: the state directory, and the checkpoint in it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import structlog

from bridge.clock import SystemClock
from bridge.core import checkpoint
from bridge.core.container_state import (
    ContainerState,
    CreatedTask,
    ExitedTask,
    ExitInfo,
    HeldExit,
    Incarnation,
    PendingExit,
    Running,
    TaskState,
    Transition,
)
from bridge.core.container_store import StateChange
from bridge.core.containerd_model import ContainerKey, Instant, Metadata, TaskExited
from bridge.core.errors import FatalError
from bridge.core.exit_counts import STATUSES, ExitNamespace, NamespaceExits
from bridge.core.ports import StoredCheckpoint
from bridge.core.tracker import Tracker
from bridge.outbox.outbox import StoredOutbox
from bridge.outbox.state_directory import DATABASE, DEAD_LETTERS
from bridge.watch.recovery import recover
from tests.fuzz.engine import Target
from tests.fuzz.mutation import Mutator, encode_fields, mutate_protobuf, parse_fields
from tests.outboxes import open_outbox
from tests.records import ENGINE, RecordFactory

_SINKS = ("a", "b")
_SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None

# --- the checkpoint ---

_KEY = ContainerKey("default", "web")
_METADATA = Metadata(_KEY, "web-1", "shop", "web", "busybox", "runc", 1, None, {"a": "b"})
_EXIT = TaskExited(_KEY, 5, "", 4711, 137, 4)
_HELD = Transition(
    "exited", "live", 5, _KEY, _METADATA, None, 4711, "5f3c9a1e-4711", paused=False, exit_info=ExitInfo(137)
)
_NOW = Instant(1_795_447_268_000_000_000, 1)


def _checkpoint() -> dict[str, bytes]:
    """Return the checkpoint of a few containers."""
    header = checkpoint.CheckpointHeader("node-1", ENGINE, "5f3c9a1e-0000", "filters", ["default"])
    source, position = checkpoint.encode_position(header.source, checkpoint.StoredPosition(1, 2, 3))
    running = ContainerState(
        _KEY,
        _METADATA,
        TaskState(Running(4711), exited=(ExitedTask(1), ExitedTask(2))),
        incarnation=Incarnation(4711, "5f3c9a1e-4711", paused=False, in_scope=True),
    )
    other = ContainerKey("k8s.io", "db")
    exited = ContainerState(
        other,
        None,
        TaskState(evidence=(PendingExit(4711, _EXIT, 0),), created=(CreatedTask(4711, 1),)),
        held_exit=HeldExit((_HELD,), 0, None, paused=False),
    )
    changes = [StateChange(_KEY, running, _METADATA, True), StateChange(other, exited, None, False)]
    encoded = {key: value for key, value in checkpoint.encode_changes(changes) if value is not None}
    exits = checkpoint.encode_exits({ExitNamespace("k8s.io", "shop"): NamespaceExits((1,) * len(STATUSES), 1, 5)})
    values = {checkpoint.HEADER_KEY: checkpoint.encode_header(header), checkpoint.EXITS_KEY: exits, source: position}
    return {**values, **encoded}


def _checkpoint_samples() -> Sequence[bytes]:
    entry = [(1, encode_fields([(1, key.encode()), (2, value)])) for key, value in _checkpoint().items()]
    return [encode_fields(entry), *(encode_fields([each]) for each in entry)]


def _read_checkpoint(data: bytes) -> None:
    values: dict[str, bytes] = {}
    for _, entry in parse_fields(data) or ():
        fields = dict(parse_fields(entry) or ()) if isinstance(entry, bytes) else {}
        key, value = fields.get(1, b""), fields.get(2, b"")
        if isinstance(key, bytes) and isinstance(value, bytes):
            values[key.decode("utf-8", "replace")] = value
    _recover(values)
    with contextlib.suppress(ValueError):
        decoded = checkpoint.decode(values)
        exits = {checkpoint.EXITS_KEY: checkpoint.encode_exits(decoded.exits)}
        assert checkpoint.decode(exits).exits == decoded.exits
        entries = decoded.entries
        changes = [StateChange(each.key, each, each.metadata, True) for each in entries]
        encoded = {key: value for key, value in checkpoint.encode_changes(changes) if value is not None}
        assert dict(checkpoint.encode_changes(_changes(encoded))).items() >= encoded.items()


def _changes(values: Mapping[str, bytes]) -> list[StateChange]:
    return [StateChange(each.key, each, each.metadata, True) for each in checkpoint.decode(values).entries]


def _recover(values: Mapping[str, bytes]) -> None:
    """Recover from a checkpoint, as the watch does: what cannot be decoded counts as lost."""
    with structlog.testing.capture_logs():
        recovered = recover(StoredCheckpoint(values))
    if recovered.reason == "outbox_reset":
        assert recovered.header is None
        return
    tracker = Tracker("5f3c9a1e-0000", ())
    tracker.restore(recovered.entries, set(), _NOW)
    tracker.release_all_exits()
    tracker.exit_all(_NOW)


# --- the state directory ---


class _Directory(NamedTuple):
    """The files of a state directory, and the documents of all records that were appended to its outbox."""

    files: Mapping[str, bytes]
    records: frozenset[bytes]


class _Clock(SystemClock):
    """A clock for an outbox that must not wait: a damaged file does not get better."""

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(f"waits for {seconds} s")


@cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


@cache
def _directories() -> tuple[_Directory, _Directory]:
    """Return a state directory as it is after SIGKILL, and the same after a regular end."""
    return _runner().run(_create_directories())


async def _create_directories() -> tuple[_Directory, _Directory]:
    with _temporary_directory() as path:
        factory = RecordFactory()
        records = [*factory.snapshot_records(), *factory.started_records(40, size=100)]
        written = frozenset(record.data for record in records)
        async with open_outbox(path, *_SINKS) as outbox:
            await outbox.append(records[:20], _checkpoint())
            batch = await outbox.read("a", 10)
            await outbox.reject("a", {(batch[3].epoch, batch[3].sequence)}, "too large")
            await outbox.acknowledge("b", await outbox.read("b", 5))
            await outbox.append(records[20:])
            killed = _Directory(_read_files(path), written)
        return killed, _Directory(_read_files(path), written)


def _read_files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@contextlib.contextmanager
def _temporary_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=_SCRATCH, prefix="whalebridge-fuzz-") as name:
        yield Path(name) / "state"


# Damage: eight bytes for each change of a file or of a value. The first byte of an input selects the directory.
_EDIT_BYTES = 8
_TABLES = {
    "chunks": ("position", "record_count", "epoch", "sequence", "uptime", "documents"),
    "sinks": ("name", "cursor", "offset", "removed_since"),
    "losses": ("sink", "first_position", "end_position", "sequence", "size", "reason", "document"),
    "checkpoint": ("key", "value"),
    "state": ("name", "value"),
}
_COLUMNS = [(table, column) for table, columns in _TABLES.items() for column in columns]
_VALUES = (
    0,
    1,
    -1,
    7,
    1 << 40,
    (1 << 63) - 1,
    -(1 << 63),
    1.5,
    "",
    "text",
    "12",
    b"",
    b"\xff",
    b"{}",
    b"\n" * 9,
    b"[" * 3000,
)
_PAGE = 4096


def _directory_samples() -> Sequence[bytes]:
    cells = [
        bytes([1, 6, column, value, 0, 0, 0, 0, 0]) for column in range(len(_COLUMNS)) for value in range(0, 16, 5)
    ]
    return [
        b"\x00",
        b"\x01",
        *(bytes([base, kind, 0, 0, 40, 0, 0, 9, 3]) for base in (0, 1) for kind in range(9)),
        *cells,
    ]


def _mutate_edits(mutator: Mutator, data: bytes) -> bytes:
    edits = [data[at : at + _EDIT_BYTES] for at in range(1, len(data), _EDIT_BYTES)]
    at = mutator.below(len(edits) + 1)
    if mutator.below(2) or at == len(edits):
        edits[at:at] = [bytes(mutator.below(256) for _ in range(_EDIT_BYTES))]
    elif mutator.below(4):
        byte = mutator.below(_EDIT_BYTES)
        edits[at] = edits[at][:byte] + bytes([mutator.below(256)]) + edits[at][byte + 1 :]
    else:
        del edits[at]
    return bytes([mutator.below(2)]) + b"".join(edits[:6])


def _damage(path: Path, files: Mapping[str, bytes], edits: bytes) -> None:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    for start in range(0, len(edits), _EDIT_BYTES):
        kind, *arguments = edits[start : start + _EDIT_BYTES].ljust(_EDIT_BYTES, b"\0")
        _apply(path, kind % 10, arguments)


def _apply(path: Path, kind: int, arguments: Sequence[int]) -> None:
    if kind >= 6:
        _set_value(path / DATABASE, arguments)
        return
    name = (DATABASE, DATABASE, DATABASE, DATABASE, f"{DATABASE}-wal", DEAD_LETTERS)[kind]
    if not (file := path / name).exists():
        return
    content = bytearray(file.read_bytes())
    offset = int.from_bytes(arguments[1:4]) % (len(content) + 1)
    length, value = arguments[5], arguments[6]
    match arguments[0] % 5:
        case 0:
            del content[offset:]
        case 1:
            content[offset : offset + length] = bytes([value]) * min(length, len(content) - offset)
        case 2:
            page = arguments[1] * _PAGE % (len(content) + 1) // _PAGE * _PAGE
            target = arguments[2] * _PAGE % (len(content) + 1) // _PAGE * _PAGE
            content[target : target + _PAGE] = content[page : page + _PAGE]
        case _ if offset < len(content):
            content[offset] ^= 1 << value % 8
    file.write_bytes(content)


def _set_value(database: Path, arguments: Sequence[int]) -> None:
    """Set a value in one row or in all rows of a table."""
    table, column = _COLUMNS[arguments[0] % len(_COLUMNS)]
    value, row = _VALUES[arguments[1] % len(_VALUES)], arguments[2] % 8
    with (
        contextlib.suppress(sqlite3.Error, UnicodeDecodeError),
        contextlib.closing(sqlite3.connect(database)) as connection,
        connection,
    ):
        rows = connection.execute(f"SELECT {_TABLES[table][0]} FROM {table}").fetchall()  # noqa: S608 (constants)
        key = rows[row][0] if row < len(rows) else None
        condition = "" if key is None else f" WHERE {_TABLES[table][0]} = ?"
        connection.execute(
            f"UPDATE OR IGNORE {table} SET {column} = ?{condition}",  # noqa: S608
            (value,) if key is None else (value, key),
        )


def _open_directory(data: bytes) -> None:
    directory = _directories()[data[0] % 2 if data else 0]
    with _temporary_directory() as path, structlog.testing.capture_logs():
        _damage(path, directory.files, data[1:])
        _runner().run(_check_directory(path, directory.records))


async def _check_directory(path: Path, written: frozenset[bytes]) -> None:
    """Open an outbox, read all of its records, and use it."""
    for _ in range(2):  # a file that is found to be corrupt while it is read needs a restart
        try:
            async with open_outbox(path, *_SINKS, clock=_Clock()) as outbox:
                _recover(outbox.load_checkpoint().values)
                for sink in _SINKS:
                    await _read_all(outbox, sink, written)
                await _check_usable(outbox, path)
        except FatalError as error:
            if not str(error).endswith("restart whalebridge to start with a new database and a snapshot"):
                return
        else:
            return
    raise AssertionError("unusable after a restart")


async def _read_all(outbox: StoredOutbox, sink: str, written: frozenset[bytes]) -> None:
    positions: list[tuple[int, int]] = []
    while outbox.depth(sink):
        batch = await outbox.read(sink, 7)
        assert batch
        for record in batch:
            assert record.data in written or record.type == "lost", record
            positions.append((record.epoch, record.sequence))
        await outbox.acknowledge(sink, batch)
    assert positions == sorted(set(positions)), positions


async def _check_usable(outbox: StoredOutbox, path: Path) -> None:
    added = RecordFactory(epoch=1_999_999_999_999).started_record()
    await outbox.append([added])
    for sink in _SINKS:
        assert [record.data for record in await outbox.read(sink, 10)] == [added.data]
    await outbox.reject("a", {(added.epoch, added.sequence)}, "too large")
    *_, last, rest = (path / DEAD_LETTERS).read_bytes().split(b"\n")
    assert last.startswith(b'{"time":')
    assert last.endswith(added.data + b"}")
    assert not rest


TARGETS = {
    "checkpoint": Target(
        _read_checkpoint, _checkpoint_samples, (b"\x00", b"state\x00", b"\x91" * 2000), mutate_protobuf
    ),
    "state-directory": Target(_open_directory, _directory_samples, (), _mutate_edits),
}
