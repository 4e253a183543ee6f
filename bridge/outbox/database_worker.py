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
from bridge.outbox.database import CorruptDatabaseError, Database, DatabaseRemovedError, validate_database
from bridge.outbox.database_types import LoadedState
from bridge.outbox.schema import MIGRATIONS, NewerFormatError, UnknownFormatError
from bridge.outbox.state_directory import StateDirectory
from bridge.retry import Backoff, Failure, retry_until_success
from bridge.telemetry.rate_limit import RateLimiter

T = TypeVar("T")

BACKOFF = Backoff(initial=0.1, maximum=5.0)
_PRIMARY_CODE_MASK = 0xFF
_CORRUPTION_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_TRANSIENT_ERROR_HINTS = {
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
_HANG_TIMEOUT_NS = 10 * SECOND
_log = structlog.get_logger(__name__)


class DatabaseWorker:
    """Run jobs on the thread that owns the connection."""

    def __init__(self, directory: StateDirectory, clock: Clock) -> None:
        self._last_error: str | None = None
        self._running_jobs = 0
        self._last_progress = 0  # when (monotonic) a job last finished, or the oldest running job started
        self._failure_logged = False
        self._directory = directory
        self._clock = clock
        self._worker = BlockingWorker("outbox")
        self._database: Database | None = None  # used by the thread only, like the next attribute
        self._fatal_error: StateError | None = None
        self._rate_limiter = RateLimiter(clock)

    @property
    def last_error(self) -> str | None:
        """Why the file cannot be used at the moment; None if it can."""
        if (
            self._last_error is None
            and self._running_jobs
            and self._clock.now().monotonic - self._last_progress > _HANG_TIMEOUT_NS
        ):
            return (
                f"{self._directory.database}: its disk has not responded for more than {_HANG_TIMEOUT_NS // SECOND} s"
            )
        return self._last_error

    async def open(self) -> LoadedState:
        """Lock the directory and open the database; quarantine a corrupt database and create a new one.

        Raises:
            StateError: The directory or the database cannot be used; the message says why and what to do.
        """
        return await self._worker.run(self._open)

    async def run_once(self, job: Callable[[Database], T]) -> T:
        """Run a job once.

        Raises:
            TransientError: The job failed; its changes may have been written nevertheless.
            StateError: The database can no longer be used.
        """
        if not self._running_jobs:
            self._last_progress = self._clock.now().monotonic
        self._running_jobs += 1
        try:
            return await self._worker.run(partial(self._run_job, job))
        finally:
            self._running_jobs -= 1
            self._last_progress = self._clock.now().monotonic

    async def run_until_done(self, job: Callable[[Database], T]) -> T:
        """Retry a job until it succeeds; the job must be idempotent.

        Raises:
            StateError: The database can no longer be used.
        """
        result = await retry_until_success(
            lambda: self.run_once(job), clock=self._clock, backoff=BACKOFF, before_sleep=self._log_failure
        )
        self._last_error = None
        if self._failure_logged:
            self._failure_logged = False
            _log.info("outbox_recovered", path=str(self._directory.database))
        return result

    async def close(self) -> None:
        """Close the database, unlock the directory and stop the thread; idempotent."""
        await self._worker.run(self._close)
        await self._worker.close()

    def _log_failure(self, failure: Failure) -> None:
        text = self._last_error = str(failure.error)
        self._failure_logged |= self._rate_limiter.log(
            _log.error, text, "outbox_write_failed", error=text, consecutive=failure.consecutive
        )

    # --- in the thread ---

    def _open(self) -> LoadedState:
        self._directory.lock()
        try:
            return self._open_database()
        except BaseException as error:
            self._close()
            if (translated := _open_error(error, self._directory)) is None:
                raise
            raise translated from error

    def _open_database(self) -> LoadedState:
        path = self._directory.database
        if not path.exists():  # a crash may have prevented the creation of a new database after the quarantine
            last = self._directory.last_quarantined()
            return self._load(None if last is None else last.stat().st_mtime_ns)
        written = path.stat().st_mtime_ns
        try:
            return self._load()
        except (sqlite3.Error, CorruptDatabaseError) as error:
            if not _is_corruption(error):
                raise
            self._close_database()
            quarantined = self._directory.quarantine()
            _log.critical("outbox_corrupt", path=str(path), error=str(error), quarantined_as=str(quarantined))
            return self._load(written)

    def _load(self, quarantined_written_at: int | None = None) -> LoadedState:
        """Open the file; ``quarantined_written_at`` is when the quarantined file that it replaces was last written."""
        self._directory.create_database()
        self._database = Database(self._directory.database, check=True)
        try:
            if quarantined_written_at is not None:
                self._database.save_reset(quarantined_written_at)
            return self._database.load()
        except ValueError as error:
            raise CorruptDatabaseError(str(error)) from error

    def _run_job(self, job: Callable[[Database], T]) -> T:
        if self._fatal_error is not None:
            raise self._fatal_error
        try:
            if self._database is None:
                self._database = Database(self._directory.database, check=False)
            return job(self._database)
        except DatabaseRemovedError as error:
            self._close_database()
            path = self._directory.database
            self._fatal_error = StateError(f"{path}: removed while in use; restart whalebridge")
            raise self._fatal_error from error
        except (sqlite3.Error, OSError, CorruptDatabaseError) as error:
            self._close_database()
            if not _is_corruption(error):
                raise _transient_error(error, self._directory) from error
            quarantined = self._directory.quarantine()
            self._fatal_error = StateError(
                f"{self._directory.database}: corrupt ({error}), quarantined as {quarantined.name}; "
                "restart whalebridge to start with a new database and a snapshot"
            )
            raise self._fatal_error from error

    def _close_database(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _close(self) -> None:
        self._close_database()
        self._directory.unlock()


def validate_directory(directory: StateDirectory) -> None:
    """Check whether an outbox could be opened in a locked directory.

    Raises:
        StateError: The outbox could not be opened. A corrupt file is not an error, because ``open`` quarantines it.
    """
    try:
        if directory.database.exists():
            validate_database(directory.database)
    except Exception as error:
        if _is_corruption(error):
            return
        if (translated := _open_error(error, directory)) is None:
            raise
        raise translated from error


def _open_error(error: BaseException, directory: StateDirectory) -> StateError | None:
    """Translate an error that prevented opening the file; None if it needs no translation."""
    path = directory.database
    match error:
        case UnknownFormatError():
            return StateError(f"{path}: belongs to another program; use a dedicated state_dir")
        case NewerFormatError():
            return StateError(
                f"{path}: written by a newer whalebridge (format {error.format}, supported: {len(MIGRATIONS)}); "
                "run that version, or move the file away to start with a new one"
            )
        case sqlite3.Error() | OSError():
            return StateError(str(_transient_error(error, directory)))
        case _:
            return None


def _is_corruption(error: Exception) -> bool:
    return isinstance(error, CorruptDatabaseError) or _sqlite_code(error) in _CORRUPTION_CODES


def _sqlite_code(error: Exception) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & _PRIMARY_CODE_MASK


def _transient_error(error: Exception, directory: StateDirectory) -> TransientError:
    """Translate an error that may be temporary.

    Raises:
        Exception: Any other error is raised again.
    """
    if isinstance(error, OSError):
        return TransientError(f"{error.filename or directory.path}: {error.strerror}; check the disk")
    code = _sqlite_code(error)
    if code not in _TRANSIENT_ERROR_HINTS:
        raise error
    return TransientError(f"{directory.database}: {error}; {_TRANSIENT_ERROR_HINTS[code]}")
