"""The state directory: exclusive to whalebridge, and to one process at a time.

The lock is the kernel's (flock), so it is released however the process ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
from datetime import UTC, datetime
from pathlib import Path

from bridge.core.errors import InUseError, StateError, TransientError
from bridge.core.time import SECOND

DATABASE = "outbox.db"
DEAD_LETTERS = "dead-letters.jsonl"
CONTROL_SOCKET = "control.sock"
TRANSIENT_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""Errors of a disk that is full or failing; all others need a change of permissions or of the path."""
_LOCK_FILE = "whalebridge.lock"
_OWN_FILES = frozenset({DATABASE, _LOCK_FILE})
_IGNORED_FILES = frozenset({"lost+found"})
_SIDE_FILE_SUFFIXES = ("-wal", "-shm", "-journal")
_DIRECTORY_MODE, _FILE_MODE = 0o700, 0o600
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_AT_FDCWD, _NO_FLAGS, _STATX_BTIME = -100, 0, 0x800
_STATX_BYTES = 256
_MASK = struct.Struct("@I")  # stx_mask, the first field of struct statx
_BTIME, _BTIME_OFFSET = struct.Struct("@qI"), 80  # stx_btime: seconds and nanoseconds


class StateDirectory:
    """A directory that only this process uses, from ``lock`` to ``unlock``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_descriptor: int | None = None

    @property
    def database(self) -> Path:
        """The path of the outbox database."""
        return self.path / DATABASE

    @property
    def dead_letters(self) -> Path:
        """The path of the dead-letter file."""
        return self.path / DEAD_LETTERS

    def lock(self) -> None:
        """Create the directory if it does not exist, and lock it against other processes.

        Raises:
            InUseError: Another process has the lock.
            TransientError: The disk is full or failing.
            StateError: The directory cannot be used; the message says why and what to do.
        """
        try:
            self._prepare()
            self._lock_descriptor = self._acquire_lock()
        except OSError as error:
            kind = TransientError if error.errno in TRANSIENT_ERRNOS else StateError
            raise kind(f"state_dir {self.path}: {error.strerror}; {_hint(error)}") from error

    def unlock(self) -> None:
        """Release the lock; idempotent."""
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None

    def create_database(self) -> None:
        """Create the database file, readable by its owner only; SQLite gives its side files the same mode."""
        os.close(os.open(self.database, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE))

    def quarantine(self) -> Path:
        """Rename the database and its side files to names with the current time; return the database's new path."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        quarantined = self.database.with_name(f"{DATABASE}.corrupt-{now}")
        os.replace(self.database, quarantined)
        for suffix in _SIDE_FILE_SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.database}{suffix}", f"{quarantined}{suffix}")
        return quarantined

    def last_quarantined(self) -> Path | None:
        """Return the most recently quarantined database; None if there is none."""
        return max(self.path.glob(f"{DATABASE}.corrupt-*Z"), default=None)

    def _prepare(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=_DIRECTORY_MODE, parents=True)
        status = self.path.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        names = set(os.listdir(self.path)) - _IGNORED_FILES
        if names and not names & _OWN_FILES:
            raise StateError(f"state_dir {self.path}: contains files of other programs; use an empty directory")
        if status.st_uid == os.geteuid():
            self.path.chmod(_DIRECTORY_MODE)
        elif status.st_mode & _WRITABLE_BY_OTHERS:
            raise StateError(
                f"state_dir {self.path}: owned by another user and writable by others; use a dedicated directory"
            )

    def _acquire_lock(self) -> int:
        lock = os.open(self.path / _LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # a full disk must not prevent the lock; the id is only for messages
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
            os.close(lock)
            raise InUseError(
                f"state_dir {self.path}: in use by another whalebridge (process {holder or 'unknown'}); "
                "waiting until that process ends; each whalebridge needs its own state_dir"
            ) from None
        except OSError:
            os.close(lock)
            raise
        return lock


def _hint(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space on its disk"
    if error.errno == errno.EIO:
        return "check the disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "let the user of whalebridge write to it, or use another directory"
    if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
        return "use a directory on a local disk: its file system does not support locks"
    return "use a dedicated directory on a local disk"


def creation_time(path: Path) -> int | None:
    """Return when a file was created, in nanoseconds since the Unix epoch; None if its file system does not store it.

    On Linux, Python's ``os.stat`` does not return this time.

    A copy of a file has another creation time, even if it has the same inode number, which file systems reuse. On a
    clone of the disk, the creation time is the same.
    """
    statx = getattr(ctypes.CDLL(None), "statx", None)
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx is None or statx(_AT_FDCWD, os.fsencode(path), _NO_FLAGS, _STATX_BTIME, buffer) != 0:
        return None
    if not _MASK.unpack_from(buffer)[0] & _STATX_BTIME:
        return None
    seconds, nanoseconds = _BTIME.unpack_from(buffer, _BTIME_OFFSET)
    return int(seconds * SECOND + nanoseconds)
