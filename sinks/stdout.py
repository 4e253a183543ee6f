"""Standard output: one JSON document a line.

Writing can block for as long as the reader likes (a pager, a stopped program), and other programs may share the file
behind the descriptor, so that it must not be made non-blocking. Therefore a thread of our own does all of it.

Invariants:
- Lines are whole: what a failed write left of one is written before anything else is.
- Pieces of at most PIPE_BUF bytes go into a pipe whole or not at all, so that a process that ends in the midst of it
  cuts no line shorter than that.
- A terminal gets nothing to obey: there, and only there, more characters are escaped than JSON asks for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bridge.blocking_worker import BlockingWorker, resolve_future
from bridge.core.errors import BridgeError, FatalError, TransientError
from bridge.telemetry.text import printable_json
from sinks.documents import Encoding, format_of

if TYPE_CHECKING:
    from bridge.core.events import Record

STDOUT = 1
PIECE = select.PIPE_BUF
CLOSE_SECONDS = 1.0  # what a reader that has fallen asleep is given at the end

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class OutputError(FatalError):
    """Standard output cannot be written, and trying again will not help."""


class StdoutSink:
    """Writes records to a file descriptor, which it neither opens nor closes."""

    def __init__(self, descriptor: int = STDOUT, *, encoding: Encoding = "json") -> None:
        self._descriptor = descriptor
        self._encode = format_of(encoding).encode
        self._writer = LineWriter(descriptor)
        self._worker = BlockingWorker("stdout", translated, exclusive=True)
        self._to_terminal = False

    async def start(self) -> None:
        """Make sure that there is a standard output.

        Raises:
            OutputError: It is closed.
        """
        # Where the descriptor was closed as Python started, its number may belong to another file by now.
        if self._descriptor == STDOUT and sys.__stdout__ is None:
            raise OutputError("standard output is closed: send it to a file, a pipe or a terminal")
        try:
            os.fstat(self._descriptor)
        except OSError as error:
            raise translated(error) from error
        self._to_terminal = os.isatty(self._descriptor)

    async def publish(self, batch: Sequence[Record]) -> None:
        """Write records; return when the operating system has taken all of them.

        Raises:
            TransientError: The disk behind it is full.
            OutputError: Nobody can read it any more.
        """
        documents = map(self._encode, batch)
        lines = [self._line(document) for document in documents if document is not None]
        await self._worker.run(partial(self._writer.write, lines))

    async def reader_gone(self) -> None:
        """Wait until nobody can read any more, also while there is nothing to write. A file never gets there.

        Raises:
            OutputError: That is so now.
        """
        loop = asyncio.get_running_loop()
        gone = loop.create_future()
        threading.Thread(
            target=_wait_for_hangup, args=(self._descriptor, loop, gone), name="stdout-reader", daemon=True
        ).start()
        await gone
        raise translated(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))

    async def close(self) -> None:
        """Let the thread end; one that is stuck is left to itself."""
        await self._worker.close(CLOSE_SECONDS)

    def _line(self, document: bytes) -> bytes:
        return (printable_json(document.decode()).encode() if self._to_terminal else document) + b"\n"


class LineWriter:
    """Blocking writes of whole lines, in pieces."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""  # of a line whose beginning is written

    def write(self, lines: Iterable[bytes]) -> None:
        """Write all of ``lines``, each with its line feed; after an error they may be handed over again."""
        for piece in pieces(lines):
            self._write_piece(self._rest + piece)

    def _write_piece(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += self._write_some(data[written:])
        except OSError:
            if written:
                self._rest = rest_of_line(data, written)
            raise
        self._rest = b""

    def _write_some(self, data: bytes) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # whoever gave us the descriptor has made it non-blocking
                _poll(self._descriptor, select.POLLOUT)


def pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Join lines into pieces of at most ``PIECE`` bytes; a longer line is a piece of its own."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        if held and size + len(line) > PIECE:
            yield b"".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
    if held:
        yield b"".join(held)


def rest_of_line(data: bytes, written: int) -> bytes:
    """Return what is missing of the line that ``written`` bytes of ``data`` end in; nothing where they end with it."""
    if data[written - 1 : written] == b"\n":
        return b""
    return data[written : data.index(b"\n", written) + 1]


def translated(error: OSError) -> BridgeError:
    """Tell what an error of the descriptor means."""
    if error.errno == errno.EPIPE:
        return OutputError("standard output: its reader has gone")
    reason = f"standard output cannot be written: {error.strerror}"
    if error.errno in _DISK_FULL:
        return TransientError(f"{reason}; make room where it is redirected to")
    return OutputError(f"{reason}; send it to a file, a pipe or a terminal")


def _wait_for_hangup(descriptor: int, loop: asyncio.AbstractEventLoop, gone: asyncio.Future[None]) -> None:
    _poll(descriptor, 0)  # hang-ups and errors are reported whatever is asked for
    resolve_future(loop, gone, None)


def _poll(descriptor: int, events: int) -> None:
    poll = select.poll()
    poll.register(descriptor, events)
    poll.poll()
