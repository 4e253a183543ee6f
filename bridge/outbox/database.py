"""The outbox' file: all of its SQL. Every call blocks, and is made on one thread.

Invariants:
- A change is one transaction, on the disk before the call returns (WAL, synchronous=FULL).
- Each can be repeated: after an error nobody knows whether it was written, and it is written again.
- After an error the connection is of no use any more. What a failed fsync leaves behind may look well until it is
  gone, so a connection that takes its place first moves all of it from the log to the file, and syncs that.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from bridge.core.encode import parse
from bridge.core.events import Record
from bridge.outbox.lane import Cover, Stretch
from bridge.outbox.rows import Chunk, Content, Header, StoredLane, Writing
from bridge.outbox.schema import migrate, recognise

T = TypeVar("T")

_CHECKPOINT_PAGES = 1000  # as SQLite has it by itself: some 4 MB are written twice at a time
_LOG_KEPT_BYTES = 16 * 1024 * 1024
_ROWS_AT_ONCE = (64, 8, 1)  # of one statement: each statement gives the interpreter's lock away and has to get it back
_FREE_PAGES_KEPT = 2048
_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "secure_delete = OFF",
    "temp_store = MEMORY",
    f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
    f"journal_size_limit = {_LOG_KEPT_BYTES}",
)


class DamagedError(Exception):
    """The file does not hold together: nothing in it can be relied on."""


class RemovedError(Exception):
    """The file was removed, or another was put in its place."""


def look_at(path: Path) -> None:
    """Look at what the file is that nobody has open, and touch nothing, its log neither.

    What stands in the log alone, as after a crash, is not seen.

    Raises:
        ForeignError, NewerError: see ``recognise``.
        sqlite3.Error: It cannot be read.
    """
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as connection:
        recognise(connection)


class Database:
    """One connection. Every method raises sqlite3.Error where the file cannot be read or written."""

    def __init__(self, path: Path, *, check: bool) -> None:
        """Open the file, which is there.

        Raises:
            DamagedError: It is damaged; that is looked for where ``check`` says so, which reads all of it.
            ForeignError, NewerError: see ``recognise``.
        """
        self._path = path
        self._file = path.stat().st_ino
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        self._execute = self._connection.execute
        try:
            # Before the first look at the log: then there is no file of shared memory, and no reader that keeps the
            # log from being used again.
            self._execute("PRAGMA locking_mode = EXCLUSIVE")
            if not recognise(self._connection):  # before anything is changed
                self._execute("PRAGMA auto_vacuum = INCREMENTAL")
            for pragma in _PRAGMAS:
                self._execute(f"PRAGMA {pragma}").fetchall()
            migrate(self._connection)
            self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if check:
                self._check()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file; what was written stays, whether or not this works."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def _check(self) -> None:
        findings = [row[0] for row in self._execute("PRAGMA quick_check(1)")]
        if findings != ["ok"]:
            raise DamagedError("; ".join(map(str, findings)))

    # --- all of it, at the start ---

    def load(self) -> Content:
        """Read what is there, but for the records."""
        state: dict[str, int] = dict(self._execute("SELECT name, value FROM state"))
        cursors: dict[str, int] = dict(self._execute("SELECT name, cursor FROM sinks"))
        lanes = {name: self._load_lane(name, cursor) for name, cursor in cursors.items()}
        stored = self._execute("SELECT position + number FROM chunks ORDER BY position DESC LIMIT 1").fetchone()
        # A disk that lied about fsync may have kept what is told of records, and not the records.
        passed = [cover.end for lane in lanes.values() for cover in lane.covers]
        return Content(
            end=max([stored[0] if stored else 0, *cursors.values(), *passed]),
            age=state.get("age", 0),
            lanes=lanes,
            memory=dict(self._execute("SELECT key, value FROM memory")),
            reset=state.get("reset"),
        )

    def _load_lane(self, name: str, cursor: int) -> StoredLane:
        rows = self._execute(
            'SELECT first, "end", sequence, size, reason, document FROM covers WHERE sink = ? ORDER BY first', (name,)
        )
        covers = [
            Cover(first, end, sequence, size, reason, parse(document))
            for first, end, sequence, size, reason, document in rows
        ]
        waiting = self._execute(
            "SELECT sum(length(documents)) FROM chunks WHERE position + number > ?", (cursor,)
        ).fetchone()[0]
        size = max(0, (waiting or 0) - sum(cover.size for cover in covers))
        return StoredLane(cursor, covers, size, self._age_at(cursor) or 0)

    def _age_at(self, cursor: int) -> int | None:
        """Return the age of the oldest chunk that waits behind a cursor; None where none does."""
        return next((header.age for header in self.headers(cursor)), None)

    # --- sinks come and go ---

    def settle(self, cursors: Mapping[str, int], age: int) -> None:
        """Take note of the sinks that there are now, with their cursors; the others are absent from now on."""
        with self._transaction():
            self._execute("UPDATE sinks SET absent_since = ? WHERE absent_since IS NULL", (age,))
            for name, cursor in cursors.items():
                self._execute(
                    "INSERT INTO sinks VALUES (?, ?, NULL) ON CONFLICT (name) DO UPDATE SET absent_since = NULL",
                    (name, cursor),
                )

    def forget_absent(self, since: int) -> list[str]:
        """Forget the sinks that have been absent since ``since`` or longer; return their names."""
        with self._transaction():
            rows = self._execute("DELETE FROM sinks WHERE absent_since <= ? RETURNING name", (since,)).fetchall()
            for row in rows:
                self._execute("DELETE FROM covers WHERE sink = ?", row)
        return [name for (name,) in rows]

    def note_age(self, age: int) -> None:
        """Take note of how long the bridge has run.

        Raises:
            RemovedError: Whatever is written is gone when this process ends.
        """
        if not self._path.exists() or self._path.stat().st_ino != self._file:
            raise RemovedError
        self._execute("INSERT OR REPLACE INTO state VALUES ('age', ?)", (age,))

    def note_reset(self, last_written: int) -> None:
        """Take note that this file stands in another one's place, until something is appended."""
        self._execute("INSERT OR REPLACE INTO state VALUES ('reset', ?)", (last_written,))

    # --- writing ---

    def write(self, writing: Writing) -> dict[str, int]:
        """Write down all of it, or nothing; return the age of the oldest chunk that waits for each sink that moved."""
        with self._transaction():
            for chunk in writing.chunks:
                self._execute("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?, ?, ?)", chunk)
            if writing.memory:
                self._remember(writing.memory)
            for name, cursor in writing.cursors.items():
                self._execute("UPDATE sinks SET cursor = ? WHERE name = ?", (cursor, name))
            for name, end in writing.passed.items():
                self._execute('DELETE FROM covers WHERE sink = ? AND "end" <= ?', (name, end))
            self._delete(writing.unneeded)
            if writing.first:
                self._execute("DELETE FROM state WHERE name = 'reset'")
            ages = {name: self._age_at(cursor) for name, cursor in writing.cursors.items()}
        return {name: age for name, age in ages.items() if age is not None}

    def cover(self, sink: str, covers: Sequence[Cover], unneeded: Sequence[Stretch] = ()) -> None:
        """Have records told in the place of others to a sink."""
        with self._transaction():
            for each in covers:
                self._execute(
                    "INSERT OR REPLACE INTO covers VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (sink, each.first, each.end, each.sequence, each.size, each.reason, each.record.data),
                )
            self._delete(unneeded)

    def give_back(self) -> bool:
        """Return some of the space that a backlog has left behind to the file system; tell whether there is more."""
        free: int = self._execute("PRAGMA freelist_count").fetchone()[0]
        if free <= _FREE_PAGES_KEPT:
            return False
        # As a script: execute() would take one step, which is one page.
        self._connection.executescript(f"PRAGMA incremental_vacuum({_FREE_PAGES_KEPT})")
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # the file itself gets no shorter before that
        return True

    def _remember(self, memory: Mapping[str, bytes | None]) -> None:
        kept = [(key, value) for key, value in memory.items() if value is not None]
        for part in _parts(kept):
            self._execute(_upsert(len(part)), [each for row in part for each in row])
        gone = [key for key, value in memory.items() if value is None]
        for keys in _parts(gone):
            self._execute(_removal(len(keys)), keys)

    def _delete(self, unneeded: Sequence[Stretch]) -> None:
        for first, end in unneeded:
            self._execute(
                "DELETE FROM chunks WHERE position >= ? AND position < ? AND position + number <= ?", (first, end, end)
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        yield  # after an error there is no rollback: the connection is given up
        self._execute("COMMIT")

    # --- reading ---

    def read(self, first: int, end: int, limit: int, max_bytes: int) -> list[Record]:
        """Read the records from ``first`` on: before ``end``, at most ``limit``, some ``max_bytes``, one at least.

        Raises:
            DamagedError: They are not there, or not whole.
        """
        records: list[Record] = []
        size = 0
        position = first
        for chunk in self._chunks(first, end):
            if chunk.position > position:
                break
            for document in self._documents(chunk)[position - chunk.position : end - chunk.position]:
                size += len(document)
                if records and (len(records) == limit or size > max_bytes):
                    return records
                records.append(_parsed(document))
            position = chunk.position + chunk.number
        if not records:
            raise DamagedError(f"there is no record at position {first}")
        return records

    def headers(self, first: int) -> Iterator[Header]:
        """Go through the chunks from that with position ``first`` on, without their documents."""
        rows = self._execute(
            "SELECT position, number, epoch, sequence, age, length(documents) FROM chunks WHERE position >= "
            "(SELECT coalesce(max(position), 0) FROM chunks WHERE position <= ?) AND position + number > ? "
            "ORDER BY position",
            (first, first),
        )
        return (Header(*row) for row in rows)

    def sizes(self, header: Header) -> list[int]:
        """Return the size of each record in a chunk."""
        row = self._execute("SELECT * FROM chunks WHERE position = ?", (header.position,)).fetchone()
        return [len(document) for document in self._documents(Chunk(*row))]

    def _chunks(self, first: int, end: int) -> Iterator[Chunk]:
        rows = self._execute(
            "SELECT * FROM chunks WHERE position >= "
            "(SELECT coalesce(max(position), 0) FROM chunks WHERE position <= ?) AND position < ? ORDER BY position",
            (first, end),
        )
        return (Chunk(*row) for row in rows)

    @staticmethod
    def _documents(chunk: Chunk) -> list[bytes]:
        documents = chunk.documents.split(b"\n")
        if len(documents) != chunk.number:
            raise DamagedError(f"the records from position {chunk.position} on are not whole")
        return documents


def _parsed(document: bytes) -> Record:
    try:
        return parse(document)
    except ValueError as error:
        raise DamagedError(f"a record cannot be read: {error}") from error


def _parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Split rows into as few parts as there are sizes for, so that few different statements are needed."""
    start = 0
    for size in _ROWS_AT_ONCE:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size


@lru_cache
def _upsert(rows: int) -> str:
    values = ", ".join(["(?, ?)"] * rows)
    return f"INSERT INTO memory VALUES {values} ON CONFLICT (key) DO UPDATE SET value = excluded.value"  # noqa: S608


@lru_cache
def _removal(rows: int) -> str:
    return f"DELETE FROM memory WHERE key IN ({', '.join('?' * rows)})"  # noqa: S608
