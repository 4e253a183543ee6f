"""Disks that are full, read-only, or fail to sync: real ones."""

# ruff: noqa: ASYNC110, ASYNC221 (a test has nothing else to do meanwhile)

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest

from bridge.clock import SystemClock
from bridge.core.errors import StateError
from bridge.outbox.sqlite import SqliteOutbox
from tests.bridge_process import BridgeProcess, check_stream, transitions
from tests.contract.test_outbox import WIDE, read_all
from tests.records import Recorder, sequences
from tests.testbed.containerd import Containerd

SECCOMP_LACKS = 77


@contextmanager
def small_disk(path: Path, size: str = "1m") -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root (sudo make test)")
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as path:
        yield path


def fill_up(disk: Path) -> Path:
    """Leave no room on a disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for piece in (b"x" * 65536, b"x"):
            while _written(file, piece):
                pass
    return filler


def _written(file: FileIO, piece: bytes) -> int:
    try:
        return file.write(piece)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return 0
        raise


async def until(fits: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not fits():
            await asyncio.sleep(0.01)


async def test_a_full_disk_is_waited_for_and_nothing_is_lost(disk: Path) -> None:
    recorder = Recorder()
    outbox = await SqliteOutbox.open(disk / "state", ["s"], SystemClock(), WIDE)
    await outbox.append(recorder.starts(5))
    filler = fill_up(disk)
    appending = asyncio.create_task(outbox.append(recorder.starts(300, size=500), {"key": b"value"}))
    await until(lambda: outbox.trouble)
    assert outbox.trouble == f"{disk}/state/outbox.db: database or disk is full; make room on its disk"
    assert sequences(list(await outbox.read("s", 1000))) == [1, 2, 3, 4, 5]
    filler.unlink()
    await appending
    assert outbox.trouble is None
    assert sequences(await read_all(outbox)) == list(range(1, 306))
    await outbox.close()


async def test_a_disk_that_is_full_at_the_start_is_told(disk: Path) -> None:
    (disk / "state").mkdir()
    fill_up(disk)
    with pytest.raises(StateError, match=r"disk/state.*make room on its disk"):
        await SqliteOutbox.open(disk / "state", ["s"], SystemClock(), WIDE)


async def test_a_read_only_disk_is_told_at_the_start(disk: Path) -> None:
    outbox = await SqliteOutbox.open(disk / "state", ["s"], SystemClock(), WIDE)
    await outbox.close()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(
        StateError, match=r"disk/state: Read-only file system; name a directory that whalebridge may write"
    ):
        await SqliteOutbox.open(disk / "state", ["s"], SystemClock(), WIDE)


# A filter of the kernel's that has fsync and fdatasync fail with EIO, in this thread and those that it starts later.
FAILING_FSYNC = """
import asyncio, ctypes, errno, os, struct, sys
from pathlib import Path
from bridge.clock import SystemClock
from bridge.outbox.sqlite import SqliteOutbox
from tests.contract.test_outbox import WIDE
from tests.records import Recorder

LOAD, EQUAL, RETURN, ALLOW, FAIL = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000 | errno.EIO
NUMBERS = {"x86_64": (74, 75), "aarch64": (82, 83)}.get(os.uname().machine)

def fail_fsync():
    steps = [(LOAD, 0, 0, 0), (EQUAL, 1, 0, NUMBERS[0]), (EQUAL, 0, 1, NUMBERS[1]), (RETURN, 0, 0, FAIL),
             (RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if not NUMBERS or libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
        sys.exit(77)

async def main():
    outbox = await SqliteOutbox.open(Path(sys.argv[1]), ["s"], SystemClock(), WIDE)
    await outbox.append(Recorder().starts(3))
    await outbox._store._worker.run(fail_fsync)  # in the thread that writes
    appending = asyncio.create_task(outbox.append(Recorder().starts(9)[3:]))
    while not outbox.trouble:
        await asyncio.sleep(0.05)
    await asyncio.sleep(1)
    print(appending.done(), outbox.depth("s"), outbox.trouble, flush=True)
    os._exit(0)

asyncio.run(main())
"""


async def test_a_sync_that_fails_is_never_taken_for_done(tmp_path: Path) -> None:
    state = tmp_path / "state"
    done = subprocess.run(
        [sys.executable, "-c", FAILING_FSYNC, str(state)], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode == SECCOMP_LACKS:
        pytest.skip("the kernel lets nobody filter system calls here")
    last = done.stdout.splitlines()[-1]
    assert last == f"False 3 {state}/outbox.db: disk I/O error; look after its disk", done.stderr
    outbox = await SqliteOutbox.open(state, ["s"], SystemClock(), WIDE)
    records = await read_all(outbox)
    assert sequences(records) in ([1, 2, 3], list(range(1, 10))), "all or nothing of what nobody knows of"
    await outbox.close()


def test_a_disk_that_filled_up_before_the_start_is_waited_for_until_a_signal(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        state = disk / "state"
        with BridgeProcess("/nowhere.sock", tmp_path, state_dir=state) as bridge:
            bridge.wait_said("containerd_unavailable")
        fill_up(disk)
        with BridgeProcess("/nowhere.sock", tmp_path, state_dir=state) as bridge:
            bridge.wait_said("outbox_write_failed")
            bridge.process.send_signal(signal.SIGTERM)
            assert bridge.process.wait(10) == 0


def test_the_bridge_goes_on_through_a_full_disk(engine: Containerd, tmp_path: Path) -> None:
    """It says so, keeps what containerd tells, and tells it in order when there is room again."""
    ids = [f"disk{number}-{os.getpid()}" for number in range(6)]
    with small_disk(tmp_path / "disk", "4m") as disk:
        with BridgeProcess(engine.address, tmp_path, "--state-dir", f"{disk}/state") as bridge:
            bridge.wait_live()
            engine.run(ids[0], "sleep", "86400")
            bridge.wait(lambda records: len(mine(records)) == 1, "the first start")
            filler = fill_up(disk)
            for id_ in ids[1:]:
                engine.run(id_, "sleep", "86400", labels={"filler": "x" * 2000})
            bridge.wait(lambda _: "outbox_write_failed" in bridge.log.read_text(), "an alarm")
            for id_ in ids:
                engine.ctr("task", "kill", "--signal", "SIGKILL", id_)
            filler.unlink()
            records = bridge.wait(lambda records: len(mine(records)) == 12, "all that happened meanwhile")
            assert "outbox_recovered" in bridge.log.read_text()
        check_stream(records)
        assert {each["origin"] for each in mine(records)} == {"live"}
        for id_ in ids:
            engine.ctr("task", "rm", id_, check=False)
            engine.ctr("container", "rm", id_, check=False)


def mine(records: list[dict[str, object]]) -> list[dict[str, object]]:
    return [each for each in transitions(records) if str(each["id"]).startswith("disk")]
