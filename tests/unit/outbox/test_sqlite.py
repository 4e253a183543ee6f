"""The outbox on disk: what outlives the process, what keeps others out, and what a disk can do to it."""

# ruff: noqa: ASYNC110, ASYNC240 (a test has nothing else to do meanwhile)

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from bridge.clock import SystemClock
from bridge.core.errors import StateError
from bridge.core.ports import Clock
from bridge.outbox import schema, store
from bridge.outbox.bounds import Bounds
from bridge.outbox.database import Database
from bridge.outbox.rows import Writing
from bridge.outbox.sqlite import SqliteOutbox
from tests.clocks import ManualClock
from tests.contract.test_outbox import TIGHT, WIDE, covered, fill, lost, read_all
from tests.records import Recorder, sequences

DAY = 24 * 3600


@asynccontextmanager
async def opened(
    path: Path, *sinks: str, clock: Clock | None = None, bounds: Bounds = WIDE
) -> AsyncIterator[SqliteOutbox]:
    outbox = await SqliteOutbox.open(path, sinks or ["s"], clock or SystemClock(), bounds)
    try:
        yield outbox
    finally:
        await outbox.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


# --- what outlives the process ---


async def test_records_cursors_and_memory_outlive_it(path: Path) -> None:
    recorder = Recorder()
    async with opened(path) as outbox:
        await outbox.append(recorder.starts(5), {"a": b"1", "b": b"2"})
        await outbox.append([], {"a": None, "c": b"3"})
        await outbox.acknowledge("s", await outbox.read("s", 2))
        batch = await outbox.read("s", 10)
    async with opened(path) as outbox:
        assert dict(outbox.recall().values) == {"b": b"2", "c": b"3"}
        assert await outbox.read("s", 10) == batch, "byte for byte, and all that routes them"
        assert sequences(list(batch)) == [3, 4, 5]


async def test_many_changes_of_the_memory_at_once(path: Path) -> None:
    many: dict[str, bytes | None] = {f"key {number}": bytes([number % 251]) for number in range(300)}
    async with opened(path) as outbox:
        await outbox.append([], many)
        await outbox.append([], {key: None for number, key in enumerate(many) if number % 2})
    async with opened(path) as outbox:
        assert dict(outbox.recall().values) == dict(list(many.items())[::2])


async def test_what_is_told_of_a_loss_outlives_it_and_never_changes(path: Path) -> None:
    recorder = Recorder()
    async with opened(path, bounds=TIGHT) as outbox:
        await fill(outbox, recorder.starts(200))
        batch = await outbox.read("s", 3)
        await outbox.refuse("s", {(batch[2].epoch, batch[2].sequence)}, "too large")
        before = await outbox.read("s", 1000)
    async with opened(path, bounds=TIGHT) as outbox:
        assert await outbox.read("s", 1000) == before
        await fill(outbox, recorder.starts(200))
        records = await read_all(outbox)
    assert (lost(records[0])[3], lost(records[2])[3]) == ("overflow", "rejected")
    assert covered(records) == list(range(1, 401))


async def test_a_loss_whose_records_a_lying_disk_has_not_kept_is_told_all_the_same(path: Path) -> None:
    recorder = Recorder()
    async with opened(path) as outbox:
        await outbox.append(recorder.starts(5))
        batch = await outbox.read("s", 5)
        await outbox.refuse("s", {(batch[4].epoch, batch[4].sequence)}, "too large")
    with closing(sqlite3.connect(path / "outbox.db")) as database, database:
        database.execute("DELETE FROM chunks")
        database.execute("UPDATE sinks SET cursor = 4")
    async with opened(path) as outbox:
        (told,) = await outbox.read("s", 10)
        assert lost(told)[1:3] == (5, 5)
        await outbox.acknowledge("s", [told])
        assert outbox.depth("s") == 0
        await outbox.append(recorder.starts(1))
        assert sequences(list(await outbox.read("s", 10))) == [6]


