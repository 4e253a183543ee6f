"""Readers of JSON lines files, also while they are written and rotated, and of standard input.

A dedicated thread reads, because disks can hang and a terminal blocks until the user types.
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from bridge.blocking_worker import BlockingWorker
from bridge.consumer.record_reader import Message, StartPosition
from bridge.core.errors import BridgeError, FatalError, NotFoundError
from bridge.task_groups import completes_within

if TYPE_CHECKING:
    from bridge.core.ports import Clock

STDIN = 0
CHUNK_BYTES = 256 * 1024
POLL_SECONDS = 0.2
CLOSE_TIMEOUT_SECONDS = 1.0
MAX_LINE_BYTES = 16 * 1024 * 1024  # bytes of a line; a longer line cannot be a record
_TRUNCATED_BYTES = 1000  # bytes of a line that is too long: enough to report it as invalid


class StdinReader:
    """Reads standard input, or another descriptor, to its end."""

    follow = False
    total: int | None = None

    def __init__(self, descriptor: int = STDIN) -> None:
        self.position: dict[str, int] = {}
        self._descriptor = descriptor
        self._chunk = b""

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Yield lines as they arrive.

        Raises:
            FatalError: The input cannot be read.
        """
        worker = BlockingWorker("input", _error_translator("standard input"), exclusive=True)
        lines = LineSplitter("standard input")
        try:
            await worker.run(self._read)
            while self._chunk:
                yield lines.split(self._chunk)
                await worker.run(self._read)
            yield lines.finish()
        finally:
            await worker.close()

    def _read(self) -> None:
        while True:
            try:
                self._chunk = os.read(self._descriptor, CHUNK_BYTES)
            except BlockingIOError:  # the parent process made the descriptor non-blocking
                select.select([self._descriptor], [], [])
            else:
                return


class FileReader:
    """Reads a file that whalebridge writes, and its rotated files: PATH.1 is the newest of them, then PATH.2.

    With start position "end", it reads only the file itself. With ``follow``, it continues with the file that replaces
    a rotated one.
    """

    total: int | None = None

    def __init__(self, path: str, clock: Clock, *, start_position: StartPosition, follow: bool) -> None:
        self.follow = follow
        self.position: dict[str, int] = {}
        self._path = path
        self._clock = clock
        self._start_position = start_position

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Yield lines.

        Raises:
            NotFoundError: The file does not exist.
            FatalError: The file cannot be read.
        """
        worker = BlockingWorker("file", _error_translator(self._path), exclusive=True)
        files = _RotatedFiles(self._path)
        try:
            await worker.run(lambda: files.open_start(self._start_position))
            yield ()  # the file is open, although it may be empty
            while True:
                await worker.run(files.read)
                if files.messages is not None:
                    yield files.messages
                elif self.follow:
                    await self._clock.sleep(POLL_SECONDS)
                else:
                    yield files.splitter.finish()
                    return
        finally:
            await completes_within(CLOSE_TIMEOUT_SECONDS, self._clock, worker.run(files.close))
            await worker.close()


class _RotatedFiles:
    """Blocking reads of a file, its rotated files, and the files that replace it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        self.splitter = LineSplitter(path)
        self.messages: Sequence[Message] | None = None
        """The messages of the last read; None at the end."""

    def open_start(self, start_position: StartPosition) -> None:
        if start_position == "end":
            self._open(self._path)
            if end := os.lseek(self._descriptor, 0, os.SEEK_END):
                os.lseek(self._descriptor, end - 1, os.SEEK_SET)  # to check whether a line ends there
                self.splitter = LineSplitter(self._path, within_line=True)
            return
        since = start_position.timestamp() if isinstance(start_position, datetime) else 0.0
        recent = [
            number for number, status in _rotated_files(self._path).items() if number and status.st_mtime >= since
        ]
        self._open(_rotated_path(self._path, max(recent, default=0)))

    def read(self) -> None:
        """Read the next chunk, from the next file at the end of a rotated one."""
        self.messages = self._read_chunk()
        while self.messages is None and (successor := self._next_file()) is not None:
            self.messages = self._read_chunk()  # lines written between the last read and the rotation
            if self.messages is None:
                self.messages = self.splitter.finish() or None
                self._open(successor)
                self.messages = self.messages or self._read_chunk()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, path: str) -> None:
        self.close()
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file; for a pipe, use - (standard input)")
        self.splitter = LineSplitter(path)

    def _read_chunk(self) -> Sequence[Message] | None:
        if os.fstat(self._descriptor).st_size < os.lseek(self._descriptor, 0, os.SEEK_CUR):
            os.lseek(self._descriptor, 0, os.SEEK_SET)  # the file was truncated
            self.splitter = LineSplitter(self._path)
        chunk = os.read(self._descriptor, CHUNK_BYTES)
        return self.splitter.split(chunk) if chunk else None

    def _next_file(self) -> str | None:
        """Return the path of the file after the open one; None if the open file is the newest."""
        open_file = os.fstat(self._descriptor)
        files = _rotated_files(self._path)
        numbers = [number for number, status in files.items() if os.path.samestat(open_file, status)]
        if numbers:
            newer = [number for number in files if number < numbers[0]]
        elif open_file.st_nlink:  # the open file was moved to a name that is not in the sequence
            newer = [number for number in files if number == 0]
        else:
            newer = list(files)
        return _rotated_path(self._path, max(newer)) if newer else None


