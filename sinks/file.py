"""A file of JSON lines that is rotated when it is full: PATH.1 is the newest rotated file, then PATH.2 and so on.

A dedicated thread does all file operations, because disks can hang.

Invariants:
- Acknowledged records are on the disk, not only in the page cache.
- Lines are complete: a failed write is undone, and an incomplete last line (of a killed process, after a power failure,
  or of another program) is removed at the next open. What is not a record is saved in a file of its own.
- Only one whalebridge process writes the file at a time.
- Another program may move the file at any time (as logrotate does): the next line goes to a new file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog

from bridge.blocking_worker import BlockingWorker
from bridge.core.errors import BridgeError, FatalError, TransientError
from bridge.task_groups import completes_within
from sinks.encoding import get_encoding

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from bridge.core.records import Record
    from config.sinks.local import FileSettings

CLOSE_SECONDS = 1.0
FILE_MODE = 0o640  # labels may be confidential

_BLOCK_BYTES = 1 << 20
_LINE_PREFIX = b'{"'  # every line begins with it
_TRANSIENT_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOENT, errno.ESTALE, errno.EROFS, errno.EMFILE}
)
_log = structlog.get_logger(__name__)


class FileError(FatalError):
    """The file cannot be written, and a retry will not help."""


class FileInUseError(TransientError):
    """Another whalebridge process writes the file."""


class FileSink:
    """Appends records to a file."""

    def __init__(self, settings: FileSettings, clock: Clock) -> None:
        self._clock = clock
        self._encode = get_encoding(settings.encoding).encode
        self._file = RotatedFile(settings.path, settings.max_bytes, settings.max_files)
        self._worker = BlockingWorker("file", partial(translate_error, settings.path), exclusive=True)

    async def start(self) -> None:
        """Make sure that the file can be written.

        Raises:
            TransientError: The disk is full, the directory is missing, or the file is in use.
            FileError: The path is not a regular file, or the file is not writable.
        """
        await self._worker.run(self._file.open)

    async def publish(self, batch: Sequence[Record]) -> None:
        """Append records; return when they are on the disk.

        Raises:
            TransientError: The disk is full or fails.
            FileError: The file is no longer writable.
        """
        documents = map(self._encode, batch)
        lines = [document + b"\n" for document in documents if document is not None]
        await self._worker.run(partial(self._file.append, lines))

    async def close(self) -> None:
        """Close the file and stop the thread; a thread that hangs is abandoned."""
        await completes_within(CLOSE_SECONDS, self._clock, self._worker.run(self._file.close))
        await self._worker.close()


class RotatedFile:
    """Writes complete lines to a file (blocking) and rotates it when it is full.

    Args:
        path: The file to write.
        max_bytes: The file is rotated before a line would exceed this size, unless the file is empty.
        max_files: Number of rotated files to keep.
    """

    def __init__(self, path: str, max_bytes: int, max_files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._descriptor: int | None = None
        self._size = 0

    def open(self) -> None:
        """Open the file and remove an incomplete last line; save it first if it is not the beginning of a record."""
        self.close()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE)
        try:
            _lock(descriptor, self._path)
            size = os.fstat(descriptor).st_size
            self._size = _complete_length(descriptor, size)
            if self._size < size:
                _save_end(descriptor, self._size, size, self._path)
                os.ftruncate(descriptor, self._size)
            _sync_directory(self._path)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def append(self, lines: Sequence[bytes]) -> None:
        """Write ``lines`` to the disk; after an error, the same lines may be written again."""
        if not lines:
            return
        start = 0
        while start < len(lines):
            descriptor = self._current_descriptor()
            end, room = start, self._max_bytes - self._size
            while end < len(lines) and (len(lines[end]) <= room or (end == start and not self._size)):
                room -= len(lines[end])
                end += 1
            if end == start:
                self._rotate()
                continue
            self._write(descriptor, b"".join(lines[start:end]))
            start = end

    def _current_descriptor(self) -> int:
        """Return the descriptor of the file at the path; open a new file if another program has moved or removed it."""
        if self._descriptor is not None:
            opened = os.fstat(self._descriptor)
            try:
                current = os.stat(self._path)
            except FileNotFoundError:
                current = None
            if current and os.path.samestat(opened, current) and opened.st_size == self._size:
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
            # Undo completed writes as well: after a failed sync it is unknown which data is on the disk.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._size)
            self.close()
            raise
        self._size += len(data)

    def _rotate(self) -> None:
        self.close()
        if not self._max_files:
            os.unlink(self._path)
            return
        for number in range(self._max_files - 1, 0, -1):
            if os.path.exists(f"{self._path}.{number}"):
                os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        os.replace(self._path, f"{self._path}.1")


def translate_error(path: str, error: OSError) -> BridgeError:
    """Return the bridge's error for an OS error of the file."""
    if error.errno in _TRANSIENT_ERRNOS:
        hint = "free disk space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check its directory and disk"
        return TransientError(f"{path} cannot be written: {error.strerror}; {hint}")
    return FileError(f"{path} cannot be written: {error.strerror}; use another file, or fix its permissions")


def _lock(descriptor: int, path: str) -> None:
    """Check that it is a regular file and lock it; the kernel releases the lock when the process ends."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise FileError(f"{path} is not a regular file; use the path of a file, or use --sink stdout:")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FileInUseError(f"{path} is being written by another process; use another file") from error


def _complete_length(descriptor: int, size: int) -> int:
    """Return the size of the complete lines."""
    end = size
    while end:
        start = max(end - _BLOCK_BYTES, 0)
        line_feed = os.pread(descriptor, end - start, start).rfind(b"\n")
        if line_feed >= 0:
            return start + line_feed + 1
        end = start
    return 0


def _save_end(descriptor: int, start: int, size: int, path: str) -> None:
    """Save the incomplete last line of a file under another name, if it may be of use.

    The beginning of a record cannot: it was not acknowledged, and the record is written again. Neither can zeros, which
    file systems append when the power fails.

    Raises:
        FileError: There is no record in the file at all, so it is probably the file of another program.
    """
    quarantined: str | None = None
    is_record = os.pread(descriptor, len(_LINE_PREFIX), start) == _LINE_PREFIX[: size - start]
    if not is_record and any(map(any, _blocks(descriptor, start, size))):
        if os.pread(descriptor, len(_LINE_PREFIX), 0) != _LINE_PREFIX:
            raise FileError(f"{path} is a file of another program: it does not begin with a record; use another file")
        quarantined = f"{path}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        _copy(descriptor, start, size, quarantined)
    _log.warning("file_end_removed", path=path, bytes=size - start, quarantined_as=quarantined)


def _blocks(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    for position in range(start, end, _BLOCK_BYTES):
        yield os.pread(descriptor, min(end - position, _BLOCK_BYTES), position)


def _copy(descriptor: int, start: int, end: int, target: str) -> None:
    copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        for block in _blocks(descriptor, start, end):
            written = 0
            while written < len(block):
                written += os.write(copy, block[written:])
        os.fsync(copy)
    except BaseException:
        os.unlink(target)
        raise
    finally:
        os.close(copy)


def _sync_directory(path: str) -> None:
    """Sync the directory, so that the file's name is on the disk too."""
    directory = os.open(os.path.dirname(path) or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
