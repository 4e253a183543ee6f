from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bridge.clock import SystemClock
from bridge.core.errors import FatalError, TransientError
from config.sinks.local import FileSettings
from sinks import file
from sinks.file import FileInUseError, FileSink, RotatedFile
from tests.golden import Golden
from tests.sample_records import control_record, record, records

pytestmark = pytest.mark.real_time


@contextlib.asynccontextmanager
async def make_sink(path: Path, **options: Any) -> AsyncIterator[FileSink]:
    sink = FileSink(FileSettings(type="file", path=str(path), **options), SystemClock())
    try:
        await sink.start()
        yield sink
    finally:
        await sink.close()
        await sink.close()


def lines(*paths: Path) -> list[bytes]:
    return [line for path in paths for line in path.read_bytes().splitlines()]


async def test_file_sink_appends_to_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "events"
    for number in (1, 2):
        async with make_sink(path) as sink:
            await sink.publish([record(number)])
    assert lines(path) == [record(1).data, record(2).data]
    assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0


async def test_file_sink_omits_control_records_for_whalewatcher(tmp_path: Path) -> None:
    async with make_sink(tmp_path / "events", encoding="whalewatcher") as sink:
        await sink.publish([control_record(1, "snapshot_started")])
        await sink.publish([control_record(1, "snapshot_started"), record(2)])
    (line,) = lines(tmp_path / "events")
    assert line.startswith(b'{"Timestamp":')


# --- rotation ---


async def test_file_sink_rotates_full_file_and_removes_oldest(tmp_path: Path) -> None:
    path, published = tmp_path / "events", records(60, size=1000)
    async with make_sink(path, max_bytes=4096, max_files=3) as sink:
        await sink.publish(published[:30])
        for item in published[30:]:
            await sink.publish([item])
    kept = [tmp_path / f"events.{number}" for number in (3, 2, 1)]
    assert sorted(os.listdir(tmp_path)) == ["events", "events.1", "events.2", "events.3"]
    assert all(path.stat().st_size <= 4096 for path in kept)
    assert lines(*kept, path) == [item.data for item in published[-16:]]


async def test_file_sink_keeps_single_file_when_max_files_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "events"
    async with make_sink(path, max_bytes=4096, max_files=0) as sink:
        await sink.publish(records(20, size=1000))
    assert os.listdir(tmp_path) == ["events"]
    assert lines(path) == [item.data for item in records(20, size=1000)[-4:]]


async def test_file_sink_writes_oversized_line_to_separate_file(tmp_path: Path) -> None:
    published = [record(1), record(2, size=10_000), record(3)]
    async with make_sink(tmp_path / "events", max_bytes=4096) as sink:
        await sink.publish(published)
    assert [lines(tmp_path / name) for name in ("events.2", "events.1", "events")] == [
        [item.data] for item in published
    ]


@given(st.lists(st.lists(st.integers(1, 3000), max_size=6), max_size=10))
def test_rotated_file_keeps_complete_lines_in_order(batches: list[list[int]]) -> None:
    with TemporaryDirectory() as name:
        directory = Path(name)
        rotated = RotatedFile(str(directory / "f"), 4096, 100)
        written = []
        for number, batch in enumerate(batches):
            content = [b'{"' + b"%d" % number + b"x" * size + b"\n" for size in batch]
            rotated.append(content)
            written += content
        rotated.close()
        names = sorted(directory.iterdir(), key=lambda path: -int(path.suffix[1:] or 0))
        assert b"".join(path.read_bytes() for path in names) == b"".join(written)


@pytest.mark.parametrize("change", ["moved", "removed", "replaced"])
async def test_file_sink_reopens_path_when_file_is_moved(change: str, tmp_path: Path) -> None:
    path = tmp_path / "events"
    async with make_sink(path) as sink:
        await sink.publish([record(1)])
        if change == "removed":
            path.unlink()
        else:
            path.rename(tmp_path / "moved")
        if change == "replaced":
            path.touch()
        await sink.publish([record(2)])
    assert lines(path) == [record(2).data]


# --- errors ---