async def test_a_backlog_is_read_from_the_disk_in_order(path: Path) -> None:
    recorder = Recorder()
    async with opened(path, "s", "other") as outbox:
        await fill(outbox, recorder.starts(3000, size=500), at_once=700)
        await read_all(outbox, "other")
    async with opened(path, "s", "other") as outbox:
        await outbox.append(recorder.starts(10))
        assert sequences(await read_all(outbox, limit=999)) == list(range(1, 3011))
        assert outbox.depth("other") == 10


async def test_disk_space_is_used_again(path: Path) -> None:
    recorder = Recorder()
    async with opened(path) as outbox:
        for _ in range(60):
            await outbox.append(recorder.starts(500, size=1000))
            await read_all(outbox)
        assert size(path) < 16_000_000


async def test_disk_space_of_a_backlog_is_given_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.outbox.writer.FLUSH_SECONDS", 0.01)
    recorder = Recorder()
    async with opened(path) as outbox:
        for _ in range(40):
            await outbox.append(recorder.starts(1000, size=1000))
        assert size(path) > 50_000_000
        await read_all(outbox)
        await settled(lambda: size(path) < 30_000_000)


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


# --- sinks that come and go ---


async def test_a_new_sink_begins_with_what_comes_after_it(path: Path) -> None:
    recorder = Recorder()
    async with opened(path, "old") as outbox:
        await outbox.append(recorder.starts(5))
    async with opened(path, "old", "new") as outbox:
        await outbox.append(recorder.starts(1))
        assert sequences(await read_all(outbox, "new")) == [6]
        assert sequences(await read_all(outbox, "old")) == [1, 2, 3, 4, 5, 6]


async def test_a_sink_that_is_gone_keeps_its_place_for_a_day_of_running(path: Path) -> None:
    recorder, clock = Recorder(), ManualClock()
    async with opened(path, "stays", "gone", clock=clock) as outbox:
        await outbox.append(recorder.starts(5))
        await read_all(outbox, "stays")
    async with opened(path, "stays", clock=clock) as outbox:
        clock.pass_time(DAY - 100)
        await outbox.append(recorder.starts(1))
    clock.pass_time(30 * DAY)  # it does not run
    async with opened(path, "stays", "gone", clock=clock) as outbox:
        assert outbox.depth("gone") == 6
    async with opened(path, "stays", clock=clock) as outbox:
        clock.pass_time(DAY + 100)
        await outbox.append(recorder.starts(1))
    async with opened(path, "stays", "gone", clock=clock) as outbox:
        assert outbox.depth("gone") == 0


async def test_a_sink_that_is_gone_is_forgotten_where_its_space_is_needed(path: Path) -> None:
    recorder = Recorder()
    async with opened(path, "stays", "gone", bounds=TIGHT) as outbox:
        await outbox.append(recorder.starts(60))
    async with opened(path, "stays", bounds=TIGHT) as outbox:
        await read_all(outbox, "stays")
        await outbox.append(recorder.starts(60))
        assert sequences(await read_all(outbox, "stays")) == list(range(61, 121))
    async with opened(path, "stays", "gone", bounds=TIGHT) as outbox:
        assert outbox.depth("gone") == 0


# --- who may use the directory ---


async def test_nobody_else_can_read_it(path: Path) -> None:
    before = os.umask(0)
    try:
        async with opened(path / "below") as outbox:
            await outbox.append(Recorder().starts(1))
            await outbox.read("s", 1)
            await outbox.refuse("s", {(Recorder().ledger.epoch, 1)}, "too large")
            assert {file.stat().st_mode & 0o777 for file in (path / "below").iterdir()} == {0o600}
            assert len(list((path / "below").iterdir())) == 4, "database, log, lock, dead letters"
    finally:
        os.umask(before)
    assert (path / "below").stat().st_mode & 0o777 == 0o700


