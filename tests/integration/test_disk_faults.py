"""Real disks that are full, read-only, or fail to sync."""

# ruff: noqa: ASYNC221 (the tests have no concurrent work)

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest

from bridge.core.errors import StateError
from tests.bridge_process import BridgeProcess, check_stream, transitions
from tests.contract.test_outbox import read_all
from tests.eventually import eventually
from tests.integration.engines import one_engine
from tests.integration.http_client import LOCAL, HttpClient, assert_not_ready
from tests.naming import raises_naming
from tests.outboxes import open_outbox
from tests.records import sequences
from tests.testbed.containerd import Containerd

SECCOMP_UNAVAILABLE = 77


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
    """Fill a disk completely."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for chunk in (b"x" * 65536, b"x"):
            while _write_unless_full(file, chunk):
                pass
    return filler


def _write_unless_full(file: FileIO, chunk: bytes) -> int:
    try:
        return file.write(chunk)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return 0
        raise


async def test_fault_20_disk_is_read_only(disk: Path) -> None:
    async with open_outbox(disk / "state"):
        pass
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with raises_naming(StateError, disk / "state", "Read-only file system"):
        async with open_outbox(disk / "state"):
            pass


# A seccomp filter that makes fsync and fdatasync fail with EIO in this thread and the threads that it starts later.
FAILING_FSYNC = """
import asyncio, ctypes, errno, os, struct, sys
from pathlib import Path
from bridge.clock import SystemClock
from tests.outboxes import open_outbox
from tests.records import RecordFactory

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
    async with open_outbox(Path(sys.argv[1])) as outbox:
        await outbox.append(RecordFactory().started_records(3))
        await outbox._worker._worker.run(fail_fsync)  # in the thread that writes
        appending = asyncio.create_task(outbox.append(RecordFactory().started_records(9)[3:]))
        while not outbox.last_error:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        print(appending.done(), outbox.depth("s"), outbox.last_error, flush=True)
        os._exit(0)

asyncio.run(main())
"""


async def test_fault_21_fsync_fails(tmp_path: Path) -> None:
    state = tmp_path / "state"
    done = subprocess.run(
        [sys.executable, "-c", FAILING_FSYNC, str(state)], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode == SECCOMP_UNAVAILABLE:
        pytest.skip("seccomp filters are not available")
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"False 3 {state}/outbox.db: disk I/O error"), done.stderr
    async with open_outbox(state) as outbox:
        records = await read_all(outbox)
    assert sequences(records) in ([1, 2, 3], list(range(1, 10))), (
        "the unacknowledged batch is stored completely or not at all"
    )


def test_bridge_stops_on_signal_when_disk_is_full_at_start(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        state = disk / "state"
        with BridgeProcess("/nowhere.sock", tmp_path, state_dir=state) as bridge:
            bridge.wait_logged("containerd_unavailable")
        fill_up(disk)
        with BridgeProcess("/nowhere.sock", tmp_path, state_dir=state) as bridge:
            bridge.wait_logged("outbox_write_failed")
            assert bridge.stop() < 20  # the deadline is 10 s


@one_engine
def test_fault_20_disk_is_full(engine: Containerd, tmp_path: Path) -> None:
    """The bridge is not ready, buffers the events, and publishes them in order when there is space again."""
    ids = [f"disk{number}-{os.getpid()}" for number in range(6)]
    with small_disk(tmp_path / "disk", "4m") as disk:
        with BridgeProcess(engine.address, tmp_path, state_dir=disk / "state", environment=LOCAL) as bridge:
            client = HttpClient(bridge)
            bridge.wait_synced()
            assert client.ready()
            engine.run(ids[0], "sleep", "86400")
            bridge.wait(lambda records: len(own_records(records)) == 1, "the first start")
            filler = fill_up(disk)
            for id_ in ids[1:]:
                engine.run(id_, "sleep", "86400", labels={"filler": "x" * 2000})
            bridge.wait_logged("outbox_write_failed")
            assert_not_ready(client, disk / "state" / "outbox.db", "full")
            for id_ in ids:
                engine.ctr("task", "kill", "--signal", "SIGKILL", id_)
            filler.unlink()
            records = bridge.wait(lambda records: len(own_records(records)) == 12, "all transitions")
            bridge.wait_logged("outbox_recovered")
            eventually(client.ready, "the bridge to be ready")
        check_stream(records)
        assert {each["origin"] for each in own_records(records)} == {"live"}
        for id_ in ids:
            engine.ctr("task", "rm", id_, check=False)
            engine.ctr("container", "rm", id_, check=False)


def own_records(records: list[dict[str, object]]) -> list[dict[str, object]]:
    return [each for each in transitions(records) if str(each["id"]).startswith("disk")]
