"""The outbox on disk: restarts, removed sinks, the state directory, formats, corruption, and failing disks."""

# ruff: noqa: ASYNC240 (blocking calls are acceptable in tests)

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from bridge.clock import SystemClock
from bridge.core.errors import StateError
from bridge.core.record_encoder import parse_record
from bridge.outbox import database, database_worker, schema
from bridge.outbox.chunks import WriteBatch
from bridge.outbox.database import Database
from bridge.outbox.database_worker import validate_directory
from bridge.outbox.outbox import StoredOutbox
from bridge.outbox.state_directory import StateDirectory, creation_time
from bridge.outbox.writer import Writer
from tests.clocks import ManualClock
from tests.contract.test_outbox import append_in_batches, loss_range, read_all
from tests.eventually import eventually_async
from tests.golden import Golden
from tests.naming import assert_names, raises_naming
from tests.outboxes import TIGHT_LIMITS, WIDE_LIMITS, open_outbox
from tests.records import RecordFactory, sequences

pytestmark = pytest.mark.real_time  # the thread of the database

DAY = 24 * 3600
PAGE_SIZE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


# --- restarts ---


async def test_copied_database_is_reported_until_first_append(path: Path, tmp_path: Path) -> None:
    factory = RecordFactory()
    async with open_outbox(path) as outbox:
        assert not outbox.load_checkpoint().copied
        await outbox.append(factory.started_records(5), {"key": b"value"})
    async with open_outbox(path) as outbox:
        assert not outbox.load_checkpoint().copied
    path.rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", path)
    for _ in range(2):  # a crash may prevent the first append
        async with open_outbox(path) as outbox:
            stored = outbox.load_checkpoint()
            assert (stored.copied, stored.reset, dict(stored.values)) == (True, False, {"key": b"value"})
            assert outbox.depth("s") == 5
    async with open_outbox(path) as outbox:
        await outbox.append(factory.started_records(1))
    async with open_outbox(path) as outbox:
        assert not outbox.load_checkpoint().copied
    async with open_outbox(tmp_path / "moved") as outbox:
        assert not outbox.load_checkpoint().copied


async def test_database_is_no_copy_without_creation_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "creation_time", lambda _: None)
    for _ in range(2):
        async with open_outbox(path) as outbox:
            assert not outbox.load_checkpoint().copied
            await outbox.append(RecordFactory().started_records(1), {"key": b"value"})


def test_creation_time_is_unknown_without_file(tmp_path: Path) -> None:
    assert creation_time(tmp_path / "missing") is None


async def test_oldest_age_counts_only_uptime_after_restart(path: Path) -> None:
    clock, factory = ManualClock(), RecordFactory()
    async with open_outbox(path, clock=clock) as outbox:
        await outbox.append(factory.started_records(1))
        clock.advance(120)
        await outbox.append(factory.started_records(1))
    clock.advance(3600)
    async with open_outbox(path, clock=clock) as outbox:
        assert outbox.lag("s").oldest_age == 120
        await outbox.acknowledge("s", await outbox.read("s", 1))
        clock.advance(30)
        await outbox.append(factory.started_records(1))
        assert outbox.lag("s").oldest_age == 30


async def test_oldest_age_is_not_negative_after_restart(path: Path) -> None:
    """The uptime is saved once a minute, so the stored one can be older than the oldest record."""
    clock, factory = ManualClock(), RecordFactory()
    async with open_outbox(path, clock=clock) as outbox:
        clock.advance(30)
        await outbox.append(factory.started_records(1))
    async with open_outbox(path, clock=clock) as outbox:
        assert outbox.lag("s").oldest_age == 0
        clock.advance(50)
        assert outbox.lag("s").oldest_age == 20


async def test_backlog_size_is_exact_after_restart(path: Path) -> None:
    """Also for a chunk that is acknowledged in part, and for dropped records that are deleted."""
    factory, sizes = RecordFactory(), []
    async with open_outbox(path, "s", "dropping", limits=TIGHT_LIMITS) as outbox:
        await append_in_batches(outbox, factory.started_records(150, size=100), at_once=20)
        await outbox.acknowledge("s", await outbox.read("s", 75))
        batch = await outbox.read("s", 5)
        await outbox.reject("s", {(batch[3].epoch, batch[3].sequence)}, "too large")
        sizes.append((outbox.lag("s").size, outbox.lag("dropping").size))
    async with open_outbox(path, "s", "dropping", limits=TIGHT_LIMITS) as outbox:
        sizes.append((outbox.lag("s").size, outbox.lag("dropping").size))
        for sink in ("s", "dropping"):
            stored = [record for record in await outbox.read(sink, 1000) if record.type != "lost"]
            assert outbox.lag(sink).size == sum(len(record.data) for record in stored)
            await read_all(outbox, sink)
            assert outbox.lag(sink).size == 0
    assert sizes[0] == sizes[1]