async def test_an_empty_directory_becomes_ours_alone(path: Path) -> None:
    path.mkdir(mode=0o755)
    (path / "lost+found").mkdir()
    async with opened(path):
        assert path.stat().st_mode & 0o777 == 0o700


async def test_a_second_process_is_kept_out(path: Path) -> None:
    async with opened(path):
        with pytest.raises(StateError, match=f"in use by another whalebridge .process {os.getpid()}.; stop that one"):
            await SqliteOutbox.open(path, ["s"], SystemClock(), WIDE)
    async with opened(path):
        pass


WRITER = """
import asyncio, sys
from pathlib import Path
from bridge.clock import SystemClock
from bridge.outbox.sqlite import SqliteOutbox
from tests.contract.test_outbox import WIDE
from tests.records import Recorder

async def main():
    outbox = await SqliteOutbox.open(Path(sys.argv[1]), ["s"], SystemClock(), WIDE)
    recorder = Recorder()
    while True:
        records = recorder.starts(3)
        last = records[-1].sequence
        await outbox.append(records, {"last": b"%d" % last, "again": b"%d" % last})
        print(last, flush=True)

asyncio.run(main())
"""


@pytest.fixture
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


async def test_what_was_appended_survives_a_sigkill_and_the_lock_does_not(
    path: Path, writer: subprocess.Popen[str]
) -> None:
    assert writer.stdout is not None
    for _ in range(50):
        written = int(writer.stdout.readline())
    with pytest.raises(StateError, match=f"process {writer.pid}"):
        await SqliteOutbox.open(path, ["s"], SystemClock(), WIDE)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    async with opened(path) as outbox:
        memory = dict(outbox.recall().values)
        records = await read_all(outbox)
    assert sequences(records) == list(range(1, len(records) + 1))
    assert len(records) >= written
    assert memory == {"last": str(len(records)).encode(), "again": str(len(records)).encode()}


async def test_a_directory_of_somebody_else_is_left_alone(path: Path) -> None:
    path.mkdir()
    (path / "letter.txt").write_text("dear")
    with pytest.raises(StateError, match="is not whalebridge's: there are other files in it"):
        await SqliteOutbox.open(path, ["s"], SystemClock(), WIDE)
    assert [file.name for file in path.iterdir()] == ["letter.txt"]


async def test_a_file_is_no_directory(path: Path) -> None:
    path.write_text("")
    with pytest.raises(StateError, match=f"state_dir {path}: Not a directory; name a directory"):
        await SqliteOutbox.open(path, ["s"], SystemClock(), WIDE)


async def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    path.mkdir()
    with sqlite3.connect(path / "outbox.db") as other:
        other.execute("CREATE TABLE recipes (name)")
    other.close()
    with pytest.raises(StateError, match="is another program's"):
        await SqliteOutbox.open(path, ["s"], SystemClock(), WIDE)
    with sqlite3.connect(path / "outbox.db") as other:
        assert other.execute("SELECT name FROM sqlite_schema").fetchall() == [("recipes",)]
    other.close()


# --- formats ---


async def test_a_newer_format_is_refused_and_left_alone(path: Path) -> None:
    async with opened(path) as outbox:
        await outbox.append(Recorder().starts(3))
    with sqlite3.connect(path / "outbox.db") as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    before = (path / "outbox.db").read_bytes()
    with pytest.raises(StateError, match=r"newer whalebridge \(format 99, this one knows 1\); run that"):
        await SqliteOutbox.open(path, ["s"], SystemClock(), WIDE)
    assert (path / "outbox.db").read_bytes() == before


def test_an_older_format_is_brought_up_step_by_step_all_or_nothing() -> None:
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


# --- files that are damaged ---


def garbage(database: Path) -> None:
    database.write_bytes(b"\x13" * 50_000)


def cut(database: Path) -> None:
    database.write_bytes(database.read_bytes()[:9000])


