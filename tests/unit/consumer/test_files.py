# ruff: noqa: ASYNC240 (blocking file access is harmless in these tests)

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.clock import SystemClock
from bridge.consumer.files import MAX_LINE_BYTES, FileReader, LineSplitter, StdinReader
from bridge.consumer.record_reader import StartPosition
from bridge.core.errors import FatalError, NotFoundError
from sinks.file import RotatedFile
from tests.golden import Golden

pytestmark = pytest.mark.real_time


class Writer(SystemClock):
    """A file that a test writes between polls; the reader's clock sleeps until the test continues."""

    def __init__(self, path: Path, start_position: StartPosition = "beginning") -> None:
        self.path = path
        self.reader = FileReader(str(path), self, start_position=start_position, follow=True)
        self.received: list[bytes] = []
        self._asleep, self._awake = asyncio.Event(), asyncio.Event()

    async def sleep(self, _: float) -> None:
        self._asleep.set()
        await self._awake.wait()
        self._awake.clear()

    async def next_data(self) -> list[bytes]:
        """Let the reader poll once, and return the lines that the poll returned."""
        self._asleep.clear()
        self._awake.set()
        await self._asleep.wait()
        received, self.received = self.received, []
        return received

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Writer]:
        async def follow() -> None:
            async with aclosing(self.reader.batches()) as batches:
                async for batch in batches:
                    self.received += [message.data for message in batch]

        task = asyncio.ensure_future(follow())
        await self._asleep.wait()
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait({task})


async def read_all(path: Path, start_position: StartPosition = "beginning") -> list[bytes]:
    writer = Writer(path)
    reader = FileReader(str(path), writer, start_position=start_position, follow=False)
    return [message.data async for batch in reader.batches() for message in batch]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


async def test_file_reader_says_that_empty_file_is_open(path: Path) -> None:
    """Readers that follow would otherwise show nothing until the first record."""
    path.touch()
    async with aclosing(
        FileReader(str(path), Writer(path), start_position="beginning", follow=True).batches()
    ) as batches:
        assert not await anext(batches)


async def test_file_reader_reads_rotated_files_first(path: Path) -> None:
    path.write_bytes(b"five\nsix")
    for number, text in ((1, b"four\n"), (2, b"three\n"), (10, b"one\ntwo\n")):
        path.with_name(f"events.jsonl.{number}").write_bytes(text)
    path.with_name("events.jsonl.gz").write_bytes(b"no\n")
    path.with_name("other.jsonl.1").write_bytes(b"no\n")
    assert await read_all(path) == [b"one", b"two", b"three", b"four", b"five", b"six"]
    assert await read_all(path, "end") == []
    os.utime(path.with_name("events.jsonl.10"), (1000, 1000))
    assert await read_all(path, datetime(2020, 1, 1, tzinfo=UTC)) == [b"three", b"four", b"five", b"six"]
    assert await read_all(path, datetime(2999, 1, 1, tzinfo=UTC)) == [b"five", b"six"]


async def test_file_reader_returns_only_complete_lines(path: Path) -> None:
    path.write_bytes(b"one\ntw")
    async with Writer(path).read() as writer:
        assert await writer.next_data() == [b"one"]
        with path.open("ab") as file:
            file.write(b"o\nthree\n")
        assert await writer.next_data() == [b"two", b"three"]


async def test_file_reader_skips_partial_line_when_starting_at_end(path: Path) -> None:
    path.write_bytes(b"one\ntw")
    async with Writer(path, "end").read() as writer:
        with path.open("ab") as file:
            file.write(b"o\nthree\n")
        assert await writer.next_data() == [b"three"]


@pytest.mark.parametrize("keep", [0, 1, 3])
@pytest.mark.parametrize("at_once", [1, 2, 5])
async def test_file_reader_follows_rotation(path: Path, keep: int, at_once: int) -> None:
    """Rotate with the file sink's code, with one line per file."""
    file = RotatedFile(str(path), 1, keep)
    file.append([b"first\n"])
    async with Writer(path).read() as writer:
        assert writer.received == [b"first"]
        writer.received.clear()
        for first in range(0, 20, at_once):
            expected = [b"%d" % number for number in range(first, first + at_once)]
            file.append([line + b"\n" for line in expected])
            assert await writer.next_data() == expected[-keep - 1 :]
    file.close()


