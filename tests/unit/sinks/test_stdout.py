from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import pty
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bridge.core.errors import FatalError, TransientError
from bridge.core.records import Record
from sinks.stdout import LineWriter, StdoutSink, chunks, unwritten_rest
from tests.golden import Golden

pytestmark = pytest.mark.real_time

LONG_LINE = b"x" * 100_000  # more than a pipe holds


def record(data: bytes, sequence: int = 1) -> Record:
    return Record(1, sequence, "started", "", "node-1", "", "", "", "", data)


def numbered(count: int, size: int = 10) -> list[Record]:
    return [record(f"{number:0{size}}".encode(), number) for number in range(count)]


def joined_lines(batch: Sequence[Record]) -> bytes:
    return b"".join(item.data + b"\n" for item in batch)


async def read(descriptor: int, size: int) -> bytes:
    """Read exactly ``size`` bytes, off the event loop."""

    def read_all() -> bytes:
        data = b""
        while len(data) < size:
            data += os.read(descriptor, size - len(data))
        return data

    return await asyncio.to_thread(read_all)


async def start_sink(descriptor: int) -> StdoutSink:
    sink = StdoutSink(descriptor)
    await sink.start()
    return sink


# --- output ---


async def test_stdout_sink_writes_bytes_unchanged_to_pipe(pipe: tuple[int, int]) -> None:
    sink = await start_sink(pipe[1])
    data = '"größe \x7f\u009b"'.encode()
    await sink.publish([record(data)])
    assert await read(pipe[0], len(data) + 1) == data + b"\n"
    await sink.close()


async def test_stdout_sink_escapes_control_characters_on_terminal() -> None:
    terminal_end, program_end = pty.openpty()
    try:
        sink = await start_sink(program_end)
        await sink.publish([record('"größe \x7f\u009b2J"'.encode())])
        await sink.close()
        line = os.read(terminal_end, 1000).decode().rstrip("\r\n")
    finally:
        os.close(terminal_end)
        os.close(program_end)
    assert line.isprintable()
    assert json.loads(line) == "größe \x7f\u009b2J"


# --- slow readers ---


async def test_stdout_sink_keeps_event_loop_running_for_slow_reader(pipe: tuple[int, int]) -> None:
    sink = await start_sink(pipe[1])
    publishing = asyncio.create_task(sink.publish([record(LONG_LINE)]))
    await asyncio.sleep(0)
    for _ in range(100):  # the loop keeps running while the thread blocks
        await asyncio.sleep(0)
    assert not publishing.done()
    assert await read(pipe[0], len(LONG_LINE) + 1) == LONG_LINE + b"\n"
    await publishing
    await sink.close()


async def test_stdout_sink_writes_batch_once_when_publish_is_canceled(pipe: tuple[int, int]) -> None:
    sink = await start_sink(pipe[1])
    for _ in range(20):
        publishing = asyncio.create_task(sink.publish([record(LONG_LINE)]))
        await asyncio.sleep(0)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
    last = asyncio.create_task(sink.publish([record(b"last")]))
    assert await read(pipe[0], len(LONG_LINE) + 1 + 5) == LONG_LINE + b"\nlast\n"
    await last
    await sink.close()


async def test_stdout_sink_waits_for_nonblocking_descriptor(pipe: tuple[int, int]) -> None:
    fcntl.fcntl(pipe[1], fcntl.F_SETFL, os.O_NONBLOCK)
    sink = await start_sink(pipe[1])
    batch = numbered(5000, size=100)
    publishing = asyncio.create_task(sink.publish(batch))
    assert await read(pipe[0], len(joined_lines(batch))) == joined_lines(batch)
    await publishing
    await sink.close()


# --- errors ---


async def test_stdout_sink_raises_fatal_error_when_pipe_is_closed(golden: Golden) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    sink = await start_sink(write_end)
    with golden.error("sink_errors", "stdout, closed pipe", FatalError, "standard output"):
        await sink.publish([record(b"{}")])
    await sink.close()
    os.close(write_end)


async def test_stdout_sink_detects_disconnect_while_idle(golden: Golden) -> None:
    read_end, write_end = os.pipe()
    sink = await start_sink(write_end)
    waiting = asyncio.create_task(sink.wait_disconnected())
    await asyncio.sleep(0)
    assert not waiting.done()
    os.close(read_end)
    with golden.error("sink_errors", "stdout, closed pipe", FatalError, "standard output"):
        await waiting
    await sink.close()
    os.close(write_end)


@pytest.fixture
def full() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