async def test_opening_reads_little_of_a_large_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "check_integrity", lambda *_: True)  # reads all of the file, within a time limit
    factory = RecordFactory()
    async with open_outbox(path, "s", "other") as outbox:
        await outbox.append(factory.started_records(6000, size=1500)[::2])  # one chunk for each
        await outbox.acknowledge("s", await outbox.read("s", 300))
    before = bytes_read()
    async with open_outbox(path, "s", "other") as outbox:
        read = bytes_read() - before
        assert (outbox.depth("s"), outbox.depth("other")) == (2700, 3000)
    assert directory_size(path) > 6_000_000
    assert read < 500_000


def bytes_read() -> int:
    """Return how many bytes this process has read from files, from the page cache or the disk."""
    return int(re.findall(r"rchar: (\d+)", Path("/proc/self/io").read_text())[0])


async def test_outbox_stores_many_checkpoint_changes_at_once(path: Path) -> None:
    changes: dict[str, bytes | None] = {f"key {number}": bytes([number % 251]) for number in range(300)}
    async with open_outbox(path) as outbox:
        await outbox.append([], changes)
        await outbox.append([], {key: None for number, key in enumerate(changes) if number % 2})
    async with open_outbox(path) as outbox:
        assert dict(outbox.load_checkpoint().values) == dict(list(changes.items())[::2])


async def test_loss_record_is_delivered_when_disk_dropped_the_records(path: Path) -> None:
    factory = RecordFactory()
    async with open_outbox(path) as outbox:
        await outbox.append(factory.started_records(5))
        batch = await outbox.read("s", 5)
        await outbox.reject("s", {(batch[4].epoch, batch[4].sequence)}, "too large")
    execute(path, "DELETE FROM chunks", "UPDATE sinks SET cursor = 4")
    async with open_outbox(path) as outbox:
        (lost,) = await outbox.read("s", 10)
        assert loss_range(lost)[1:3] == (5, 5)
        await outbox.acknowledge("s", [lost])
        assert outbox.depth("s") == 0
        await outbox.append(factory.started_records(1))
        assert sequences(list(await outbox.read("s", 10))) == [6]


async def test_backlog_is_read_from_disk_in_order(path: Path) -> None:
    factory = RecordFactory()
    async with open_outbox(path, "s", "other") as outbox:
        await append_in_batches(outbox, factory.started_records(3000, size=500), at_once=700)
        await read_all(outbox, "other")
    async with open_outbox(path, "s", "other") as outbox:
        await outbox.append(factory.started_records(10))
        assert sequences(await read_all(outbox, limit=999)) == list(range(1, 3011))
        assert outbox.depth("other") == 10


async def test_disk_space_is_reused_after_delivery(path: Path) -> None:
    factory = RecordFactory()
    async with open_outbox(path) as outbox:
        for _ in range(60):
            await outbox.append(factory.started_records(500, size=1000))
            await read_all(outbox)
        assert directory_size(path) < 16_000_000


