"""The outbox database file, and all SQL of the outbox. Every call blocks; all calls are made on one thread.

Invariants:
- A change is one transaction, and on the disk before the call returns (WAL, synchronous=FULL).
- Every change can be repeated: after an error it is unknown whether the change was written, so it is written again.
- After an error the connection is not used again. Data from a failed fsync can look intact in the page cache until the
  kernel evicts it, so a new connection first checkpoints the WAL into the file and syncs the file.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from bridge.core.records import LossReason
from bridge.outbox.chunks import (
    Chunk,
    ChunkHeader,
    ChunkReader,
    CorruptDatabaseError,
    LoadedState,
    Number,
    Offset,
    StoredQueue,
    WriteBatch,
    parse_stored_record,
)
from bridge.outbox.memory_store import MemoryStore
from bridge.outbox.schema import detect_format, migrate
from bridge.outbox.sink_queue import LossRange, PositionRange, SinkQueue
from bridge.outbox.state_directory import creation_time

T = TypeVar("T")

_WAL_CHECKPOINT_PAGES = 1000  # SQLite's default: a checkpoint copies about 4 MB
_MAX_WAL_BYTES = 16 * 1024 * 1024
_ROWS_PER_STATEMENT = (64, 8, 1)  # few statements, because each one releases and reacquires the GIL
_RETAINED_FREE_PAGES = 2048
_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "secure_delete = OFF",
    "temp_store = MEMORY",
    f"wal_autocheckpoint = {_WAL_CHECKPOINT_PAGES}",
    f"journal_size_limit = {_MAX_WAL_BYTES}",
)


class _StateValues(Struct):
    """The table ``state``; see ``LoadedState``."""

    end_offset: Offset
    uptime: Number = 0
    reset: int | None = None
    created: int | None = None


class _SinkRow(NamedTuple):
    name: str
    cursor: Number
    offset: Offset


class _LossRow(NamedTuple):
    first: Number
    end: Number
    sequence: Number
    size: Offset
    reason: LossReason
    document: bytes


class DatabaseRemovedError(Exception):
    """The file was removed or replaced."""


def require_inode(path: Path, inode: int) -> None:
    """Check that the file at a path is still the one with this inode number.

    Raises:
        DatabaseRemovedError: There is none, or another one.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            return
    raise DatabaseRemovedError


def validate_database(path: Path) -> None:
    """Check the format of a database file that no process has open, without changing the file or its WAL.

    Data that is only in the WAL, as after a crash, is not read.

    Raises:
        UnknownFormatError, NewerFormatError: see ``detect_format``.
        sqlite3.Error: The file cannot be read.
    """
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as connection:
        detect_format(connection)