class LineSplitter:
    """Splits chunks into lines; ``location`` is the lines' origin, for error messages."""

    def __init__(self, location: str, *, within_line: bool = False) -> None:
        """Start at the beginning of a line, or ``within_line``, which skips the remainder of this line."""
        self._location = location
        self._skipping = within_line
        self._remainder = b""
        self._number = 0

    def split(self, chunk: bytes) -> Sequence[Message]:
        """Return the lines that end in ``chunk``."""
        *lines, self._remainder = (self._remainder + chunk).split(b"\n")
        if lines and self._skipping:
            self._skipping = False
            del lines[0]
        messages = [self._message(line) for line in lines if line.strip()]
        if self._skipping:
            self._remainder = b""
        elif len(self._remainder) > MAX_LINE_BYTES:
            messages.append(self._message(self._remainder[:_TRUNCATED_BYTES]))
            self._remainder, self._skipping = b"", True
        return messages

    def finish(self) -> Sequence[Message]:
        """Return the text after the last line feed, at the end of the stream."""
        line, self._remainder = self._remainder, b""
        return [self._message(line)] if line.strip() and not self._skipping else []

    def _message(self, line: bytes) -> Message:
        self._number += 1
        return Message(line, self._location, self._number)


def _rotated_files(path: str) -> dict[int, os.stat_result]:
    """Return the status of a file, as number 0, and of its rotated files, by their numbers.

    The files are checked in the order in which a rotation renames them, so that none is missed.
    """
    directory, name = os.path.split(path)
    numbered = re.compile(rf"{re.escape(name)}\.(\d{{1,5}})")
    numbers = [int(match[1]) for each in os.listdir(directory) if (match := numbered.fullmatch(each))]
    files = {}
    for number in sorted({0, *numbers, *(number + 1 for number in numbers)}):
        try:
            files[number] = os.stat(_rotated_path(path, number))
        except FileNotFoundError:
            continue
    return files


def _rotated_path(path: str, number: int) -> str:
    return f"{path}.{number}" if number else path


def _error_translator(name: str) -> Callable[[OSError], BridgeError]:
    def translate(error: OSError) -> BridgeError:
        if isinstance(error, FileNotFoundError):
            return NotFoundError(f"file {name} does not exist; use a file that whalebridge writes (--sink file:PATH)")
        return FatalError(f"cannot read {name}: {error.strerror}")

    return translate
