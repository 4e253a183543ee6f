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
from bridge.core.events import Record
from sinks import stdout
from sinks.stdout import LineWriter, StdoutSink, pieces, rest_of_line
from tests.golden import Golden

LONG = b"x" * 100_000  # more than a pipe holds


def record(data: bytes, sequence: int = 1) -> Record:
    return Record(1, sequence, "started", "", "node-1", "", "", "", "", data)


def numbered(count: int, size: int = 10) -> list[Record]:
    return [record(f"{number:0{size}}".encode(), number) for number in range(count)]


def lines_of(batch: Sequence[Record]) -> bytes:
    return b"".join(each.data + b"\n" for each in batch)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def read(descriptor: int, size: int) -> bytes:
    """Read exactly ``size`` bytes, off the event loop."""

    def all_of_it() -> bytes:
        data = b""
        while len(data) < size:
            data += os.read(descriptor, size - len(data))
        return data

    return await asyncio.to_thread(all_of_it)


async def started(descriptor: int) -> StdoutSink:
    sink = StdoutSink(descriptor)
    await sink.start()
    return sink


# --- what is written ---


async def test_records_are_written_as_lines_in_order(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        sink = await started(file.fileno())
        await sink.publish(numbered(1000))
        await sink.publish([])
        await sink.publish([record(b'{"last": true}')])
        await sink.close()
    assert (tmp_path / "out").read_bytes() == lines_of(numbered(1000)) + b'{"last": true}\n'


async def test_bytes_are_not_touched_where_no_terminal_is(pipe: tuple[int, int]) -> None:
    sink = await started(pipe[1])
    data = '"größe \x7f\u009b"'.encode()
    await sink.publish([record(data)])
    assert await read(pipe[0], len(data) + 1) == data + b"\n"
    await sink.close()


async def test_a_terminal_gets_the_same_document_with_nothing_to_obey() -> None:
    ours, theirs = pty.openpty()
    try:
        sink = await started(theirs)
        await sink.publish([record('"größe \x7f\u009b2J"'.encode())])
        await sink.close()
        line = os.read(ours, 1000).decode().rstrip("\r\n")
    finally:
        os.close(ours)
        os.close(theirs)
    assert line.isprintable()
    assert json.loads(line) == "größe \x7f\u009b2J"


# --- slow readers ---


async def test_a_slow_reader_does_not_block_the_event_loop(pipe: tuple[int, int]) -> None:
    sink = await started(pipe[1])
    publishing = asyncio.create_task(sink.publish([record(LONG)]))
    await asyncio.sleep(0)
    for _ in range(100):  # the loop goes on; the thread is stuck, or will be
        await asyncio.sleep(0)
    assert not publishing.done()
    assert await read(pipe[0], len(LONG) + 1) == LONG + b"\n"
    await publishing
    await sink.close()


async def test_a_publish_given_up_again_and_again_is_written_once_and_the_next_one_after_it(
    pipe: tuple[int, int],
) -> None:
    sink = await started(pipe[1])
    for _ in range(20):
        publishing = asyncio.create_task(sink.publish([record(LONG)]))
        await asyncio.sleep(0)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
    last = asyncio.create_task(sink.publish([record(b"last")]))
    assert await read(pipe[0], len(LONG) + 1 + 5) == LONG + b"\nlast\n"
    await last
    await sink.close()


async def test_closing_is_bounded_where_the_reader_sleeps(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdout, "CLOSE_SECONDS", 0.01)
    sink = await started(pipe[1])
    publishing = asyncio.create_task(sink.publish([record(LONG)]))
    await asyncio.sleep(0)
    await sink.close()
    await sink.close()
    assert not publishing.done()
    await read(pipe[0], len(LONG) + 1)  # so that the thread ends before its descriptor does
    await publishing


async def test_a_non_blocking_descriptor_is_waited_for(pipe: tuple[int, int]) -> None:
    fcntl.fcntl(pipe[1], fcntl.F_SETFL, os.O_NONBLOCK)
    sink = await started(pipe[1])
    batch = numbered(5000, size=100)
    publishing = asyncio.create_task(sink.publish(batch))
    assert await read(pipe[0], len(lines_of(batch))) == lines_of(batch)
    await publishing
    await sink.close()


# --- what goes wrong ---


async def test_a_closed_pipe_is_fatal_with_a_plain_text(golden: Golden) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    sink = await started(theirs)
    with golden.error("sink_errors", "stdout, closed pipe", FatalError, "standard output"):
        await sink.publish([record(b"{}")])
    await sink.close()
    os.close(theirs)


async def test_a_reader_that_goes_is_noticed_without_anything_to_write(golden: Golden) -> None:
    ours, theirs = os.pipe()
    sink = await started(theirs)
    waiting = asyncio.create_task(sink.reader_gone())
    await asyncio.sleep(0)
    assert not waiting.done()
    os.close(ours)
    with golden.error("sink_errors", "stdout, closed pipe", FatalError, "standard output"):
        await waiting
    await sink.close()
    os.close(theirs)


@pytest.fixture
def full() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


async def test_a_full_disk_is_transient_and_says_what_to_do(full: int, golden: Golden) -> None:
    sink = await started(full)
    with golden.error("sink_errors", "stdout, full disk", TransientError, "standard output", "No space left on device"):
        await sink.publish([record(b"{}")])
    with pytest.raises(TransientError):
        await sink.publish([record(b"{}")])
    await sink.close()


async def test_an_error_of_a_publish_that_was_given_up_disturbs_nobody() -> None:
    ours, theirs = os.pipe()
    sink = await started(theirs)
    publishing = asyncio.create_task(sink.publish([record(LONG)]))
    await asyncio.sleep(0)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    os.close(ours)
    with pytest.raises(FatalError):
        await sink.publish([record(b"{}")])
    await sink.close()
    os.close(theirs)


async def test_a_bug_is_told_to_who_waits(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise ZeroDivisionError

    sink = await started(pipe[1])
    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(ZeroDivisionError):
        await sink.publish([record(b"{}")])
    await sink.close()


async def test_a_closed_descriptor_is_refused_at_the_start(tmp_path: Path, golden: Golden) -> None:
    with (tmp_path / "out").open("wb") as file:
        descriptor = file.fileno()
    with golden.error("sink_errors", "stdout, closed descriptor", FatalError, "standard output", "Bad file descriptor"):
        await StdoutSink(descriptor).start()


async def test_a_standard_output_that_was_never_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, golden: Golden
) -> None:
    monkeypatch.setattr(sys, "__stdout__", None)
    with golden.error("sink_errors", "stdout, never there", FatalError, "standard output"):
        await StdoutSink().start()


async def test_a_descriptor_that_only_reads_is_fatal(tmp_path: Path, golden: Golden) -> None:
    (tmp_path / "in").touch()
    with (tmp_path / "in").open("rb") as file:
        sink = await started(file.fileno())
        with golden.error("sink_errors", "stdout, read only", FatalError, "standard output"):
            await sink.publish([record(b"{}")])
        await sink.close()


# --- whole lines ---


class Disk:
    """Stands for a file system that takes a few bytes at a time, and is full at times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: list[int]) -> None:
        self.written = b""
        self._room = room
        monkeypatch.setattr(os, "write", self._write)

    def _write(self, _: int, data: bytes) -> int:
        room = self._room.pop(0) if self._room else len(data)
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written += data[:room]
        return min(room, len(data))


def test_short_writes_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, [1, 2, 3, 1])
    LineWriter(0).write([b"first\n", b"second\n"])
    assert disk.written == b"first\nsecond\n"


@pytest.mark.parametrize(
    ("room", "written"),
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
def test_lines_are_whole_wherever_writing_fails(
    room: list[int], written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = room.count(0)
    disk = Disk(monkeypatch, room)
    writer = LineWriter(0)
    for _ in range(failures):
        with pytest.raises(OSError, match="No space"):
            writer.write([b"first\n", b"second\n"])
    writer.write([b"first\n", b"second\n"])
    assert disk.written == written


def test_pieces_are_whole_lines_that_a_pipe_takes_whole() -> None:
    lines = [b"x" * size + b"\n" for size in (1000, 3000, 100, 5000, 4095, 1)]
    assert [len(piece) for piece in pieces(lines)] == [4002, 101, 5001, 4096, 2]
    assert b"".join(pieces(lines)) == b"".join(lines)
    assert list(pieces([])) == []


@pytest.mark.parametrize(("written", "rest"), [(1, b"\n"), (2, b""), (3, b"b\n"), (4, b"\n"), (5, b"")])
def test_the_rest_of_a_line(written: int, rest: bytes) -> None:
    assert rest_of_line(b"a\nbb\n", written) == rest
