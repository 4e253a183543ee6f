"""The state directory: ours alone, and for one process at a time.

The lock is the kernel's (flock), so that it is freed with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

from bridge.core.errors import InUseError, StateError

DATABASE = "outbox.db"
DEAD_LETTERS = "dead-letters.jsonl"
CONTROL = "control.sock"
_LOCK = "whalebridge.lock"
_OURS = frozenset({DATABASE, _LOCK})
_ANYBODYS = frozenset({"lost+found"})
_SIDE_FILES = ("-wal", "-shm", "-journal")
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class StateFolder:
    """A directory that only this process uses, from ``take`` to ``release``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def database(self) -> Path:
        """The outbox' file."""
        return self.path / DATABASE

    @property
    def dead_letters(self) -> Path:
        """The file of the records that were refused."""
        return self.path / DEAD_LETTERS

    def take(self) -> None:
        """Make the directory where it is missing, and keep every other process out.

        Raises:
            InUseError: Another process has it.
            StateError: It cannot be used; the text says why and what to do.
        """
        try:
            self._prepare()
            self._lock = self._locked()
        except OSError as error:
            raise StateError(f"state_dir {self.path}: {error.strerror}; {_advice(error)}") from error

    def release(self) -> None:
        """Let others in; harmless when repeated."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def create_database(self) -> None:
        """Make the outbox' file, so that it never is anybody else's to read; SQLite gives its others the same mode."""
        os.close(os.open(self.database, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE))

    def set_aside(self) -> Path:
        """Rename the outbox' files, with the time in their names; return the new name of the first."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        aside = self.database.with_name(f"{DATABASE}.corrupt-{now}")
        os.replace(self.database, aside)
        for suffix in _SIDE_FILES:
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.database}{suffix}", f"{aside}{suffix}")
        return aside

    def last_set_aside(self) -> Path | None:
        """Return the outbox file that was set aside last, if any was."""
        return max(self.path.glob(f"{DATABASE}.corrupt-*Z"), default=None)

    def _prepare(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=_FOLDER_MODE, parents=True)
        found = self.path.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        names = set(os.listdir(self.path)) - _ANYBODYS
        if names and not names & _OURS:
            raise StateError(
                f"state_dir {self.path} is not whalebridge's: there are other files in it; name a directory of its own"
            )
        if found.st_uid == os.geteuid():
            self.path.chmod(_FOLDER_MODE)
        elif found.st_mode & _WRITABLE_BY_OTHERS:
            raise StateError(
                f"state_dir {self.path} belongs to another user and can be written by others; "
                "name a directory of whalebridge's own"
            )

    def _locked(self) -> int:
        lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
            os.close(lock)
            raise InUseError(
                f"state_dir {self.path} is in use by another whalebridge (process {holder or 'unknown'}); "
                "stop that one, or give each a state_dir of its own"
            ) from None
        except OSError:
            os.close(lock)
            raise
        return lock


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on its disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "name a directory that whalebridge may write to"
    if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
        return "its file system has no locks; name a directory on a local disk"
    return "name a directory of whalebridge's own on a local disk"