async def test_stdout_sink_raises_transient_error_when_disk_is_full(full: int, golden: Golden) -> None:
    sink = await start_sink(full)
    with golden.error("sink_errors", "stdout, full disk", TransientError, "standard output", "No space left on device"):
        await sink.publish([record(b"{}")])
    with pytest.raises(TransientError):
        await sink.publish([record(b"{}")])
    await sink.close()


async def test_stdout_sink_ignores_error_of_canceled_publish() -> None:
    read_end, write_end = os.pipe()
    sink = await start_sink(write_end)
    publishing = asyncio.create_task(sink.publish([record(LONG_LINE)]))
    await asyncio.sleep(0)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    os.close(read_end)
    with pytest.raises(FatalError):
        await sink.publish([record(b"{}")])
    await sink.close()
    os.close(write_end)


async def test_stdout_sink_raises_bug_from_publish(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise ZeroDivisionError

    sink = await start_sink(pipe[1])
    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(ZeroDivisionError):
        await sink.publish([record(b"{}")])
    await sink.close()


async def test_stdout_sink_start_raises_when_descriptor_is_closed(tmp_path: Path, golden: Golden) -> None:
    with (tmp_path / "out").open("wb") as file:
        descriptor = file.fileno()
    with golden.error("sink_errors", "stdout, closed descriptor", FatalError, "standard output", "Bad file descriptor"):
        await StdoutSink(descriptor).start()


async def test_stdout_sink_start_raises_when_stdout_is_missing(monkeypatch: pytest.MonkeyPatch, golden: Golden) -> None:
    monkeypatch.setattr(sys, "__stdout__", None)
    with golden.error("sink_errors", "stdout, missing", FatalError, "standard output"):
        await StdoutSink().start()


async def test_stdout_sink_raises_fatal_error_for_readonly_descriptor(tmp_path: Path, golden: Golden) -> None:
    (tmp_path / "in").touch()
    with (tmp_path / "in").open("rb") as file:
        sink = await start_sink(file.fileno())
        with golden.error("sink_errors", "stdout, read only", FatalError, "standard output"):
            await sink.publish([record(b"{}")])
        await sink.close()


# --- complete lines ---


class FakeDisk:
    """Simulate a file system with short writes and a full disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, write_sizes: list[int]) -> None:
        self.written = b""
        self._write_sizes = write_sizes
        monkeypatch.setattr(os, "write", self._write)

    def _write(self, _: int, data: bytes) -> int:
        size = self._write_sizes.pop(0) if self._write_sizes else len(data)
        if not size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written += data[:size]
        return min(size, len(data))


def test_line_writer_continues_after_short_write(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FakeDisk(monkeypatch, [1, 2, 3, 1])
    LineWriter(0).write([b"first\n", b"second\n"])
    assert disk.written == b"first\nsecond\n"


@pytest.mark.parametrize(
    ("write_sizes", "written"),
    [
        ([0], b"first\nsecond\n"),
        ([3, 0], b"first\nfirst\nsecond\n"),
        ([6, 0], b"first\nfirst\nsecond\n"),
        ([9, 0], b"first\nsecond\nfirst\nsecond\n"),
        ([3, 0, 1, 0, 0], b"first\nfirst\nsecond\n"),
        ([3, 0, 4, 0], b"first\nfirst\nfirst\nsecond\n"),
        ([13], b"first\nsecond\n"),
    ],
)
def test_line_writer_writes_complete_lines_after_failed_write(
    write_sizes: list[int], written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = write_sizes.count(0)
    disk = FakeDisk(monkeypatch, write_sizes)
    writer = LineWriter(0)
    for _ in range(failures):
        with pytest.raises(OSError, match="No space"):
            writer.write([b"first\n", b"second\n"])
    writer.write([b"first\n", b"second\n"])
    assert disk.written == written


def test_stdout_chunks_hold_complete_lines_up_to_pipe_size() -> None:
    lines = [b"x" * size + b"\n" for size in (1000, 3000, 100, 5000, 4095, 1)]
    assert [len(chunk) for chunk in chunks(lines)] == [4002, 101, 5001, 4096, 2]
    assert b"".join(chunks(lines)) == b"".join(lines)
    assert list(chunks([])) == []


@pytest.mark.parametrize(("written", "rest"), [(1, b"\n"), (2, b""), (3, b"b\n"), (4, b"\n"), (5, b"")])
def test_stdout_unwritten_rest_returns_rest_of_line(written: int, rest: bytes) -> None:
    assert unwritten_rest(b"a\nbb\n", written) == rest
