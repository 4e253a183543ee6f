"""The outbox' file behind one thread: opened, given up after an error, opened again until it works.

Invariant: what failed is never taken for done. It is repeated on a new connection until it succeeds, or the process
ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import structlog

from bridge.core.errors import StateError, TransientError
from bridge.core.ports import Clock
from bridge.outbox.database import DamagedError, Database, RemovedError, look_at
from bridge.outbox.folder import StateFolder
from bridge.outbox.rows import Content
from bridge.outbox.schema import STEPS, ForeignError, NewerError
from bridge.outbox.worker import Worker
from bridge.retry import Backoff, Failure, forever
from bridge.telemetry.sparingly import Sparingly

T = TypeVar("T")

BACKOFF = Backoff(first=0.1, most=5.0)
_PRIMARY_CODE = 0xFF
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_PASSING = {
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_IOERR: "look after its disk",
    sqlite3.SQLITE_READONLY: "make it writable",
    sqlite3.SQLITE_PERM: "make it writable",
    sqlite3.SQLITE_CANTOPEN: "make it and its directory writable",
    sqlite3.SQLITE_BUSY: "end the other program that has it open",
    sqlite3.SQLITE_LOCKED: "end the other program that has it open",
    sqlite3.SQLITE_NOMEM: "give whalebridge more memory",
    sqlite3.SQLITE_PROTOCOL: "end the other program that has it open",
}
_SECOND = 1_000_000_000
_HANGING = 10 * _SECOND
_log = structlog.get_logger(__name__)


class Store:
    """Hands jobs to the thread that has the connection."""

    def __init__(self, folder: StateFolder, clock: Clock) -> None:
        self._trouble: str | None = None
        self._jobs = 0
        self._stirred = 0  # when (monotonic) a job was done last, or the first of those under way came
        self._complained = False
        self._folder = folder
        self._clock = clock
        self._worker = Worker("outbox")
        self._database: Database | None = None  # this and the next for the thread only
        self._broken: StateError | None = None
        self._sparingly = Sparingly(clock)

    @property
    def trouble(self) -> str | None:
        """Why the file cannot be used at the moment; None where it can."""
        if self._trouble is None and self._jobs and self._clock.now().monotonic - self._stirred > _HANGING:
            return f"{self._folder.database}: its disk has not answered for more than {_HANGING // _SECOND} s"
        return self._trouble

    async def open(self) -> Content:
        """Take the directory and open the file in it; one that is damaged is set aside, and a new one begun.

        Raises:
            StateError: That cannot be done; the text says why and what to do.
        """
        return await self._worker.run(self._open)

    async def attempt(self, job: Callable[[Database], T]) -> T:
        """Have something done once.

        Raises:
            TransientError: It did not work; perhaps it did all the same.
            StateError: It never will.
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
        """Have something done, again and again until it works: it must do no harm to do it twice.

        Raises:
            StateError: It never will.
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
        """Let go of everything; harmless when repeated."""
        await self._worker.run(self._close)
        self._worker.stop()

    def _complain(self, failure: Failure) -> None:
        text = self._trouble = str(failure.error)
        self._complained |= self._sparingly.say(
            _log.error, text, "outbox_write_failed", error=text, consecutive=failure.in_a_row
        )

    # --- in the thread ---

    def _open(self) -> Content:
        self._folder.take()
        try:
            return self._opened()
        except BaseException as error:
            self._close()
            if (refusal := _refusal(error, self._folder)) is None:
                raise
            raise refusal from error

    def _opened(self) -> Content:
        path = self._folder.database
        if not path.exists():  # whoever set the last one aside may have died before a new one was there
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
        """Open the file; ``reset`` is when the one in whose place it stands was written to last."""
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
            self._broken = StateError(f"{path} was removed while it was in use: start whalebridge again")
            raise self._broken from error
        except (sqlite3.Error, OSError, DamagedError) as error:
            self._close_database()
            if not _is_damage(error):
                raise _translated(error, self._folder) from error
            aside = self._folder.set_aside()
            self._broken = StateError(
                f"{self._folder.database} is damaged ({error}); it was set aside as {aside.name}: "
                "start whalebridge again, and it begins a new one with a snapshot"
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
    """Look whether there is anything in a folder that was taken that an outbox could not be opened for.

    Raises:
        StateError: There is. A file that is damaged is none of it: that one is set aside.
    """
    try:
        if folder.database.exists():
            look_at(folder.database)
    except Exception as error:
        if _is_damage(error):
            return
        if (refusal := _refusal(error, folder)) is None:
            raise
        raise refusal from error


def _refusal(error: BaseException, folder: StateFolder) -> StateError | None:
    """Return what an error means that kept us from opening the file, where it does not say so itself."""
    path = folder.database
    match error:
        case ForeignError():
            return StateError(f"{path} is another program's; name a state_dir of whalebridge's own")
        case NewerError():
            return StateError(
                f"{path} was written by a newer whalebridge (format {error.format}, this one knows {len(STEPS)}); "
                "run that version, or move the file away to begin anew"
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
    """Tell what an error means that may pass.

    Raises:
        Exception: It is none of those: it is raised again.
    """
    if isinstance(error, OSError):
        return TransientError(f"{error.filename or folder.path}: {error.strerror}; look after its disk")
    code = _code(error)
    if code not in _PASSING:
        raise error
    return TransientError(f"{folder.database}: {error}; {_PASSING[code]}")