@pytest.mark.parametrize("cut", [1, 2, 30])
async def test_fault_45_last_line_is_incomplete(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(record(1).data + b"\n" + record(2).data[:cut])
    async with make_sink(path) as sink:
        await sink.publish([record(2)])
    assert lines(path) == [record(1).data, record(2).data]


@pytest.mark.parametrize(
    ("damage", "saved"),
    [
        (b"x", b"x"),
        (b"\0" * 300, None),
        (b"\0" * 300 + b"x", b"\0" * 300 + b"x"),
        (b"not a record" * 300_000, b"not a record" * 300_000),
        (b"\xff\xfe", b"\xff\xfe"),
        (b'{"version":1,"ty\0\0\0', None),
    ],
    ids=["byte", "zeros", "zeros and byte", "megabytes", "binary", "record and zeros"],
)
@pytest.mark.parametrize("while_open", [False, True])
async def test_fault_45_end_of_file_is_foreign(
    damage: bytes, saved: bytes | None, while_open: bool, tmp_path: Path
) -> None:
    path = tmp_path / "events"

    def append_damage() -> None:
        with path.open("ab") as file:
            file.write(damage)

    async with make_sink(path) as sink:
        await sink.publish([record(1)])
        if while_open:
            append_damage()
            await sink.publish([record(2)])
    if not while_open:
        append_damage()
        with capture_logs() as logs:
            async with make_sink(path) as sink:
                await sink.publish([record(2)])
        assert [(line["event"], line["log_level"], line["bytes"]) for line in logs] == [
            ("file_end_removed", "warning", len(damage))
        ]
    assert lines(path) == [record(1).data, record(2).data]
    assert [(tmp_path / name).read_bytes() for name in os.listdir(tmp_path) if name != "events"] == (
        [] if saved is None else [saved]
    )


async def test_file_sink_keeps_foreign_end_while_it_cannot_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events"
    path.write_bytes(record(1).data + b"\nforeign")

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    sink = FileSink(FileSettings(type="file", path=str(path)), SystemClock())
    with pytest.raises(TransientError, match="free disk space"):
        await sink.start()
    monkeypatch.undo()
    await sink.close()
    assert path.read_bytes() == record(1).data + b"\nforeign"
    assert os.listdir(tmp_path) == ["events"]


async def test_file_sink_leaves_foreign_file_unchanged(tmp_path: Path, golden: Golden) -> None:
    path = tmp_path / "events"
    path.write_bytes(b"root:x:0:0")
    with golden.error("sink_errors", "file, other content", FatalError, path):
        async with make_sink(path):
            pass
    assert path.read_bytes() == b"root:x:0:0"


async def test_file_sink_start_raises_when_file_is_locked(tmp_path: Path, golden: Golden) -> None:
    path = tmp_path / "events"
    program = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout
    await other.stdout.readline()
    with golden.error("sink_errors", "file, in use", FileInUseError, path):
        async with make_sink(path):
            pass
    await other.communicate(b"\n")
    async with make_sink(path) as sink:
        await sink.publish([record(1)])


@pytest.mark.parametrize(
    ("name", "error", "named"),
    [
        ("directory", FatalError, "Is a directory"),
        ("pipe", FatalError, "stdout:"),
        ("missing/events", TransientError, "No such file or directory"),
    ],
)
async def test_file_sink_start_raises_when_path_is_not_a_file(
    name: str, error: type[Exception], named: str, tmp_path: Path, golden: Golden
) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with golden.error("sink_errors", f"file, {name}", error, tmp_path / name, named):
        async with make_sink(tmp_path / name):
            pass


class FakeDisk:
    """Replace disk writes with writes that a test can limit or make fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free_bytes = 1 << 30
        self.syncs = True
        self._pwrite, self._fdatasync = os.pwrite, os.fdatasync
        monkeypatch.setattr(os, "pwrite", self._write)
        monkeypatch.setattr(os, "fdatasync", self._sync)

    def _write(self, descriptor: int, data: bytes, offset: int) -> int:
        if not self.free_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._pwrite(descriptor, data[: min(self.free_bytes, 700)], offset)
        self.free_bytes -= written
        return written

    def _sync(self, descriptor: int) -> None:
        if not self.syncs:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fdatasync(descriptor)


@pytest.mark.parametrize("free_bytes", [0, 1, 699, 700, 2000])
async def test_file_sink_leaves_no_partial_line_when_disk_is_full(
    free_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Golden
) -> None:
    disk, path, published = FakeDisk(monkeypatch), tmp_path / "events", records(10, size=800)
    async with make_sink(path) as sink:
        await sink.publish(published[:2])
        disk.free_bytes = free_bytes
        for _ in range(2):
            with golden.error("sink_errors", "file, full disk", TransientError, path, "No space left on device"):
                await sink.publish(published[2:])
            assert lines(path) == [item.data for item in published[:2]]
        disk.free_bytes = 1 << 30
        await sink.publish(published[2:])
    assert lines(path) == [item.data for item in published]


async def test_file_sink_publish_raises_when_sync_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Golden
) -> None:
    disk, path = FakeDisk(monkeypatch), tmp_path / "events"
    async with make_sink(path) as sink:
        disk.syncs = False
        with golden.error("sink_errors", "file, broken disk", TransientError, path, "Input/output error"):
            await sink.publish([record(1)])
        disk.syncs = True
        await sink.publish([record(1)])
    assert lines(path) == [record(1).data]


async def test_file_sink_close_returns_when_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "CLOSE_SECONDS", 0.01)
    read_end, write_end = os.pipe()
    monkeypatch.setattr(os, "fdatasync", lambda _: os.read(read_end, 1))
    sink = FileSink(FileSettings(type="file", path=str(tmp_path / "events")), SystemClock())
    await sink.start()
    publishing = asyncio.create_task(sink.publish([record(1)]))
    await asyncio.sleep(0.05)
    await sink.close()
    assert not publishing.done()
    os.write(write_end, b"x")
    await publishing
    os.close(read_end)
    os.close(write_end)
