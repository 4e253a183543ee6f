"""The file format of the outbox database: detection, creation and migration."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from bridge.core.errors import StateError

MIN_SQLITE = (3, 35)  # for RETURNING
APPLICATION_ID = 0x7768_6272  # "whbr"; SQLite stores it in the file's header, like the format's number

# Chunks: see chunks.py.
# `uptime` is the bridge's total uptime in seconds at the time of writing, so that setting a clock does not age records.
_FORMAT_1 = """
CREATE TABLE chunks (
    position INTEGER PRIMARY KEY,
    record_count INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    uptime INTEGER NOT NULL,
    documents BLOB NOT NULL
);
CREATE TABLE sinks (
    name TEXT PRIMARY KEY,
    cursor INTEGER NOT NULL,
    removed_since INTEGER
) WITHOUT ROWID;
CREATE TABLE losses (
    sink TEXT NOT NULL,
    first_position INTEGER NOT NULL,
    end_position INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    size INTEGER NOT NULL,
    reason TEXT NOT NULL,
    document BLOB NOT NULL,
    PRIMARY KEY (sink, first_position)
);
CREATE TABLE checkpoint (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE state (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
"""

# Offsets, see sink_queue.py: of each cursor and of the end, so that opening the file needs no sum over all chunks. Of a
# chunk that is acknowledged or rejected in part, all records count as backlog.
_FORMAT_2 = """
ALTER TABLE sinks ADD COLUMN offset INTEGER NOT NULL DEFAULT 0;
INSERT INTO state SELECT 'end_offset', coalesce(sum(length(documents) - record_count + 1), 0) FROM chunks;
UPDATE sinks SET offset = (SELECT value FROM state WHERE name = 'end_offset')
    - (SELECT coalesce(sum(size), 0) FROM losses WHERE sink = name)
    - (SELECT coalesce(sum(length(documents) - record_count + 1), 0) FROM chunks
        WHERE position + record_count > cursor AND NOT EXISTS (SELECT * FROM losses
            WHERE sink = name AND first_position <= position AND end_position >= position + record_count));
"""

# SQLite notices damage to its own structures only, not to the values in them.
_FORMAT_3 = "ALTER TABLE chunks ADD COLUMN checksum INTEGER;"

# The checkpoint has the key "exits"; the code of earlier formats takes a checkpoint with an unknown key for damaged.
_FORMAT_4 = ""

MIGRATIONS = (_FORMAT_1, _FORMAT_2, _FORMAT_3, _FORMAT_4)
"""Migration scripts: script n migrates format n to n + 1; format 0 is an empty file.

A released script is never changed.
"""


class UnknownFormatError(Exception):
    """The file is another program's database."""


class NewerFormatError(Exception):
    """The file was written by a newer version of this program."""

    def __init__(self, format_: int) -> None:
        super().__init__(format_)
        self.format = format_


def detect_format(connection: sqlite3.Connection, newest: int = len(MIGRATIONS)) -> int:
    """Return the format of a database, 0 for an empty one, without changing it.

    Raises:
        StateError: SQLite is too old: it would reject statements, as if the file were corrupt.
        UnknownFormatError: The database is another program's.
        NewerFormatError: The format is newer than ``newest``.
    """
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        needed = ".".join(map(str, MIN_SQLITE))
        raise StateError(f"state_dir requires SQLite {needed} or newer, but Python uses {sqlite3.sqlite_version}")
    application = _pragma(connection, "application_id")
    format_ = _pragma(connection, "user_version")
    if application != APPLICATION_ID and (application or format_ or not _is_empty(connection)):
        raise UnknownFormatError
    if format_ > newest:
        raise NewerFormatError(format_)
    return format_


def migrate(connection: sqlite3.Connection, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Migrate a database to the newest format in one transaction; an empty database is initialized.

    Raises:
        UnknownFormatError, NewerFormatError: see ``detect_format``.
    """
    format_ = detect_format(connection, len(migrations))
    if format_ == len(migrations):
        return
    script = "".join(migrations[format_:])
    connection.executescript(
        f"BEGIN IMMEDIATE; {script} PRAGMA application_id = {APPLICATION_ID}; "
        f"PRAGMA user_version = {len(migrations)}; COMMIT;"
    )


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