def overwritten(database: Path) -> None:
    data = bytearray(database.read_bytes())
    data[8192:40_000] = os.urandom(len(data[8192:40_000]))
    database.write_bytes(data)


def misunderstood(database: Path) -> None:
    """Nothing that SQLite notices: the content makes no sense."""
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO covers VALUES ('s', 1, 2, 3, 4, 'overflow', x'00')")
    connection.close()


@pytest.mark.parametrize("damage", [garbage, cut, overwritten, misunderstood])
async def test_a_damaged_file_is_set_aside_with_an_alarm(path: Path, damage: Callable[[Path], None]) -> None:
    async with opened(path) as outbox:
        await outbox.append(Recorder().starts(100, size=500), {"key": b"value"})
    damage(path / "outbox.db")
    written = (path / "outbox.db").stat().st_mtime_ns
    damaged = (path / "outbox.db").read_bytes()
    with capture_logs() as logs:
        async with opened(path) as outbox:
            assert outbox.depth("s") == 0
    alarm = next(each for each in logs if each["event"] == "outbox_corrupt")
    aside = Path(alarm["quarantined_as"])
    assert (alarm["log_level"], aside.read_bytes()) == ("critical", damaged)
    async with opened(path) as outbox:  # whoever died before saying it says it now
        recollection = outbox.recall()
        assert (dict(recollection.values), recollection.reset, recollection.last_written) == ({}, True, written)
        await outbox.append(Recorder().starts(1))
    async with opened(path) as outbox:
        assert not outbox.recall().reset


async def test_damage_found_while_running_ends_it_and_is_announced_by_the_next(path: Path) -> None:
    async with opened(path) as outbox:
        await outbox.append(Recorder().starts(5), {"key": b"value"})
        with sqlite3.connect(path / "outbox.db") as connection:
            pass
        connection.close()
    with sqlite3.connect(path / "outbox.db") as connection:
        connection.execute("UPDATE chunks SET documents = x'7b7d'")
    connection.close()
    async with opened(path) as outbox:
        with pytest.raises(StateError, match=r"is damaged .*; it was set aside as outbox.db.corrupt-.*: start"):
            await outbox.read("s", 10)
        with pytest.raises(StateError, match="is damaged"):
            await outbox.append(Recorder().starts(1))
    async with opened(path) as outbox:
        assert outbox.recall().reset


async def test_a_file_that_is_removed_is_noticed(path: Path) -> None:
    """SQLite would go on for ever with a file that nobody finds again."""
    clock = ManualClock()
    async with opened(path, clock=clock) as outbox:
        await outbox.append(Recorder().starts(1))
        (path / "outbox.db").unlink()
        clock.pass_time(61)
        with pytest.raises(StateError, match="was removed while it was in use: start whalebridge again"):
            await outbox.append([])


async def test_a_bug_does_not_leave_anybody_waiting(path: Path, disk: type[FailingDatabase]) -> None:
    async with opened(path) as outbox:
        disk.fails_before = sqlite3.ProgrammingError("a bug")
        with pytest.raises(sqlite3.ProgrammingError):
            await outbox.append(Recorder().starts(1))
        with pytest.raises(sqlite3.ProgrammingError):
            await outbox.append(Recorder().starts(1))
        with pytest.raises(sqlite3.ProgrammingError):
            await outbox.read("s", 1)


# --- disks that fail ---


class FailingDatabase(Database):
    """Fails to write where a test says so: before anything is written, or after all of it is."""

    fails_before: sqlite3.Error | None = None
    fails_after: sqlite3.Error | None = None
    opened = 0
    written: list[Writing] = []  # noqa: RUF012 (reset by the fixture)

    def __init__(self, path: Path, *, check: bool) -> None:
        type(self).opened += 1
        super().__init__(path, check=check)

    def write(self, writing: Writing) -> None:
        if self.fails_before is not None:
            raise self.fails_before
        super().write(writing)
        self.written.append(writing)
        if self.fails_after is not None:
            raise self.fails_after


