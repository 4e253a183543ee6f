"""A file of JSON lines, set aside when it is full: PATH.1 is the youngest of those, then PATH.2 and so on.

A thread of our own does all of it: disks hang.

Invariants:
- What was acknowledged is on the disk, not only in the operating system's memory.
- Lines are whole: what a failed write left is taken back, and what a process that was killed left of one is taken
  away by the next.
- Nobody else of our kind writes it at the same time.
- Somebody else may move the file away at any time (logrotate does): the next line goes into a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bridge.core.errors import BridgeError, FatalError, TransientError
from sinks.documents import format_of
from sinks.thread import Worker

if TYPE_CHECKING:
    from bridge.core.events import Record
    from config.sinks.file import FileSettings

CLOSE_SECONDS = 1.0
MODE = 0o640  # labels are not for everybody

_TAIL = 1 << 20  # more than the longest line
_BEGINNING = b'{"'  # of each of our lines
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOENT, errno.ESTALE, errno.EROFS, errno.EMFILE})


class FileError(FatalError):
    """The file cannot be written, and trying again will not help."""


class FileInUseError(TransientError):
    """Another process of our kind writes the file."""


class FileSink:
    """Appends records to a file."""

    def __init__(self, settings: FileSettings) -> None:
        self._encode = format_of(settings.encoding).encode
        self._file = RotatedFile(settings.path, settings.max_bytes, settings.max_files)
        self._worker = Worker("file", partial(translated, settings.path))

    async def start(self) -> None:
        """Make sure that the file can be written.

        Raises:
            TransientError: Its disk is full, or its folder is not there.
            FileError: It is something else than a file, or we may not write it.
        """
        await self._worker.do(self._file.open)

    async def publish(self, batch: Sequence[Record]) -> None:
        """Append records; return when they are on the disk.

        Raises:
            TransientError: The disk is full, or fails.
            FileError: We may not write the file any more.
        """
        documents = map(self._encode, batch)
        lines = [document + b"\n" for document in documents if document is not None]
        await self._worker.do(partial(self._file.append, lines))

    async def close(self) -> None:
        """Let the thread end; one that is stuck is left to itself."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._worker.do(self._file.close)
        await self._worker.close(0)


class RotatedFile:
    """Blocking writes of whole lines, and what happens to a file that is full.

    Args:
        path: The file that is written.
        max_bytes: It is set aside before a line would make it larger, unless that line is its only one.
        keep: How many of those that were set aside are kept.
    """

    def __init__(self, path: str, max_bytes: int, keep: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._descriptor: int | None = None
        self._size = 0

    def open(self) -> None:
        """Open it, and take away what a killed process left of a line."""
        self.close()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, MODE)
        try:
            _take(descriptor, self._path)
            self._size = _whole_lines(descriptor, os.fstat(descriptor).st_size, self._path)
            os.ftruncate(descriptor, self._size)
            _sync_folder(self._path)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def close(self) -> None:
        """Close it; harmless when repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def append(self, lines: Sequence[bytes]) -> None:
        """Write all of ``lines`` to the disk; after an error they may be handed over again."""
        if not lines:
            return
        start = 0
        while start < len(lines):
            descriptor = self._current()
            end, room = start, self._max_bytes - self._size
            while end < len(lines) and (len(lines[end]) <= room or (end == start and not self._size)):
                room -= len(lines[end])
                end += 1
            if end == start:
                self._set_aside()
                continue
            self._write(descriptor, b"".join(lines[start:end]))
            start = end

    def _current(self) -> int:
        """Return the descriptor of the file that is there now; somebody may have moved or removed ours."""
        if self._descriptor is not None:
            ours = os.fstat(self._descriptor)
            try:
                there = os.stat(self._path)
            except FileNotFoundError:
                there = None
            if there and (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino) and ours.st_size == self._size:
                return self._descriptor
        self.open()
        assert self._descriptor is not None  # noqa: S101 (open() has just set it)
        return self._descriptor

    def _write(self, descriptor: int, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], self._size + written)
            os.fdatasync(descriptor)
        except OSError:
            # Also what was written whole: after a failed sync nobody knows what of it is on the disk.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._size)
            self.close()
            raise
        self._size += len(data)

    def _set_aside(self) -> None:
        self.close()
        if not self._keep:
            os.unlink(self._path)
            return
        for number in range(self._keep - 1, 0, -1):
            if os.path.exists(f"{self._path}.{number}"):
                os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        os.replace(self._path, f"{self._path}.1")


def translated(path: str, error: OSError) -> BridgeError:
    """Tell what an error of a file means."""
    if error.errno in _PASSING:
        todo = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see to its folder and disk"
        return TransientError(f"{path} cannot be written: {error.strerror}; {todo}")
    return FileError(f"{path} cannot be written: {error.strerror}; name another file, or change its permissions")


def _take(descriptor: int, path: str) -> None:
    """Make sure that it is a file, and keep others of our kind out; the kernel frees the lock however we end."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise FileError(f"{path} is not a file; name one, or take stdout:")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FileInUseError(f"{path} is being written by another process; name another file for this one") from error


def _whole_lines(descriptor: int, size: int, path: str) -> int:
    """Return how much of a file are whole lines; what is not ours is left alone."""
    tail = os.pread(descriptor, min(size, _TAIL), max(size - _TAIL, 0))
    rest = tail[tail.rfind(b"\n") + 1 :]
    if not rest:
        return size
    if not rest.startswith(_BEGINNING[: len(rest)]):
        raise FileError(f"{path} ends in the midst of a line that is not ours; name another file")
    return size - len(rest)


def _sync_folder(path: str) -> None:
    """Make sure that the file's name is on the disk as well."""
    folder = os.open(os.path.dirname(path) or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
