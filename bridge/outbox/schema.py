"""The outbox' file format: how it is recognised, made, and brought up from older ones."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

APPLICATION = 0x7768_6272  # "whbr"; SQLite keeps it in the file's header, as it does the format's number

# A chunk holds the documents of `number` records of one epoch, one a line, with consecutive positions and sequences.
# `age` counts the seconds for which the bridge had run when it was written: no clock that is set makes records old.
_FIRST = """
CREATE TABLE chunks (
    position INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    age INTEGER NOT NULL,
    documents BLOB NOT NULL
);
CREATE TABLE sinks (
    name TEXT PRIMARY KEY,
    cursor INTEGER NOT NULL,
    absent_since INTEGER
) WITHOUT ROWID;
CREATE TABLE covers (
    sink TEXT NOT NULL,
    first INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    size INTEGER NOT NULL,
    reason TEXT NOT NULL,
    document BLOB NOT NULL,
    PRIMARY KEY (sink, first)
);
CREATE TABLE memory (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE state (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
"""

STEPS = (_FIRST,)
"""From each format to the next, from none (0) on. What was released is never changed: a step is added."""


class ForeignError(Exception):
    """The file is a database of some other program."""


class NewerError(Exception):
    """The file was written by a newer version of this program."""

    def __init__(self, format_: int) -> None:
        super().__init__(format_)
        self.format = format_


def recognise(connection: sqlite3.Connection, newest: int = len(STEPS)) -> int:
    """Return the format of a database, 0 for an empty one; changes nothing.

    Raises:
        ForeignError: It is not ours.
        NewerError: Its format is newer than ``newest``.
    """
    application = _pragma(connection, "application_id")
    format_ = _pragma(connection, "user_version")
    if application != APPLICATION and (application or format_ or not _is_empty(connection)):
        raise ForeignError
    if format_ > newest:
        raise NewerError(format_)
    return format_


def migrate(connection: sqlite3.Connection, steps: Sequence[str] = STEPS) -> None:
    """Bring a database to the newest format, all or nothing; an empty one is made ours.

    Raises:
        ForeignError, NewerError: see ``recognise``.
    """
    format_ = recognise(connection, len(steps))
    if format_ == len(steps):
        return
    script = "".join(steps[format_:])
    connection.executescript(
        f"BEGIN IMMEDIATE; {script} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {len(steps)}; COMMIT;"
    )


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