async def test_disk_space_of_backlog_is_released_after_delivery(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.outbox.writer.FLUSH_SECONDS", 0.01)
    factory = RecordFactory()
    async with open_outbox(path) as outbox:
        for _ in range(40):
            await outbox.append(factory.started_records(1000, size=1000))
        assert directory_size(path) > 50_000_000
        await read_all(outbox)
        await eventually_async(lambda: directory_size(path) < 30_000_000)


def execute(path: Path, *statements: str) -> list[Any]:
    """Execute SQL statements, as another program could; return the result of the last one."""
    with closing(sqlite3.connect(path / "outbox.db")) as connection, connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def directory_size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


# --- new and removed sinks ---


async def test_new_sink_starts_with_records_appended_after_creation(path: Path) -> None:
    factory = RecordFactory()
    async with open_outbox(path, "old") as outbox:
        await outbox.append(factory.started_records(5))
    async with open_outbox(path, "old", "new") as outbox:
        await outbox.append(factory.started_records(1))
        assert sequences(await read_all(outbox, "new")) == [6]
        assert sequences(await read_all(outbox, "old")) == [1, 2, 3, 4, 5, 6]


async def test_removed_sink_keeps_cursor_for_a_day_of_uptime(path: Path) -> None:
    factory, clock = RecordFactory(), ManualClock()
    async with open_outbox(path, "kept", "removed", clock=clock) as outbox:
        await outbox.append(factory.started_records(5))
        await read_all(outbox, "kept")
    with capture_logs() as logs:
        async with open_outbox(path, "kept", clock=clock) as outbox:
            clock.advance(DAY - 100)
            await outbox.append(factory.started_records(1))
    assert [(each["sink"], each["backlog"]) for each in logs if each["event"] == "sink_removed"] == [("removed", 5)]
    clock.advance(30 * DAY)  # while the bridge is not running
    async with open_outbox(path, "kept", "removed", clock=clock) as outbox:
        assert outbox.depth("removed") == 6
    async with open_outbox(path, "kept", clock=clock) as outbox:
        clock.advance(DAY + 100)
        await outbox.append(factory.started_records(1))
    async with open_outbox(path, "kept", "removed", clock=clock) as outbox:
        assert outbox.depth("removed") == 0


async def test_removed_sink_is_dropped_when_space_is_needed(path: Path) -> None:
    factory = RecordFactory()
    async with open_outbox(path, "kept", "removed", limits=TIGHT_LIMITS) as outbox:
        await outbox.append(factory.started_records(60))
    async with open_outbox(path, "kept", limits=TIGHT_LIMITS) as outbox:
        await read_all(outbox, "kept")
        await outbox.append(factory.started_records(60))
        assert sequences(await read_all(outbox, "kept")) == list(range(61, 121))
    async with open_outbox(path, "kept", "removed", limits=TIGHT_LIMITS) as outbox:
        assert outbox.depth("removed") == 0


# --- access to the directory ---


async def test_state_directory_is_readable_only_by_owner(path: Path) -> None:
    before = os.umask(0)
    try:
        async with open_outbox(path / "state") as outbox:
            await outbox.append(RecordFactory().started_records(1))
            await outbox.read("s", 1)
            await outbox.reject("s", {(RecordFactory().encoder.epoch, 1)}, "too large")
            assert {file.stat().st_mode & 0o777 for file in (path / "state").iterdir()} == {0o600}
            assert len(list((path / "state").iterdir())) == 4, "database, log, lock, dead letters"
    finally:
        os.umask(before)
    assert (path / "state").stat().st_mode & 0o777 == 0o700


async def test_empty_state_directory_becomes_private(path: Path) -> None:
    path.mkdir(mode=0o755)
    (path / "lost+found").mkdir()
    async with open_outbox(path):
        assert path.stat().st_mode & 0o777 == 0o700


async def test_state_directory_is_locked_against_second_process(path: Path, golden: Golden) -> None:
    async with StoredOutbox(path, ["s"], SystemClock(), WIDE_LIMITS) as second:
        async with open_outbox(path):
            locked: list[Path] = []
            opening = asyncio.create_task(second.open(record_call(locked)))
            await wait_for_error(second, f"(process {os.getpid()})")
            golden.entry("outbox_errors", "in use", str(second.last_error), PID=os.getpid())
            assert not locked
        await opening
        assert (second.last_error, locked) == (None, [path])


def record_call(paths: list[Path]) -> Callable[[Path], Awaitable[None]]:
    async def on_locked(path: Path) -> None:
        paths.append(path)

    return on_locked


async def wait_for_error(outbox: StoredOutbox, text: str) -> None:
    await eventually_async(lambda: text in (outbox.last_error or ""), f"the error {text!r}")


WRITER_PROGRAM = """
import asyncio, sys
from pathlib import Path
from tests.outboxes import open_outbox
from tests.records import RecordFactory

async def main():
    async with open_outbox(Path(sys.argv[1])) as outbox:
        factory = RecordFactory()
        while True:
            records = factory.started_records(3)
            last = records[-1].sequence
            await outbox.append(records, {"last": b"%d" % last, "copy": b"%d" % last})
            print(last, flush=True)

asyncio.run(main())
"""


@pytest.fixture
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER_PROGRAM, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


async def test_outbox_keeps_appends_and_frees_lock_when_killed(path: Path, writer: subprocess.Popen[str]) -> None:
    assert writer.stdout is not None
    for _ in range(50):
        written = int(writer.stdout.readline())
    async with StoredOutbox(path, ["s"], SystemClock(), WIDE_LIMITS) as outbox:
        opening = asyncio.create_task(outbox.open())
        await wait_for_error(outbox, f"(process {writer.pid})")
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        await opening
        checkpoint = dict(outbox.load_checkpoint().values)
        records = await read_all(outbox)
    assert sequences(records) == list(range(1, len(records) + 1))
    assert len(records) >= written
    assert checkpoint == {"last": str(len(records)).encode(), "copy": str(len(records)).encode()}


async def test_state_directory_with_foreign_files_is_left_unchanged(path: Path, golden: Golden) -> None:
    path.mkdir()
    (path / "letter.txt").write_text("text")
    with golden.error("outbox_errors", "foreign files", StateError, path):
        async with open_outbox(path):
            pass
    assert [file.name for file in path.iterdir()] == ["letter.txt"]


async def test_state_directory_is_rejected_when_path_is_a_file(path: Path, golden: Golden) -> None:
    path.write_text("")
    with golden.error("outbox_errors", "not a directory", StateError, f"state_dir {path}", "Not a directory"):
        async with open_outbox(path):
            pass


async def test_database_of_another_program_is_left_unchanged(path: Path, golden: Golden) -> None:
    path.mkdir()
    execute(path, "CREATE TABLE recipes (name)")
    with golden.error("outbox_errors", "another program's database", StateError, path / "outbox.db"):
        async with open_outbox(path):
            pass
    assert execute(path, "SELECT name FROM sqlite_schema") == [("recipes",)]


# --- opening ---


async def test_outbox_open_waits_until_disk_has_space(path: Path, disk: type[FailingDatabase], golden: Golden) -> None:
    disk.error_at_open = io_error(sqlite3.SQLITE_FULL, "database or disk is full")
    clock, waits = ManualClock(), []
    async with StoredOutbox(path, ["s"], clock, WIDE_LIMITS, on_wait=lambda: waits.append(1)) as outbox:
        golden.entry("outbox_errors", "not open yet", str(outbox.last_error))
        with capture_logs() as logs:
            opening = asyncio.create_task(outbox.open())
            for _ in range(3):
                await eventually_async(lambda: clock.sleeper_count)
                assert_names(outbox.last_error, path / "outbox.db", "database or disk is full", "free space")
                clock.advance(1)
            await eventually_async(lambda: clock.sleeper_count)
            disk.error_at_open = None
            clock.advance(1)
            await opening
        assert (outbox.last_error, len(waits)) == (None, 4)
        assert [each["event"] for each in logs] == ["outbox_open_failed", "outbox_recovered"]


@pytest.mark.parametrize("code", [sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM])
async def test_outbox_open_fails_when_permissions_are_missing(
    path: Path, disk: type[FailingDatabase], code: int
) -> None:
    disk.error_at_open = io_error(code, "attempt to write a readonly database")
    with raises_naming(StateError, path / "outbox.db", "permissions"):
        async with open_outbox(path):
            pass


async def test_outbox_close_does_not_wait_for_slow_opening(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checking, proceed = threading.Event(), threading.Event()

    def check_slowly(_: Database, __: float) -> bool:
        checking.set()
        return proceed.wait(60)

    monkeypatch.setattr(Database, "check_integrity", check_slowly)
    async with StoredOutbox(path, ["s"], SystemClock(), WIDE_LIMITS) as outbox:
        opening = asyncio.create_task(outbox.open())
        await eventually_async(checking.is_set)
        assert_names(outbox.last_error, path / "outbox.db")
        opening.cancel()
        await asyncio.wait([opening])
    assert not proceed.is_set()
    proceed.set()
    async with open_outbox(path):  # the thread has released the directory
        pass


async def test_canceled_close_releases_the_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finishing = asyncio.Event()

    async def hang(_: Writer) -> None:
        finishing.set()
        await asyncio.Event().wait()

    async def open_and_close() -> None:
        async with open_outbox(path):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "finish", hang)
        closing_outbox = asyncio.create_task(open_and_close())
        await finishing.wait()
        closing_outbox.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing_outbox
    async with asyncio.timeout(10), open_outbox(path):
        pass


# --- formats ---


async def test_newer_database_format_is_rejected_and_left_unchanged(path: Path, golden: Golden) -> None:
    async with open_outbox(path) as outbox:
        await outbox.append(RecordFactory().started_records(3))
    execute(path, "PRAGMA user_version = 99")
    before = (path / "outbox.db").read_bytes()
    with golden.error("outbox_errors", "newer format", StateError, path / "outbox.db", "99"):
        async with open_outbox(path):
            pass
    assert (path / "outbox.db").read_bytes() == before


async def test_old_sqlite_is_rejected_and_file_left_unchanged(
    path: Path, monkeypatch: pytest.MonkeyPatch, golden: Golden
) -> None:
    """Otherwise, the statements that it does not know would look as if the file were corrupt."""
    async with open_outbox(path) as outbox:
        await outbox.append(RecordFactory().started_records(3))
    before = (path / "outbox.db").read_bytes()
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.34.1")
    with golden.error("outbox_errors", "old SQLite", StateError, "3.34.1"):
        async with open_outbox(path):
            pass
    with raises_naming(StateError, "3.34.1"):
        validate_directory(StateDirectory(path))
    assert (path / "outbox.db").read_bytes() == before


@pytest.mark.parametrize("format_", [1, 3])  # 3: the last one of unreleased versions
async def test_database_of_older_version_is_opened(format_: int, path: Path) -> None:
    """In the file, sink `s` has acknowledged 11 of 13 records and rejected the last; `slow` has lost the first 6."""
    path.mkdir()
    with closing(sqlite3.connect(path / "outbox.db")) as old:
        old.executescript(Path(__file__).with_name(f"format_{format_}.sql").read_text())
        chunks = old.execute("SELECT documents FROM chunks ORDER BY position").fetchall()
    # Records 7 to 13, as the older version encoded them.
    stored = [parse_record(document) for (documents,) in chunks for document in documents.split(b"\n")]
    factory = RecordFactory()
    factory.started_records(13)
    async with open_outbox(path, "s", "slow") as outbox:
        assert dict(outbox.load_checkpoint().values) == {"key": b"value"}
        assert (outbox.depth("s"), outbox.depth("slow")) == (2, 8)
        assert outbox.lag("slow").size == sum(len(record.data) for record in stored)
        kept, lost = await outbox.read("s", 10)
        assert (kept, loss_range(lost)[1:]) == (stored[5], (13, 13, "rejected"))
        await outbox.append(factory.started_records(1))
        lost, *kept_records = await read_all(outbox, "slow")
        assert (kept_records[:-1], loss_range(lost)[1:]) == (stored, (1, 6, "overflow"))
        assert sequences(stored) == list(range(7, 14))
        assert (await read_all(outbox))[-1] == kept_records[-1]
        (new,) = factory.started_records(1)
        await outbox.append([new])
        assert (outbox.lag("s").size, outbox.lag("slow").size) == (len(new.data), len(new.data))
        assert await read_all(outbox) == await read_all(outbox, "slow") == [new]
    async with open_outbox(path, "s", "slow") as outbox:
        assert (outbox.lag("s").size, outbox.lag("slow").size) == (0, 0)


def test_schema_migration_is_stepwise_and_atomic() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    first = "CREATE TABLE t (a); INSERT INTO t VALUES (1);"
    schema.migrate(connection, [first])
    with pytest.raises(sqlite3.OperationalError):
        schema.migrate(connection, [first, "ALTER TABLE t ADD COLUMN b; NONSENSE;"])
    connection.execute("ROLLBACK")
    assert connection.execute("SELECT * FROM t").fetchall() == [(1,)]
    schema.migrate(connection, [first, "ALTER TABLE t ADD COLUMN b;", "UPDATE t SET b = 2;"])
    assert connection.execute("SELECT * FROM t").fetchall() == [(1, 2)]
    assert connection.execute("PRAGMA user_version").fetchone() == (3,)
    connection.close()


# --- corrupt files ---


def fill_with_garbage(database: Path) -> None:
    database.write_bytes(b"\x13" * 50_000)


def truncate(database: Path) -> None:
    database.write_bytes(database.read_bytes()[:9000])


def overwrite(database: Path) -> None:
    data = bytearray(database.read_bytes())
    data[8192:40_000] = os.urandom(len(data[8192:40_000]))
    database.write_bytes(data)


def insert_invalid_loss(database: Path) -> None:
    """Insert a loss that is valid for SQLite, but not for the outbox."""
    execute(database.parent, "INSERT INTO losses VALUES ('s', 1, 2, 3, 4, 'overflow', x'00')")


def remove_state(database: Path) -> None:
    execute(database.parent, "DELETE FROM state")


def set_to_text(column: str) -> Callable[[Path], None]:
    """Return a function that sets all values of TABLE.COLUMN to text: SQLite has types of values, not of columns."""
    table, _, name = column.partition(".")

    def change(database: Path) -> None:
        execute(database.parent, f"UPDATE {table} SET {name} = 'text'")  # noqa: S608 (constants)

    return change


def overwrite_schema(database: Path) -> None:
    database.write_bytes(database.read_bytes().replace(b"cursor INTEGER", b"\xff\xffrsor INTEGER"))


@pytest.mark.parametrize(
    "corrupt",
    [
        fill_with_garbage,
        truncate,
        overwrite,
        overwrite_schema,
        insert_invalid_loss,
        remove_state,
        *map(set_to_text, ("chunks.uptime", "sinks.cursor", "sinks.offset", "state.value", "checkpoint.value")),
    ],
)
async def test_corrupt_database_is_quarantined_and_logged(path: Path, corrupt: Callable[[Path], None]) -> None:
    async with open_outbox(path) as outbox:
        await outbox.append(RecordFactory().started_records(100, size=500), {"key": b"value"})
    corrupt(path / "outbox.db")
    written_at = (path / "outbox.db").stat().st_mtime_ns
    content = (path / "outbox.db").read_bytes()
    with capture_logs() as logs:
        async with open_outbox(path) as outbox:
            assert outbox.depth("s") == 0
    entry = next(each for each in logs if each["event"] == "outbox_corrupt")
    quarantined = Path(entry["quarantined_as"])
    assert (entry["log_level"], quarantined.read_bytes()) == ("critical", content)
    async with open_outbox(path) as outbox:  # the reset is reported until the first append, in case of a crash
        stored = outbox.load_checkpoint()
        assert (dict(stored.values), stored.reset, stored.last_written) == ({}, True, written_at)
        await outbox.append(RecordFactory().started_records(1))
    async with open_outbox(path) as outbox:
        assert not outbox.load_checkpoint().reset


@pytest.mark.parametrize(
    "change",
    ["documents = CAST(replace(documents, 'c3', 'c4') AS BLOB)", "sequence = sequence + 1", "epoch = epoch - 1"],
)
async def test_changed_chunk_is_never_read(path: Path, change: str) -> None:
    """SQLite does not notice that a value has changed."""
    async with open_outbox(path) as outbox:
        await outbox.append(RecordFactory().started_records(5))
    execute(path, f"UPDATE chunks SET {change}")  # noqa: S608 (constants)
    assert execute(path, "PRAGMA quick_check(1)") == [("ok",)]
    async with open_outbox(path) as outbox:
        with raises_naming(StateError, path / "outbox.db", "checksum"):
            await outbox.read("s", 10)


async def test_integrity_check_ends_at_time_limit(path: Path) -> None:
    async with open_outbox(path) as outbox:
        await append_in_batches(outbox, RecordFactory().started_records(500))
    with closing(Database(path / "outbox.db")) as database:
        assert database.check_integrity(60)
        database._connection.set_progress_handler(lambda: time.sleep(0.01), 1)  # at each instruction of the check
        assert not database.check_integrity(0.05)
        database._connection.set_progress_handler(None, 1)
        assert database.check_integrity(60), "an interrupted check has no lasting effect"


async def test_corruption_after_incomplete_check_is_found_by_reading(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_outbox(path) as outbox:
        await outbox.append(RecordFactory().started_records(2000, size=5000))
    break_overflow_chain(path / "outbox.db")
    assert execute(path, "PRAGMA quick_check(1)") != [("ok",)]
    monkeypatch.setattr(Database, "check_integrity", lambda *_: False)
    with capture_logs() as logs:
        async with open_outbox(path) as outbox:
            with raises_naming(StateError, path / "outbox.db", "malformed"):
                await read_all(outbox)
    assert (logs[0]["event"], logs[0]["path"]) == ("outbox_check_incomplete", str(path / "outbox.db"))
    assert len(list(path.glob("outbox.db.corrupt-*Z"))) == 1
    async with open_outbox(path) as outbox:
        assert outbox.load_checkpoint().reset


def break_overflow_chain(database: Path) -> None:
    """Damage the pointer to the next page in an overflow page, the only kind of page that begins with 0."""
    data = bytearray(database.read_bytes())
    middle = len(data) // 2 // PAGE_SIZE * PAGE_SIZE
    page = next(offset for offset in range(middle, len(data), PAGE_SIZE) if data[offset] == 0)
    data[page : page + 4] = b"\xff" * 4
    database.write_bytes(data)


async def test_reset_is_reported_when_replacing_corrupt_file_failed(path: Path, disk: type[FailingDatabase]) -> None:
    """The disk is full after the quarantine, when the new file exists already."""
    async with open_outbox(path) as outbox:
        await outbox.append([], {"key": b"value"})
    fill_with_garbage(path / "outbox.db")
    disk.error_at_reset = io_error(sqlite3.SQLITE_FULL, "database or disk is full")
    async with StoredOutbox(path, ["s"], SystemClock(), WIDE_LIMITS) as outbox:
        opening = asyncio.create_task(outbox.open())
        await wait_for_error(outbox, "database or disk is full")
        disk.error_at_reset = None
        await opening
        assert outbox.load_checkpoint().reset
    assert len(list(path.glob("outbox.db.corrupt-*Z"))) == 1


async def test_corruption_while_running_fails_and_resets_next_start(path: Path, golden: Golden) -> None:
    async with open_outbox(path) as outbox:
        await outbox.append(RecordFactory().started_records(5), {"key": b"value"})
    execute(path, "UPDATE chunks SET documents = zeroblob(length(documents))")
    async with open_outbox(path) as outbox:
        with pytest.raises(StateError) as caught:
            await outbox.read("s", 10)
        text = str(caught.value)
        assert str(path / "outbox.db") in text
        (quarantined,) = path.glob("outbox.db.corrupt-*")
        assert quarantined.name in text
        golden.entry("outbox_errors", "corrupt while in use", text.replace(quarantined.name, "outbox.db.corrupt-TIME"))
        with pytest.raises(StateError):
            await outbox.append(RecordFactory().started_records(1))
    async with open_outbox(path) as outbox:
        assert outbox.load_checkpoint().reset


async def test_removed_database_file_is_detected(path: Path, golden: Golden) -> None:
    """SQLite itself continues to write to a removed file."""
    clock = ManualClock()
    async with open_outbox(path, clock=clock) as outbox:
        await outbox.append(RecordFactory().started_records(1))
        (path / "outbox.db").unlink()
        clock.advance(61)
        with golden.error("outbox_errors", "removed while in use", StateError, path / "outbox.db"):
            await outbox.append([])


def replace_by_copy(file: Path) -> None:
    shutil.copy(file, file.with_name("copy"))
    file.with_name("copy").replace(file)


@pytest.mark.parametrize("remove", [Path.unlink, replace_by_copy])
async def test_database_removed_after_failed_write_is_detected(
    path: Path, disk: type[FailingDatabase], remove: Callable[[Path], None], golden: Golden
) -> None:
    """As an operator may do if the disk is full."""
    clock, factory = ManualClock(), RecordFactory()
    async with open_outbox(path, clock=clock) as outbox:
        await outbox.append(factory.started_records(1))
        disk.error_before_write = io_error(sqlite3.SQLITE_FULL, "database or disk is full")
        appending = asyncio.create_task(outbox.append(factory.started_records(1)))
        await eventually_async(lambda: clock.sleeper_count)
        remove(path / "outbox.db")
        disk.error_before_write = None
        clock.advance(10)
        with golden.error("outbox_errors", "removed while in use", StateError, path / "outbox.db"):
            await appending


async def test_corrupt_database_is_reported_when_disk_is_read_only(
    path: Path, monkeypatch: pytest.MonkeyPatch, golden: Golden
) -> None:
    def fail(_: StateDirectory) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    async with open_outbox(path) as outbox:
        await outbox.append(RecordFactory().started_records(5))
    execute(path, "UPDATE chunks SET documents = zeroblob(length(documents))")
    monkeypatch.setattr(StateDirectory, "quarantine", fail)
    async with open_outbox(path) as outbox:
        with golden.error("outbox_errors", "corrupt on a read-only disk", StateError, path / "outbox.db"):
            await outbox.read("s", 10)
        with raises_naming(StateError, path / "outbox.db"):
            await outbox.append(RecordFactory().started_records(1))


async def test_outbox_raises_for_all_callers_when_writer_fails(path: Path, disk: type[FailingDatabase]) -> None:
    async with open_outbox(path) as outbox:
        disk.error_before_write = sqlite3.ProgrammingError("a bug")
        with pytest.raises(sqlite3.ProgrammingError):
            await outbox.append(RecordFactory().started_records(1))
        with pytest.raises(sqlite3.ProgrammingError):
            await outbox.append(RecordFactory().started_records(1))
        with pytest.raises(sqlite3.ProgrammingError):
            await outbox.read("s", 1)


# --- failing disks ---


class FailingDatabase(Database):
    """A database whose writes fail on demand, before or after the transaction."""

    error_at_open: sqlite3.Error | None = None
    error_at_reset: sqlite3.Error | None = None
    error_before_write: sqlite3.Error | None = None
    error_after_write: sqlite3.Error | None = None
    error_within_write: Exception | None = None
    open_count = 0
    batches: list[WriteBatch] = []  # noqa: RUF012 (reset by the fixture)

    def __init__(self, path: Path) -> None:
        type(self).open_count += 1
        if self.error_at_open is not None:
            raise self.error_at_open
        super().__init__(path)

    def save_reset(self, last_written: int) -> None:
        if self.error_at_reset is not None:
            raise self.error_at_reset
        super().save_reset(last_written)

    def write(self, batch: WriteBatch) -> dict[str, int]:
        if self.error_before_write is not None:
            raise self.error_before_write
        if self.error_within_write is not None:
            self.fail_within_transaction(self.error_within_write)
        uptimes = super().write(batch)
        self.batches.append(batch)
        if self.error_after_write is not None:
            raise self.error_after_write
        return uptimes

    def fail_within_transaction(self, error: Exception) -> None:
        with self._transaction():
            raise error


def io_error(code: int, text: str) -> sqlite3.Error:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> type[FailingDatabase]:
    disk = type("Disk", (FailingDatabase,), {"batches": []})
    monkeypatch.setattr(database_worker, "Database", disk)
    return disk


@pytest.mark.parametrize("moment", ["error_before_write", "error_after_write"])
async def test_failed_write_is_retried_on_new_connection(
    path: Path, disk: type[FailingDatabase], moment: str, golden: Golden
) -> None:
    """After a failed fsync (``error_after_write``) records may be on the disk; the retry must not duplicate them."""
    clock, factory = ManualClock(), RecordFactory()
    async with open_outbox(path, clock=clock) as outbox:
        await outbox.append(factory.started_records(2))
        setattr(disk, moment, io_error(sqlite3.SQLITE_IOERR | (4 << 8), "disk I/O error"))
        before = disk.open_count
        with capture_logs() as logs:
            appending = asyncio.create_task(outbox.append(factory.started_records(2), {"key": b"value"}))
            await eventually_async(lambda: clock.sleeper_count)
            assert outbox.last_error is not None
            assert outbox.last_error.startswith(f"{path}/outbox.db: disk I/O error; ")
            golden.entry("outbox_errors", "write failure", outbox.last_error)
            assert outbox.depth("s") == 2, "records of a failed write are not readable"
            for _ in range(5):
                clock.advance(10)
                await eventually_async(lambda: clock.sleeper_count)
            assert not appending.done()
            setattr(disk, moment, None)
            clock.advance(10)
            await appending
        assert outbox.last_error is None
        assert disk.open_count > before + 5
        assert sequences(await read_all(outbox)) == [1, 2, 3, 4]
        assert [each["event"] for each in logs] == ["outbox_write_failed", "outbox_recovered"]
    async with open_outbox(path) as outbox:
        assert dict(outbox.load_checkpoint().values) == {"key": b"value"}
        assert outbox.depth("s") == 0


async def test_failure_within_transaction_leaves_file_in_place(
    path: Path, disk: type[FailingDatabase], golden: Golden
) -> None:
    """sqlite3 raises MemoryError, which is not a ``sqlite3.Error``, if SQLite runs out of memory."""
    clock, factory = ManualClock(), RecordFactory()
    async with open_outbox(path, clock=clock) as outbox:
        await outbox.append(factory.started_records(2))
        disk.error_within_write = MemoryError()
        appending = asyncio.create_task(outbox.append(factory.started_records(2)))
        await eventually_async(lambda: clock.sleeper_count)
        assert outbox.last_error is not None
        golden.entry("outbox_errors", "out of memory", outbox.last_error)
        disk.error_within_write = None
        clock.advance(10)
        await appending
        assert sequences(await read_all(outbox)) == [1, 2, 3, 4]
        job = partial(FailingDatabase.fail_within_transaction, error=ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            await outbox._worker.run_once(job)
        await outbox.append(factory.started_records(1))
    assert not list(path.glob("*.corrupt-*"))


async def test_concurrent_appends_share_a_commit(path: Path, disk: type[FailingDatabase]) -> None:
    factory = RecordFactory()
    async with open_outbox(path) as outbox:
        await outbox.append(factory.started_records(1))
        disk.batches.clear()
        await asyncio.gather(*(outbox.append(factory.started_records(2), {str(number): b""}) for number in range(20)))
    assert 1 <= len(disk.batches) <= 3
    assert sum(chunk.record_count for batch in disk.batches for chunk in batch.chunks) == 40
    assert len({key for batch in disk.batches for key in batch.checkpoint}) == 20


async def test_outbox_closes_when_disk_is_failing(path: Path, disk: type[FailingDatabase]) -> None:
    with capture_logs() as logs:
        async with asyncio.timeout(30), open_outbox(path) as outbox:
            disk.error_before_write = io_error(sqlite3.SQLITE_FULL, "database or disk is full")
            appending = asyncio.create_task(outbox.append(RecordFactory().started_records(1)))
            await eventually_async(lambda: outbox.last_error)
            logs.clear()
    assert [each["event"] for each in logs] == ["outbox_close_failed"]
    appending.cancel()


# --- dead letters ---


async def test_rejected_records_are_written_to_dead_letters(path: Path) -> None:
    factory = RecordFactory()
    appended = factory.started_records(4)
    async with open_outbox(path) as outbox:
        await outbox.append(appended)
        await outbox.read("s", 10)
        await outbox.reject("s", {(appended[2].epoch, 3)}, "the message is too large")
        await outbox.read("s", 10)
        await outbox.reject("s", {(appended[0].epoch, 1)}, "no")
    entries = [msgspec.json.decode(line) for line in (path / "dead-letters.jsonl").read_bytes().splitlines()]
    assert [(each["sink"], each["reason"], each["record"]["sequence"]) for each in entries] == [
        ("s", "the message is too large", 3),
        ("s", "no", 1),
    ]
    assert entries[0]["record"] == msgspec.json.decode(appended[2].data)


async def test_dead_letter_starts_new_line_after_truncated_one(path: Path) -> None:
    """As a power failure can leave it."""
    (record,) = RecordFactory().started_records(1)
    async with open_outbox(path) as outbox:
        (path / "dead-letters.jsonl").write_bytes(b'{"time":"2026-11')
        await outbox.append([record])
        await outbox.read("s", 10)
        await outbox.reject("s", {(record.epoch, record.sequence)}, "no")
    truncated, complete = (path / "dead-letters.jsonl").read_bytes().splitlines()
    assert truncated == b'{"time":"2026-11'
    assert msgspec.json.decode(complete)["record"] == msgspec.json.decode(record.data)


async def test_commits_are_counted(tmp_path: Path) -> None:
    factory = RecordFactory()
    async with open_outbox(tmp_path) as outbox:
        for _ in range(3):
            await outbox.append(factory.started_records(2))
        assert outbox.commits.cumulative()[-1] == 3
