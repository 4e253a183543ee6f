"""Reading files of JSON lines, also while they are written and set aside, and standard input.

A thread of its own does the reading: disks hang, and a terminal waits for a person.
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
    """Reads standard input, or what else a descriptor stands for, to its end."""

    follow = False

    def __init__(self, descriptor: int = STDIN) -> None:
        self._descriptor = descriptor
        self._chunk = b""

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Read lines as they come.

        Raises:
            FatalError: It cannot be read.
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
            except BlockingIOError:  # whoever gave us the descriptor has made it non-blocking
                select.select([self._descriptor], [], [])
            else:
                return


class FileReader:
    """Reads a file that whalebridge writes, and those set aside before: PATH.1 is the youngest of them, then PATH.2.

    From the end on, only the file itself is read. Following, it goes on with what takes the file's place.
    """

    def __init__(self, path: str, clock: Clock, *, begin: Begin, follow: bool) -> None:
        self.follow = follow
        self._path = path
        self._clock = clock
        self._begin = begin

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Read lines.

        Raises:
            NotFoundError: There is no such file.
            FatalError: It cannot be read.
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
    """Blocking reads of a file, of those that were set aside before, and of those that take its place."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        self.lines = Lines(path)
        self.found: Sequence[Message] | None = None
        """What the last read brought; None where the end was reached."""

    def begin(self, begin: Begin) -> None:
        if begin == "end":
            self._open(self._path)
            if end := os.lseek(self._descriptor, 0, os.SEEK_END):
                os.lseek(self._descriptor, end - 1, os.SEEK_SET)  # to see whether a line ends there
                self.lines = Lines(self._path, within_line=True)
            return
        since = begin.timestamp() if isinstance(begin, datetime) else 0.0
        recent = [number for number, there in _family(self._path).items() if number and there.st_mtime >= since]
        self._open(_aside(self._path, max(recent, default=0)))

    def read(self) -> None:
        """Read on, in the next file where one is over."""
        self.found = self._chunk()
        while self.found is None and (successor := self._successor()) is not None:
            self.found = self._chunk()  # what was written before it was set aside
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
            raise OSError(errno.EINVAL, "it is no file; for a pipe, use - and standard input")
        self.lines = Lines(path)

    def _chunk(self) -> Sequence[Message] | None:
        if os.fstat(self._descriptor).st_size < os.lseek(self._descriptor, 0, os.SEEK_CUR):
            os.lseek(self._descriptor, 0, os.SEEK_SET)  # it was cut off, and begins anew
            self.lines = Lines(self._path)
        chunk = os.read(self._descriptor, CHUNK)
        return self.lines.of(chunk) if chunk else None

    def _successor(self) -> str | None:
        """Return the file that follows the one that is open; None where that is the newest."""
        ours = os.fstat(self._descriptor)
        family = _family(self._path)
        here = [number for number, there in family.items() if os.path.samestat(ours, there)]
        if here:
            younger = [number for number in family if number < here[0]]
        elif ours.st_nlink:  # somebody has moved it out of our sight
            younger = [number for number in family if number == 0]
        else:
            younger = list(family)
        return _aside(self._path, max(younger)) if younger else None


def _family(path: str) -> dict[int, os.stat_result]:
    """Return a file, under 0, and those that were set aside, by their numbers.

    Files are looked at in the order in which they are renamed, so that none slips through.
    """
    folder, name = os.path.split(path)
    numbered = re.compile(rf"{re.escape(name)}\.(\d{{1,5}})")
    numbers = [int(found[1]) for each in os.listdir(folder) if (found := numbered.fullmatch(each))]
    family = {}
    for number in sorted({0, *numbers, *(number + 1 for number in numbers)}):
        try:
            family[number] = os.stat(_aside(path, number))
        except FileNotFoundError:
            continue
    return family


def _aside(path: str, number: int) -> str:
    return f"{path}.{number}" if number else path


def _unreadable(name: str) -> Callable[[OSError], BridgeError]:
    def translate(error: OSError) -> BridgeError:
        if isinstance(error, FileNotFoundError):
            return NotFoundError(f"there is no file {name}: name one that whalebridge writes (--sink file:PATH)")
        return FatalError(f"{name} cannot be read: {error.strerror}")

    return translate