class Database(ChunkReader):
    """One connection. Every method raises sqlite3.Error if the file cannot be read or written."""

    def __init__(self, path: Path) -> None:
        """Open an existing file.

        Raises:
            UnknownFormatError, NewerFormatError: see ``detect_format``.
        """
        self._path = path
        self.inode = path.stat().st_ino
        self._created = creation_time(path)
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        self._execute = self._connection.execute
        try:
            # Before the first access to the WAL: then SQLite needs no shared-memory file, and no other reader can keep
            # the WAL from being reset.
            self._execute("PRAGMA locking_mode = EXCLUSIVE")
            if not detect_format(self._connection):  # before anything is changed
                self._execute("PRAGMA auto_vacuum = INCREMENTAL")
            for pragma in _PRAGMAS:
                self._execute(f"PRAGMA {pragma}").fetchall()
            migrate(self._connection)
            self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; committed changes stay, even if closing fails."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def check_integrity(self, seconds: float) -> bool:
        """Check the structure of the file for at most ``seconds``, because the check reads all of it.

        Returns:
            Whether the check was completed.

        Raises:
            CorruptDatabaseError: The file is corrupt.
        """
        completed, interrupted = threading.Event(), threading.Event()

        def interrupt_when_due() -> None:
            while not completed.wait(seconds):  # repeatedly, because an interrupt between two statements has no effect
                interrupted.set()
                self._connection.interrupt()

        timer = threading.Thread(target=interrupt_when_due, name="outbox check", daemon=True)
        timer.start()
        try:
            results = [row[0] for row in self._execute("PRAGMA quick_check(1)")]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            return False
        finally:
            completed.set()
            timer.join()
        if results == ["ok"]:
            return True
        if interrupted.is_set():  # the results may be about pages that the check did not reach
            return False
        raise CorruptDatabaseError("; ".join(map(str, results)))

    # --- loading at the start ---

    def load(self) -> LoadedState:
        """Read everything except the records.

        Raises:
            CorruptDatabaseError: A value is missing or invalid.
        """
        state = _convert(dict(self._execute("SELECT name, value FROM state")), _StateValues)
        sinks = [_convert(row, _SinkRow) for row in self._execute("SELECT name, cursor, offset FROM sinks").fetchall()]
        queues = {name: self._load_queue(name, cursor, offset) for name, cursor, offset in sinks}
        last = self._execute("SELECT position + record_count FROM chunks ORDER BY position DESC LIMIT 1").fetchone()
        # After a power failure, a disk that ignores fsync may have kept cursors and losses but not the records.
        cursors = [queue.cursor for queue in queues.values()]
        loss_ends = [loss.end for queue in queues.values() for loss in queue.losses]
        return LoadedState(
            end=max([_convert(last[0], int) if last else 0, *cursors, *loss_ends]),
            end_offset=state.end_offset,
            uptime=state.uptime,
            queues=queues,
            checkpoint=_convert(dict(self._execute("SELECT key, value FROM checkpoint")), dict[str, bytes]),
            quarantined_written_at=state.reset,
            copied=state.created is not None and state.created != self._created,
        )

    def _load_queue(self, name: str, cursor: int, offset: int) -> StoredQueue:
        rows = self._execute(
            "SELECT first_position, end_position, sequence, size, reason, document FROM losses WHERE sink = ? "
            "ORDER BY first_position",
            (name,),
        )
        losses: list[LossRange] = []
        for each in rows:
            row = _convert(each, _LossRow)
            if not (losses[-1].end if losses else 0) <= row.first < row.end:
                raise CorruptDatabaseError(f"loss at position {row.first} overlaps another one")
            losses.append(LossRange(*row[:-1], parse_stored_record(row.document)))
        return StoredQueue(cursor, offset, losses, self.oldest_uptime(cursor) or 0)

    # --- sinks ---

    def register_sinks(self, queues: Mapping[str, SinkQueue], uptime: int) -> None:
        """Save the current sinks with their cursors; set all others to removed since ``uptime``."""
        with self._transaction():
            self._execute("UPDATE sinks SET removed_since = ? WHERE removed_since IS NULL", (uptime,))
            for name, queue in queues.items():
                self._execute(
                    "INSERT INTO sinks (name, cursor, offset) VALUES (?, ?, ?) "
                    "ON CONFLICT (name) DO UPDATE SET removed_since = NULL",
                    (name, queue.cursor, queue.offset),
                )

    def expire_removed_sinks(self, removed_before: int) -> list[str]:
        """Delete the sinks that were removed at ``removed_before`` (uptime) or earlier; return their names."""
        with self._transaction():
            rows = self._execute(
                "DELETE FROM sinks WHERE removed_since <= ? RETURNING name", (removed_before,)
            ).fetchall()
            for row in rows:
                self._execute("DELETE FROM losses WHERE sink = ?", row)
        return [name for (name,) in rows]

    def save_uptime(self, uptime: int) -> None:
        """Save the bridge's uptime in seconds.

        Raises:
            DatabaseRemovedError: The file was removed, so the data is lost when this process ends.
        """
        require_inode(self._path, self.inode)
        self._execute("INSERT OR REPLACE INTO state VALUES ('uptime', ?)", (uptime,))

    def save_reset(self, last_written: int) -> None:
        """Save, until the first append, when the quarantined file that this file replaces was last written."""
        self._execute("INSERT OR REPLACE INTO state VALUES ('reset', ?)", (last_written,))

    # --- writing ---

    def write(self, batch: WriteBatch) -> dict[str, int]:
        """Write a batch in one transaction.

        Returns:
            For each sink whose cursor moved, the uptime at which the oldest chunk of its backlog was written.
        """
        with self._transaction():
            for chunk in batch.chunks:
                self._execute("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?)", chunk)
            if batch.chunks:
                self._execute("INSERT OR REPLACE INTO state VALUES ('end_offset', ?)", (batch.end_offset,))
            if batch.checkpoint:
                self._save_checkpoint(batch.checkpoint)
            self._save_cursors(batch.cursors)
            self._delete(batch.released_positions)
            if batch.is_first_append:
                self._execute("DELETE FROM state WHERE name = 'reset'")
                self._execute("DELETE FROM state WHERE name = 'created'")
                if self._created is not None:
                    self._execute("INSERT INTO state VALUES ('created', ?)", (self._created,))
            return self.oldest_uptimes(batch.cursors)

    def save_losses(
        self,
        sink: str,
        losses: Sequence[LossRange],
        released: Sequence[PositionRange],
        cursors: Mapping[str, tuple[int, int]],
    ) -> None:
        """Save loss ranges of a sink, and delete records that no sink needs any more.

        ``cursors`` are those in memory: the cursor on the disk may still need a record that is deleted, so both change
        in one transaction. A crash in between would otherwise leave a gap.
        """
        with self._transaction():
            self._save_cursors(cursors)
            for loss in losses:
                self._execute(
                    "INSERT OR REPLACE INTO losses VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (sink, loss.first, loss.end, loss.sequence, loss.size, loss.reason, loss.record.data),
                )
            self._delete(released)

    def release_space(self) -> bool:
        """Return some free space of the file to the file system; return whether there may be more."""
        free: int = self._execute("PRAGMA freelist_count").fetchone()[0]
        if free <= _RETAINED_FREE_PAGES:
            return False
        # As a script, because execute() would run one step, which frees one page.
        self._connection.executescript(f"PRAGMA incremental_vacuum({_RETAINED_FREE_PAGES})")
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # truncates the file
        return True

    def _save_checkpoint(self, checkpoint: Mapping[str, bytes | None]) -> None:
        changed = [(key, value) for key, value in checkpoint.items() if value is not None]
        for rows in _split(changed):
            self._execute(_upsert_statement(len(rows)), [value for row in rows for value in row])
        deleted = [key for key, value in checkpoint.items() if value is None]
        for keys in _split(deleted):
            self._execute(_delete_statement(len(keys)), keys)

    def _save_cursors(self, cursors: Mapping[str, tuple[int, int]]) -> None:
        for name, (cursor, offset) in cursors.items():
            self._execute("UPDATE sinks SET cursor = ?, offset = ? WHERE name = ?", (cursor, offset, name))
            self._execute("DELETE FROM losses WHERE sink = ? AND first_position < ?", (name, cursor))

    def _delete(self, released: Sequence[PositionRange]) -> None:
        for first, end in released:
            self._execute(
                "DELETE FROM chunks WHERE position >= ? AND position < ? AND position + record_count <= ?",
                (first, end, end),
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        yield  # no rollback after an error, because the connection is not used again
        self._execute("COMMIT")

    # --- reading ---

    def headers(self, first: int) -> Iterator[ChunkHeader]:
        """Iterate over the chunks without their documents, from the chunk that contains position ``first`` on."""
        rows = self._execute(
            "SELECT position, record_count, epoch, sequence, uptime, length(documents) - record_count + 1 FROM chunks "
            "WHERE position >= (SELECT coalesce(max(position), 0) FROM chunks WHERE position <= ?) "
            "AND position + record_count > ? ORDER BY position",
            (first, first),
        )
        return (_convert(row, ChunkHeader) for row in rows)

    def chunks(self, first: int, end: int) -> Iterator[Chunk]:
        """Iterate over the chunks with records from position ``first`` to before ``end``."""
        rows = self._execute(
            "SELECT * FROM chunks WHERE position >= "
            "(SELECT coalesce(max(position), 0) FROM chunks WHERE position <= ?) AND position < ? ORDER BY position",
            (first, end),
        )
        return (_convert(row, Chunk) for row in rows)


def _convert(values: object, type_: type[T]) -> T:
    """Return values that were read, as a type.

    Raises:
        CorruptDatabaseError: A value is missing, or has another type or range: SQLite columns accept any value.
    """
    try:
        return msgspec.convert(values, type_, builtin_types=(bytes,))  # else text would be decoded as Base64
    except msgspec.ValidationError as error:
        raise CorruptDatabaseError(f"invalid value: {error}") from error


def _split(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Split rows into parts of a few fixed sizes, so that few different statements are needed."""
    start = 0
    for size in _ROWS_PER_STATEMENT:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size


@lru_cache
def _upsert_statement(rows: int) -> str:
    values = ", ".join(["(?, ?)"] * rows)
    return f"INSERT INTO checkpoint VALUES {values} ON CONFLICT (key) DO UPDATE SET value = excluded.value"  # noqa: S608


@lru_cache
def _delete_statement(rows: int) -> str:
    return f"DELETE FROM checkpoint WHERE key IN ({', '.join('?' * rows)})"  # noqa: S608


Store: TypeAlias = Database | MemoryStore