def io_error(code: int, text: str) -> sqlite3.Error:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> type[FailingDatabase]:
    disk = type("Disk", (FailingDatabase,), {"written": []})
    monkeypatch.setattr(store, "Database", disk)
    return disk


async def settled(fits: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not fits():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("moment", ["fails_before", "fails_after"])
async def test_where_a_write_fails_it_is_made_again_on_a_new_connection(
    path: Path, disk: type[FailingDatabase], moment: str
) -> None:
    """fails_after: the fsync failed; nobody knows whether it is on the disk, and it must not be there twice."""
    clock, recorder = ManualClock(), Recorder()
    async with opened(path, clock=clock) as outbox:
        await outbox.append(recorder.starts(2))
        setattr(disk, moment, io_error(sqlite3.SQLITE_IOERR | (4 << 8), "disk I/O error"))
        before = disk.opened
        with capture_logs() as logs:
            appending = asyncio.create_task(outbox.append(recorder.starts(2), {"key": b"value"}))
            await settled(lambda: clock.asleep)
            assert outbox.trouble == f"{path}/outbox.db: disk I/O error; look after its disk"
            assert outbox.depth("s") == 2, "nothing of it is handed out"
            for _ in range(5):
                clock.pass_time(10)
                await settled(lambda: clock.asleep)
            assert not appending.done()
            setattr(disk, moment, None)
            clock.pass_time(10)
            await appending
        assert outbox.trouble is None
        assert disk.opened > before + 5
        assert sequences(await read_all(outbox)) == [1, 2, 3, 4]
        assert [each["event"] for each in logs] == ["outbox_write_failed", "outbox_recovered"]
    async with opened(path) as outbox:
        assert dict(outbox.recall().values) == {"key": b"value"}
        assert outbox.depth("s") == 0


async def test_appends_that_arrive_during_a_commit_share_the_next(path: Path, disk: type[FailingDatabase]) -> None:
    recorder = Recorder()
    async with opened(path) as outbox:
        await outbox.append(recorder.starts(1))
        disk.written.clear()
        await asyncio.gather(*(outbox.append(recorder.starts(2), {str(number): b""}) for number in range(20)))
    assert 1 <= len(disk.written) <= 3
    assert sum(chunk.number for writing in disk.written for chunk in writing.chunks) == 40
    assert len({key for writing in disk.written for key in writing.memory}) == 20


async def test_closing_does_not_wait_for_a_disk_that_fails(path: Path, disk: type[FailingDatabase]) -> None:
    recorder = Recorder()
    outbox = await SqliteOutbox.open(path, ["s"], SystemClock(), WIDE)
    disk.fails_before = io_error(sqlite3.SQLITE_FULL, "database or disk is full")
    appending = asyncio.create_task(outbox.append(recorder.starts(1)))
    await settled(lambda: outbox.trouble)
    with capture_logs() as logs:
        async with asyncio.timeout(30):
            await outbox.close()
    assert [each["event"] for each in logs] == ["outbox_close_failed"]
    appending.cancel()


# --- dead letters ---


async def test_refused_records_are_kept_for_a_person_to_see(path: Path) -> None:
    recorder = Recorder()
    appended = recorder.starts(4)
    async with opened(path) as outbox:
        await outbox.append(appended)
        await outbox.read("s", 10)
        await outbox.refuse("s", {(appended[2].epoch, 3)}, "the message is too large")
        await outbox.read("s", 10)
        await outbox.refuse("s", {(appended[0].epoch, 1)}, "no")
    letters = [msgspec.json.decode(line) for line in (path / "dead-letters.jsonl").read_bytes().splitlines()]
    assert [(each["sink"], each["reason"], each["record"]["sequence"]) for each in letters] == [
        ("s", "the message is too large", 3),
        ("s", "no", 1),
    ]
    assert letters[0]["record"] == msgspec.json.decode(appended[2].data)
