"""Standard output: one JSON document per line.

A write can block as long as the reader does not read (a pager, a stopped program), and other programs may share the
file behind the descriptor, so it must not become non-blocking. Therefore a dedicated thread does all writes.

Invariants:
- Lines are complete: the rest of a line that a failed write has cut is written before anything else.
- Chunks of at most PIPE_BUF bytes go into a pipe entirely or not at all, so a process that ends during a write cuts no
  line shorter than PIPE_BUF.
- A terminal receives no control characters: for terminals only, more characters are escaped than JSON requires.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bridge.blocking_worker import BlockingWorker, resolve_future, start_thread
from bridge.core.errors import BridgeError, DisconnectedError, TransientError
from bridge.telemetry.safe_text import printable_json
from sinks.encoding import EncodingName, get_encoding

if TYPE_CHECKING:
    from bridge.core.records import Record

STDOUT = 1
CHUNK_BYTES = select.PIPE_BUF
CLOSE_SECONDS = 1.0  # how long close() waits for a reader that does not read

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class OutputError(DisconnectedError):
    """Standard output cannot be written, and a retry will not help."""


class StdoutSink:
    """Writes records to a file descriptor, which it neither opens nor closes.

    Args:
        descriptor: The file descriptor.
        encoding: The encoding of the records.
        format_line: Formats an encoded record as a line for humans; without it, the line is the encoded record.
    """

    def __init__(
        self,
        descriptor: int = STDOUT,
        *,
        encoding: EncodingName = "json",
        format_line: Callable[[bytes], str] | None = None,
    ) -> None:
        self._descriptor = descriptor
        self._encode = get_encoding(encoding).encode
        self._format_line = format_line
        self._writer = LineWriter(descriptor)
        self._worker = BlockingWorker("stdout", translate_error, exclusive=True)
        self._is_terminal = False

    async def start(self) -> None:
        """Make sure that standard output is open.

        Raises:
            OutputError: Standard output is closed.
        """
        # If the descriptor was closed when Python started, another file may have its number now.
        if self._descriptor == STDOUT and sys.__stdout__ is None:
            raise OutputError("standard output is closed; redirect it to a file, a pipe or a terminal")
        try:
            os.fstat(self._descriptor)
        except OSError as error:
            raise translate_error(error) from error
        self._is_terminal = os.isatty(self._descriptor)

    async def publish(self, batch: Sequence[Record]) -> None:
        """Write records; return when the operating system has taken all of them.

        Raises:
            TransientError: The disk behind standard output is full.
            OutputError: The reader has disconnected.
        """
        documents = map(self._encode, batch)
        lines = [self._line(document) for document in documents if document is not None]
        await self._worker.run(partial(self._writer.write, lines))

    async def wait_disconnected(self) -> None:
        """Wait until the reader disconnects, also while there is nothing to write. Never returns for a file.

        Raises:
            OutputError: The reader has disconnected.
        """
        loop = asyncio.get_running_loop()
        disconnected = loop.create_future()
        start_thread("stdout-reader", _wait_for_hangup, self._descriptor, loop, disconnected)
        await disconnected
        raise translate_error(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))

    async def close(self) -> None:
        """Stop the thread; a thread that hangs is abandoned."""
        await self._worker.close(CLOSE_SECONDS)

    def _line(self, document: bytes) -> bytes:
        if self._format_line is not None:
            return f"{self._format_line(document)}\n".encode()
        return (printable_json(document.decode()).encode() if self._is_terminal else document) + b"\n"


class LineWriter:
    """Writes complete lines in chunks (blocking)."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unwritten = b""  # of a partly written line

    def write(self, lines: Iterable[bytes]) -> None:
        """Write ``lines``, each with its line feed; after an error, the same lines may be written again."""
        for chunk in chunks(lines):
            self._write_chunk(self._unwritten + chunk)

    def _write_chunk(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += self._write_some(data[written:])
        except OSError:
            if written:
                self._unwritten = unwritten_rest(data, written)
            raise
        self._unwritten = b""

    def _write_some(self, data: bytes) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # another program has made the shared file non-blocking
                _poll(self._descriptor, select.POLLOUT)


def chunks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Join lines into chunks of at most ``CHUNK_BYTES``; a longer line is a chunk of its own."""
    pending: list[bytes] = []
    size = 0
    for line in lines:
        if pending and size + len(line) > CHUNK_BYTES:
            yield b"".join(pending)
            pending, size = [], 0
        pending.append(line)
        size += len(line)
    if pending:
        yield b"".join(pending)


def unwritten_rest(data: bytes, written: int) -> bytes:
    """Return the unwritten rest of the line at ``written`` bytes of ``data``; empty at the end of a line."""
    if data[written - 1 : written] == b"\n":
        return b""
    return data[written : data.index(b"\n", written) + 1]


def translate_error(error: OSError) -> BridgeError:
    """Return the bridge's error for an OS error of the descriptor."""
    if error.errno == errno.EPIPE:
        return OutputError("standard output: the reader has disconnected")
    reason = f"standard output cannot be written: {error.strerror}"
    if error.errno in _DISK_FULL:
        return TransientError(f"{reason}; free disk space where it is redirected to")
    return OutputError(f"{reason}; redirect it to a file, a pipe or a terminal")


def _wait_for_hangup(descriptor: int, loop: asyncio.AbstractEventLoop, disconnected: asyncio.Future[None]) -> None:
    _poll(descriptor, 0)  # hang-ups and errors are always reported
    resolve_future(loop, disconnected, None)


def _poll(descriptor: int, events: int) -> None:
    poll = select.poll()
    poll.register(descriptor, events)
    poll.poll()
