"""Access to the outbox database through one thread; reopens the database after an error.

Invariant: a failed job is never treated as done. It is retried on a new connection until it succeeds or the process
ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import structlog

from bridge.blocking_worker import BlockingWorker
from bridge.core.errors import StateError, TransientError
from bridge.core.ports import Clock
from bridge.core.time import SECOND
from bridge.outbox.database import DamagedError, Database, RemovedError, look_at
from bridge.outbox.folder import StateFolder
from bridge.outbox.rows import Content
from bridge.outbox.schema import STEPS, ForeignError, NewerError
from bridge.retry import Backoff, Failure, forever
from bridge.telemetry.rate_limit import RateLimiter

T = TypeVar("T")

BACKOFF = Backoff(first=0.1, most=5.0)
_PRIMARY_CODE = 0xFF
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_PASSING = {
    sqlite3.SQLITE_FULL: "free space on its disk",
    sqlite3.SQLITE_IOERR: "check the disk",
    sqlite3.SQLITE_READONLY: "fix its permissions",
    sqlite3.SQLITE_PERM: "fix its permissions",
    sqlite3.SQLITE_CANTOPEN: "fix the permissions of the file and its directory",
    sqlite3.SQLITE_BUSY: "stop the other program that has it open",
    sqlite3.SQLITE_LOCKED: "stop the other program that has it open",
    sqlite3.SQLITE_NOMEM: "give whalebridge more memory",
    sqlite3.SQLITE_PROTOCOL: "stop the other program that has it open",
}
_HANGING = 10 * SECOND
_log = structlog.get_logger(__name__)


class Store:
    """Runs jobs on the thread that owns the connection."""

    def __init__(self, folder: StateFolder, clock: Clock) -> None:
        self._trouble: str | None = None
        self._jobs = 0
        self._stirred = 0  # when (monotonic) a job last finished, or the oldest running job started
        self._complained = False
        self._folder = folder
        self._clock = clock
        self._worker = BlockingWorker("outbox")
        self._database: Database | None = None  # used by the thread only, like the next attribute
        self._broken: StateError | None = None
        self._limiter = RateLimiter(clock)

    @property
    def trouble(self) -> str | None:
        """Why the file cannot be used at the moment; None if it can."""
        if self._trouble is None and self._jobs and self._clock.now().monotonic - self._stirred > _HANGING:
            return f"{self._folder.database}: its disk has not responded for more than {_HANGING // SECOND} s"
        return self._trouble

    async def open(self) -> Content:
        """Lock the directory and open the database; quarantine a corrupt database and create a new one.

        Raises:
            StateError: The directory or the database cannot be used; the message says why and what to do.
        """
        return await self._worker.run(self._open)

    async def attempt(self, job: Callable[[Database], T]) -> T:
        """Run a job once.

        Raises:
            TransientError: The job failed; its changes may have been written nevertheless.
            StateError: The database can no longer be used.
        """
        if not self._jobs:
            self._stirred = self._clock.now().monotonic
        self._jobs += 1
        try:
            return await self._worker.run(partial(self._attempt, job))
        finally:
            self._jobs -= 1
            self._stirred = self._clock.now().monotonic

    async def insist(self, job: Callable[[Database], T]) -> T:
        """Retry a job until it succeeds; the job must be idempotent.

        Raises:
            StateError: The database can no longer be used.
        """
        result = await forever(
            lambda: self.attempt(job), clock=self._clock, backoff=BACKOFF, before_sleep=self._complain
        )
        self._trouble = None
        if self._complained:
            self._complained = False
            _log.info("outbox_recovered", path=str(self._folder.database))
        return result

    async def close(self) -> None:
        """Close the database, unlock the directory and stop the thread; idempotent."""
        await self._worker.run(self._close)
        await self._worker.close()

    def _complain(self, failure: Failure) -> None:
        text = self._trouble = str(failure.error)
        self._complained |= self._limiter.log(
            _log.error, text, "outbox_write_failed", error=text, consecutive=failure.in_a_row
        )

    # --- in the thread ---

    def _open(self) -> Content:
        self._folder.take()
        try:
            return self._opened()
        except BaseException as error:
            self._close()
            if (translated := _refusal(error, self._folder)) is None:
                raise
            raise translated from error

    def _opened(self) -> Content:
        path = self._folder.database
        if not path.exists():  # a crash may have prevented the creation of a new database after the quarantine
            last = self._folder.last_set_aside()
            return self._load(None if last is None else last.stat().st_mtime_ns)
        written = path.stat().st_mtime_ns
        try:
            return self._load()
        except (sqlite3.Error, DamagedError) as error:
            if not _is_damage(error):
                raise
            self._close_database()
            aside = self._folder.set_aside()
            _log.critical("outbox_corrupt", path=str(path), error=str(error), quarantined_as=str(aside))
            return self._load(written)

    def _load(self, reset: int | None = None) -> Content:
        """Open the file; ``quarantined_written_at`` is when the quarantined file that it replaces was last written."""
        self._folder.create_database()
        self._database = Database(self._folder.database, check=True)
        try:
            if reset is not None:
                self._database.note_reset(reset)
            return self._database.load()
        except ValueError as error:
            raise DamagedError(str(error)) from error

    def _attempt(self, job: Callable[[Database], T]) -> T:
        if self._broken is not None:
            raise self._broken
        try:
            if self._database is None:
                self._database = Database(self._folder.database, check=False)
            return job(self._database)
        except RemovedError as error:
            self._close_database()
            path = self._folder.database
            self._broken = StateError(f"{path}: removed while in use; restart whalebridge")
            raise self._broken from error
        except (sqlite3.Error, OSError, DamagedError) as error:
            self._close_database()
            if not _is_damage(error):
                raise _translated(error, self._folder) from error
            quarantined = self._folder.set_aside()
            self._broken = StateError(
                f"{self._folder.database}: corrupt ({error}), quarantined as {quarantined.name}; "
                "restart whalebridge to start with a new database and a snapshot"
            )
            raise self._broken from error

    def _close_database(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _close(self) -> None:
        self._close_database()
        self._folder.release()


def look(folder: StateFolder) -> None:
    """Check whether an outbox could be opened in a locked directory.

    Raises:
        StateError: The outbox could not be opened. A corrupt file is not an error, because ``open`` quarantines it.
    """
    try:
        if folder.database.exists():
            look_at(folder.database)
    except Exception as error:
        if _is_damage(error):
            return
        if (translated := _refusal(error, folder)) is None:
            raise
        raise translated from error


def _refusal(error: BaseException, folder: StateFolder) -> StateError | None:
    """Translate an error that prevented opening the file; None if it needs no translation."""
    path = folder.database
    match error:
        case ForeignError():
            return StateError(f"{path}: belongs to another program; use a dedicated state_dir")
        case NewerError():
            return StateError(
                f"{path}: written by a newer whalebridge (format {error.format}, supported: {len(STEPS)}); "
                "run that version, or move the file away to start with a new one"
            )
        case sqlite3.Error() | OSError():
            return StateError(str(_translated(error, folder)))
        case _:
            return None


def _is_damage(error: Exception) -> bool:
    return isinstance(error, DamagedError) or _code(error) in _DAMAGE


def _code(error: Exception) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & _PRIMARY_CODE


def _translated(error: Exception, folder: StateFolder) -> TransientError:
    """Translate an error that may be temporary.

    Raises:
        Exception: Any other error is raised again.
    """
    if isinstance(error, OSError):
        return TransientError(f"{error.filename or folder.path}: {error.strerror}; check the disk")
    code = _code(error)
    if code not in _PASSING:
        raise error
    return TransientError(f"{folder.database}: {error}; {_PASSING[code]}")