async def test_file_reader_reads_rest_of_moved_file(path: Path) -> None:
    """Move the file as logrotate does, to an unrelated name; the new file appears later."""
    path.write_bytes(b"one\n")
    async with Writer(path).read() as writer:
        await writer.next_data()
        with path.open("ab") as file:
            path.rename(path.with_name("elsewhere"))
            assert await writer.next_data() == []
            file.write(b"two\nthr")
        path.write_bytes(b"four\n")
        assert await writer.next_data() == [b"two", b"thr", b"four"]


async def test_file_reader_restarts_when_file_is_truncated(path: Path) -> None:
    path.write_bytes(b"one\ntw")
    async with Writer(path).read() as writer:
        await writer.next_data()
        path.write_bytes(b"1\n")
        assert await writer.next_data() == [b"1"]


@pytest.mark.parametrize("begin", ["beginning", "end"])
async def test_file_reader_raises_when_path_is_missing_or_not_a_file(
    tmp_path: Path, begin: StartPosition, golden: Golden
) -> None:
    with golden.error("tail_errors", "missing file", NotFoundError, tmp_path / "nothing"):
        await read_all(tmp_path / "nothing", begin)
    with golden.error("tail_errors", "missing directory", NotFoundError, tmp_path / "nowhere"):
        await read_all(tmp_path / "nowhere" / "nothing", begin)
    with golden.error("tail_errors", "a directory", FatalError, tmp_path):
        await read_all(tmp_path, begin)
    os.mkfifo(tmp_path / "pipe")
    with golden.error("tail_errors", "a pipe", FatalError, tmp_path / "pipe"):
        await read_all(tmp_path / "pipe", begin)


@pytest.mark.parametrize("blocking", [True, False])
async def test_stdin_reader_returns_lines_as_pipe_delivers(blocking: bool) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, blocking)
    os.write(write_end, b"one\ntw")
    batches = StdinReader(read_end).batches()
    assert [message.data for message in await anext(batches)] == [b"one"]
    os.write(write_end, b"o\nthree")
    assert [message.data for message in await anext(batches)] == [b"two"]
    os.close(write_end)
    assert [message.data for message in await anext(batches)] == [b"three"]
    with pytest.raises(StopAsyncIteration):
        await anext(batches)
    os.close(read_end)


async def test_stdin_reader_raises_when_stdin_is_closed(golden: Golden) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    os.close(write_end)
    with golden.error("tail_errors", "closed standard input", FatalError, "standard input", "Bad file descriptor"):
        await anext(StdinReader(read_end).batches())


def split_all(lines: LineSplitter, *chunks: bytes) -> list[bytes]:
    return [message.data for chunk in chunks for message in lines.split(chunk)]


@given(st.lists(st.binary(max_size=6)), st.integers(1, 5))
def test_line_splitter_returns_complete_lines_for_any_chunks(expected: list[bytes], size: int) -> None:
    expected = [line.replace(b"\n", b"") for line in expected]
    stream = b"".join(line + b"\n" for line in expected)
    chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
    lines = LineSplitter("here")
    assert split_all(lines, *chunks) == [line for line in expected if line.strip()]
    assert lines.finish() == []


def test_line_splitter_returns_unterminated_line_at_end() -> None:
    lines = LineSplitter("here")
    assert split_all(lines, b"one\n\ntwo") == [b"one"]
    assert [(message.data, message.location, message.number) for message in lines.finish()] == [(b"two", "here", 2)]
    assert lines.finish() == []


def test_line_splitter_skips_rest_of_line_when_started_inside() -> None:
    lines = LineSplitter("here", within_line=True)
    assert split_all(lines, b"rest ", b"of one\ntwo\n") == [b"two"]
    lines = LineSplitter("here", within_line=True)
    assert split_all(lines, b"rest") == []
    assert lines.finish() == []


def test_line_splitter_truncates_overlong_line() -> None:
    lines = LineSplitter("here")
    assert split_all(lines, b"x" * MAX_LINE_BYTES) == []
    (truncated,) = split_all(lines, b"xx")
    assert len(truncated) < 10_000
    assert split_all(lines, b"x" * 100, b"xx\nnext\n") == [b"next"]
