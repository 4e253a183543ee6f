"""Readers of JSON lines files, also while they are written and rotated, and of standard input.

A dedicated thread reads, because disks can hang and a terminal blocks until the user types.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import select
import stat
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

from bridge.blocking_worker import BlockingWorker
from bridge.core.errors import BridgeError, FatalError, NotFoundError
from bridge.fleet.lines import Lines
from bridge.fleet.messages import Begin, Message

if TYPE_CHECKING:
    from bridge.core.ports import Clock

STDIN = 0
CHUNK = 256 * 1024
POLL_SECONDS = 0.2
CLOSE_SECONDS = 1.0


class InputReader:
    """Reads standard input, or another descriptor, to its end."""

    follow = False

    def __init__(self, descriptor: int = STDIN) -> None:
        self._descriptor = descriptor
        self._chunk = b""

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Yield lines as they arrive.

        Raises:
            FatalError: The input cannot be read.
        """
        worker = BlockingWorker("input", _unreadable("standard input"), exclusive=True)
        lines = Lines("standard input")
        try:
            await worker.run(self._read)
            while self._chunk:
                yield lines.of(self._chunk)
                await worker.run(self._read)
            yield lines.rest()
        finally:
            await worker.close()

    def _read(self) -> None:
        while True:
            try:
                self._chunk = os.read(self._descriptor, CHUNK)
            except BlockingIOError:  # the parent process made the descriptor non-blocking
                select.select([self._descriptor], [], [])
            else:
                return


class FileReader:
    """Reads a file that whalebridge writes, and its rotated files: PATH.1 is the newest of them, then PATH.2.

    With start position "end", it reads only the file itself. With ``follow``, it continues with the file that replaces
    a rotated one.
    """

    def __init__(self, path: str, clock: Clock, *, begin: Begin, follow: bool) -> None:
        self.follow = follow
        self._path = path
        self._clock = clock
        self._begin = begin

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Yield lines.

        Raises:
            NotFoundError: The file does not exist.
            FatalError: The file cannot be read.
        """
        worker = BlockingWorker("file", _unreadable(self._path), exclusive=True)
        series = _Series(self._path)
        try:
            await worker.run(lambda: series.begin(self._begin))
            while True:
                await worker.run(series.read)
                if series.found is not None:
                    yield series.found
                elif self.follow:
                    await self._clock.sleep(POLL_SECONDS)
                else:
                    yield series.lines.rest()
                    return
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await worker.run(series.close)
            await worker.close()


class _Series:
    """Blocking reads of a file, its rotated files, and the files that replace it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        self.lines = Lines(path)
        self.found: Sequence[Message] | None = None
        """The messages of the last read; None at the end."""

    def begin(self, begin: Begin) -> None:
        if begin == "end":
            self._open(self._path)
            if end := os.lseek(self._descriptor, 0, os.SEEK_END):
                os.lseek(self._descriptor, end - 1, os.SEEK_SET)  # to check whether a line ends there
                self.lines = Lines(self._path, within_line=True)
            return
        since = begin.timestamp() if isinstance(begin, datetime) else 0.0
        recent = [number for number, status in _family(self._path).items() if number and status.st_mtime >= since]
        self._open(_aside(self._path, max(recent, default=0)))

    def read(self) -> None:
        """Read the next chunk, from the next file at the end of a rotated one."""
        self.found = self._chunk()
        while self.found is None and (successor := self._successor()) is not None:
            self.found = self._chunk()  # lines written between the last read and the rotation
            if self.found is None:
                self.found = self.lines.rest() or None
                self._open(successor)
                self.found = self.found or self._chunk()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, path: str) -> None:
        self.close()
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file; for a pipe, use - (standard input)")
        self.lines = Lines(path)

    def _chunk(self) -> Sequence[Message] | None:
        if os.fstat(self._descriptor).st_size < os.lseek(self._descriptor, 0, os.SEEK_CUR):
            os.lseek(self._descriptor, 0, os.SEEK_SET)  # the file was truncated
            self.lines = Lines(self._path)
        chunk = os.read(self._descriptor, CHUNK)
        return self.lines.of(chunk) if chunk else None

    def _successor(self) -> str | None:
        """Return the path of the file after the open one; None if the open file is the newest."""
        open_file = os.fstat(self._descriptor)
        files = _family(self._path)
        numbers = [number for number, status in files.items() if os.path.samestat(open_file, status)]
        if numbers:
            newer = [number for number in files if number < numbers[0]]
        elif open_file.st_nlink:  # the open file was moved to a name that is not in the sequence
            newer = [number for number in files if number == 0]
        else:
            newer = list(files)
        return _aside(self._path, max(newer)) if newer else None


def _family(path: str) -> dict[int, os.stat_result]:
    """Return the status of a file, as number 0, and of its rotated files, by their numbers.

    The files are checked in the order in which a rotation renames them, so that none is missed.
    """
    directory, name = os.path.split(path)
    numbered = re.compile(rf"{re.escape(name)}\.(\d{{1,5}})")
    numbers = [int(found[1]) for each in os.listdir(directory) if (found := numbered.fullmatch(each))]
    files = {}
    for number in sorted({0, *numbers, *(number + 1 for number in numbers)}):
        try:
            files[number] = os.stat(_aside(path, number))
        except FileNotFoundError:
            continue
    return files


def _aside(path: str, number: int) -> str:
    return f"{path}.{number}" if number else path


def _unreadable(name: str) -> Callable[[OSError], BridgeError]:
    def translate(error: OSError) -> BridgeError:
        if isinstance(error, FileNotFoundError):
            return NotFoundError(f"file {name} does not exist; use a file that whalebridge writes (--sink file:PATH)")
        return FatalError(f"cannot read {name}: {error.strerror}")

    return translate
