"""Access to the outbox database through one thread; reopens the database after an error.

Invariants:
- A failed job is never treated as done. It is retried on a new connection until it succeeds or the process ends.
- Opening waits in the same way for another process to release the directory, and for a disk that is full or failing.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import structlog

from bridge.blocking_worker import BlockingWorker
from bridge.core.errors import BridgeError, StateError, TransientError
from bridge.core.ports import Clock
from bridge.core.time import SECOND
from bridge.outbox.chunks import CorruptDatabaseError, LoadedState
from bridge.outbox.database import Database, DatabaseRemovedError, require_inode, validate_database
from bridge.outbox.schema import MIGRATIONS, NewerFormatError, UnknownFormatError
from bridge.outbox.state_directory import TRANSIENT_ERRNOS, StateDirectory
from bridge.retry import Backoff, Failure, retry_until_success
from bridge.telemetry.rate_limit import RateLimiter

T = TypeVar("T")

BACKOFF = Backoff(initial=0.1, maximum=5.0)
OPEN_BACKOFF = Backoff(initial=0.1, maximum=1.0)  # the process before this one can release the directory at any time
CHECK_SECONDS = 5.0  # of a start, for the check of the file's integrity; large files on slow disks would take minutes
_PRIMARY_CODE_MASK = 0xFF
_CORRUPTION_CODES = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        # All statements are constant, so if one of these fails, the schema or a value has changed.
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
    }
)
# The last one is sqlite3's own, for text in a damaged file, also in the message of another error.
_DATABASE_ERRORS = (sqlite3.Error, CorruptDatabaseError, UnicodeDecodeError)
_TRANSIENT_ERROR_HINTS = {
    sqlite3.SQLITE_FULL: "free space on its disk",
    sqlite3.SQLITE_IOERR: "check the disk",
    sqlite3.SQLITE_READONLY: "fix its permissions",
    sqlite3.SQLITE_PERM: "fix its permissions",
    sqlite3.SQLITE_CANTOPEN: "free space on its disk, or fix the permissions of the file and its directory",
    sqlite3.SQLITE_BUSY: "stop the other program that has it open",
    sqlite3.SQLITE_LOCKED: "stop the other program that has it open",
    sqlite3.SQLITE_PROTOCOL: "stop the other program that has it open",
}
_PERMISSION_CODES = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM})
_HANG_TIMEOUT_NS = 10 * SECOND
_log = structlog.get_logger(__name__)


class DatabaseWorker:
    """Run jobs on the thread that owns the connection.

    Args:
        directory: The directory of the database.
        clock: Source of time and random numbers.
        on_wait: Called after each failed attempt, before it is repeated.
    """

    def __init__(self, directory: StateDirectory, clock: Clock, on_wait: Callable[[], None]) -> None:
        self._opening = f"{directory.database} is being opened"
        self._last_error: str | None = self._opening  # until the first job is done
        self._running_jobs = 0
        self._last_progress = 0  # when (monotonic) a job last finished, or the oldest running job started
        self._failure_logged = False
        self._directory = directory
        self._clock = clock
        self._on_wait = on_wait
        self._worker = BlockingWorker("outbox")
        self._database: Database | None = None  # used by the thread only, like the next two attributes
        self._inode = 0  # of the file that was opened at the start
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

    async def lock(self) -> None:
        """Lock the directory.

        Raises:
            StateError: The directory cannot be used; the message says why and what to do.
        """
        await self._open_step(self._directory.lock)

    async def open(self) -> LoadedState:
        """Open the database in the locked directory; quarantine a corrupt database and create a new one.

        Raises:
            StateError: The database cannot be used; the message says why and what to do.
        """
        return await self._open_step(self._open)

    async def _open_step(self, step: Callable[[], T]) -> T:
        result = await retry_until_success(
            lambda: self._worker.run(step),
            clock=self._clock,
            backoff=OPEN_BACKOFF,
            before_sleep=self._log_open_failure,
        )
        self._last_error = self._opening
        return result

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
            lambda: self.run_once(job),
            clock=self._clock,
            backoff=BACKOFF,
            before_sleep=self._log_write_failure,
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

    def _log_open_failure(self, failure: Failure) -> None:
        text = self._record_failure(failure)
        self._failure_logged |= self._rate_limiter.log(
            _log.warning, text, "outbox_open_failed", error=text, consecutive=failure.consecutive
        )

    def _log_write_failure(self, failure: Failure) -> None:
        text = self._record_failure(failure)
        self._failure_logged |= self._rate_limiter.log(
            _log.error, text, "outbox_write_failed", error=text, consecutive=failure.consecutive
        )

    def _record_failure(self, failure: Failure) -> str:
        self._last_error = str(failure.error)
        self._on_wait()
        return self._last_error

    # --- in the thread ---

    def _open(self) -> LoadedState:
        try:
            return self._load_or_replace()
        except BaseException as error:
            self._close_database()
            if (translated := _open_error(error, self._directory)) is None:
                raise
            raise translated from error

    def _load_or_replace(self) -> LoadedState:
        try:
            return self._load()
        except _DATABASE_ERRORS as error:
            if not _is_corruption(error):
                raise
            self._close_database()
            path, quarantined = self._directory.database, self._directory.quarantine()
            fields = {"path": str(path), "error": str(error), "quarantined_as": str(quarantined)}
            _log.critical("outbox_corrupt", **fields, hint="check the disk")
            return self._load()

    def _load(self) -> LoadedState:
        self._directory.create_database()
        self._database = database = Database(self._directory.database)
        if not database.check_integrity(CHECK_SECONDS):
            _log.warning("outbox_check_incomplete", path=str(self._directory.database), seconds=CHECK_SECONDS)
        state = database.load()
        # A new file replaces the last quarantined one. An attempt that was interrupted may have created it.
        if not state.queues and (quarantined := self._directory.last_quarantined()) is not None:
            database.save_reset(quarantined.stat().st_mtime_ns)
            state = database.load()
        self._inode = database.inode
        return state

    def _run_job(self, job: Callable[[Database], T]) -> T:
        if self._fatal_error is not None:
            raise self._fatal_error
        try:
            if self._database is None:
                require_inode(self._directory.database, self._inode)
                self._database = Database(self._directory.database)
            return job(self._database)
        except DatabaseRemovedError as error:
            self._close_database()
            path = self._directory.database
            self._fatal_error = StateError(f"{path}: removed while in use; restart whalebridge")
            raise self._fatal_error from error
        except (*_DATABASE_ERRORS, OSError, MemoryError) as error:
            self._close_database()
            if not _is_corruption(error):
                raise _transient_error(error, self._directory) from error
            self._fatal_error = self._quarantine(error)
            raise self._fatal_error from error
        except BaseException:
            self._close_database()  # otherwise the next job would be within this transaction
            raise

    def _quarantine(self, corruption: Exception) -> StateError:
        """Quarantine the file; return the error for all further jobs."""
        corrupt = f"{self._directory.database}: corrupt ({corruption})"
        try:
            quarantined = self._directory.quarantine()
        except OSError as error:  # such as of a failing disk that the kernel has made read-only
            return StateError(f"{corrupt}, cannot be quarantined: {error.strerror}; check the disk")
        return StateError(
            f"{corrupt}, quarantined as {quarantined.name}; "
            "restart whalebridge to start with a new database and a snapshot"
        )

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
        BridgeError: The outbox could not be opened. A corrupt file is not an error, because ``open`` quarantines it.
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


def _open_error(error: BaseException, directory: StateDirectory) -> BridgeError | None:
    """Translate an error that prevented opening the file; None if it needs no translation.

    Unlike later, missing permissions are fatal, because the likely cause is a wrong setting and not a failing disk.
    """
    path = directory.database
    match error:
        case UnknownFormatError():
            return StateError(f"{path}: belongs to another program; use a dedicated state_dir")
        case NewerFormatError():
            return StateError(
                f"{path}: written by a newer whalebridge (format {error.format}, supported: {len(MIGRATIONS)}); "
                "run that version, or move the file away to start with a new one"
            )
        case OSError() if error.errno not in TRANSIENT_ERRNOS:
            return StateError(str(_transient_error(error, directory)))
        case sqlite3.Error() if _sqlite_code(error) in _PERMISSION_CODES:
            return StateError(str(_transient_error(error, directory)))
        case sqlite3.Error() | OSError() | MemoryError():
            return _transient_error(error, directory)
        case _:
            return None


def _is_corruption(error: Exception) -> bool:
    return isinstance(error, CorruptDatabaseError | UnicodeDecodeError) or _sqlite_code(error) in _CORRUPTION_CODES


def _sqlite_code(error: Exception) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & _PRIMARY_CODE_MASK


def _transient_error(error: Exception, directory: StateDirectory) -> TransientError:
    """Translate an error that may be temporary.

    Raises:
        Exception: Any other error is raised again.
    """
    if isinstance(error, OSError):
        hint = "free space on it" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the disk"
        return TransientError(f"{error.filename or directory.path}: {error.strerror}; {hint}")
    if isinstance(error, MemoryError):  # sqlite3's for SQLITE_NOMEM
        return TransientError(f"{directory.database}: out of memory; give whalebridge more memory")
    code = _sqlite_code(error)
    if code not in _TRANSIENT_ERROR_HINTS:
        raise error
    return TransientError(f"{directory.database}: {error}; {_TRANSIENT_ERROR_HINTS[code]}")
