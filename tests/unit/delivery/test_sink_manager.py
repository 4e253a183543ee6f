"""Test that a reload replaces only changed sinks, and that a new sink continues at the cursor of the previous sink."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge.clock import SystemClock
from bridge.core.errors import DisconnectedError, FatalError
from bridge.core.records import Record, Watermark
from bridge.delivery import sink_manager
from bridge.delivery.heartbeats import HeartbeatFactory
from bridge.delivery.sink_manager import SinkManager
from bridge.outbox.outbox import StoredOutbox
from bridge.task_groups import task_group
from config.settings import Settings, load
from config.sinks import FileSettings
from sinks import factory
from tests.eventually import eventually_async
from tests.outboxes import open_outbox
from tests.records import RecordFactory
from tests.testbed.server import HOST, free_port

pytestmark = pytest.mark.real_time


def settings(directory: Path, heartbeat: dict[str, Any] | None = None, **first: Any) -> Settings:
    """Return settings with two file sinks."""
    sinks = {
        name: {"type": "file", "path": str(directory / f"{name}.jsonl"), **changed}
        for name, changed in (("first", first), ("second", {}))
    }
    return load({"sinks": sinks} | ({"heartbeat": heartbeat} if heartbeat else {}))


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a file; the last line may be incomplete."""
    return [msgspec.json.decode(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


class RunningManager:
    """A sink manager with two sinks and its outbox."""

    def __init__(self, tasks: asyncio.TaskGroup, initial: Settings, outbox: StoredOutbox) -> None:
        clock = SystemClock()
        self.recorder = RecordFactory()
        self.outbox = outbox
        watermark = Watermark(self.recorder.encoder.epoch, 1_795_447_300_000_000_000)
        self.heartbeat_factory = HeartbeatFactory(lambda: watermark, 0.02)
        self.manager = SinkManager(self.outbox, clock, self.heartbeat_factory)
        self.manager.start(tasks, initial, factory.create_sinks(initial, SystemClock()))
        self.tasks = tasks


@contextlib.asynccontextmanager
async def running_manager(initial: Settings) -> AsyncIterator[RunningManager]:
    async with open_outbox(None, "first", "second") as outbox, task_group() as tasks:
        running = RunningManager(tasks, initial, outbox)
        try:
            yield running
            await running.manager.drain(60)
        finally:
            await running.manager.close()


async def test_replaced_sink_continues_at_cursor_of_previous_sink(tmp_path: Path) -> None:
    async with running_manager(settings(tmp_path)) as running:
        await running.outbox.append(running.recorder.started_records(3))
        await eventually_async(lambda: running.outbox.depth("first") == 0)
        before = running.manager.pumps
        await running.manager.reload(settings(tmp_path, path=str(tmp_path / "other.jsonl")))
        assert [new is old for new, old in zip(running.manager.pumps, before, strict=True)] == [False, True]
        await running.outbox.append(running.recorder.started_records(2))
    assert [record["sequence"] for record in lines(tmp_path / "first.jsonl")] == [1, 2, 3]
    assert [record["sequence"] for record in lines(tmp_path / "other.jsonl")] == [4, 5]
    assert [record["sequence"] for record in lines(tmp_path / "second.jsonl")] == [1, 2, 3, 4, 5]


async def test_records_in_flight_are_published_once_when_sink_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.delivery.pump.QUIESCE_SECONDS", 60)
    written, acknowledge = asyncio.Event(), asyncio.Event()
    async with running_manager(settings(tmp_path)) as running:
        (first, _) = running.manager.pumps
        publish = first._sink.publish

        async def slow(batch: Sequence[Record]) -> None:
            await publish(batch)
            written.set()
            await acknowledge.wait()

        monkeypatch.setattr(first._sink, "publish", slow)
        await running.outbox.append(running.recorder.started_records(3))
        await written.wait()
        reloading = asyncio.create_task(running.manager.reload(settings(tmp_path, max_files=2)))
        await running.outbox.append(running.recorder.started_records(2))
        acknowledge.set()
        await reloading
    assert [record["sequence"] for record in lines(tmp_path / "first.jsonl")] == [1, 2, 3, 4, 5]


async def test_failing_sink_is_replaced_by_working_sink(tmp_path: Path) -> None:
    async with running_manager(settings(tmp_path, path=str(tmp_path / "missing" / "first.jsonl"))) as running:
        await running.outbox.append(running.recorder.started_records(3))
        await eventually_async(lambda: running.outbox.depth("second") == 0)
        await running.manager.reload(settings(tmp_path))
    assert [record["sequence"] for record in lines(tmp_path / "first.jsonl")] == [1, 2, 3]


async def test_sink_is_replaced_when_secret_changes(tmp_path: Path) -> None:
    """Reload with a changed password file; the server need not exist."""
    password = tmp_path / "password"
    password.write_text("one")
    auth = {"user": "bridge", "password_file": str(password)}
    sink = {"type": "nats", "servers": ["127.0.0.1:1"], "subject_prefix": "s", "auth": auth}
    initial = load({"sinks": {"first": sink}})
    async with open_outbox(None, "first") as outbox, task_group() as tasks:
        manager = SinkManager(outbox, SystemClock(), HeartbeatFactory(lambda: None, 60))
        manager.start(tasks, initial, factory.create_sinks(initial, SystemClock()))
        (before,) = manager.pumps
        await manager.reload(initial)
        assert manager.pumps == [before]
        for secret in ("two", None):
            password.unlink() if secret is None else password.write_text(secret)
            await manager.reload(initial)
            (after,) = manager.pumps
            assert after is not before
            before = after
        await manager.drain(0.01)
        await manager.close()


async def test_sinks_are_unchanged_when_one_new_sink_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = settings(tmp_path, path=str(tmp_path / "other.jsonl"))
    nats = load({"sinks": ["second=nats://h:4222/s"]}).sinks
    monkeypatch.setitem(sys.modules, "sinks.nats.sink", None)  # as if the NATS library were not installed
    async with running_manager(settings(tmp_path)) as running:
        before = running.manager.pumps
        with pytest.raises(FatalError, match="nats"):
            await running.manager.reload(changed.model_copy(update={"sinks": changed.sinks | nats}))
        assert all(new is old for new, old in zip(running.manager.pumps, before, strict=True))


async def test_sink_manager_reload_returns_whether_sinks_changed(tmp_path: Path) -> None:
    async with running_manager(settings(tmp_path)) as running:
        assert not await running.manager.reload(settings(tmp_path))
        assert await running.manager.reload(settings(tmp_path, path=str(tmp_path / "other.jsonl")))


async def test_heartbeat_interval_is_kept_when_switched_off(tmp_path: Path) -> None:
    async with running_manager(settings(tmp_path, heartbeats=True)) as running:
        await running.manager.reload(settings(tmp_path, {"interval": "5m"}, heartbeats=True))
        await running.manager.reload(settings(tmp_path, {"interval": "off"}, heartbeats=True))
        assert running.heartbeat_factory.interval == 300


async def test_heartbeats_start_and_stop_with_setting(tmp_path: Path) -> None:
    path = tmp_path / "first.jsonl"
    async with running_manager(settings(tmp_path)) as running:
        await running.outbox.append(running.recorder.started_records(1))
        await running.manager.reload(settings(tmp_path, heartbeats=True))
        running.heartbeat_factory.interval = 0.02  # shorter than the settings allow
        await running.outbox.append(running.recorder.started_records(1))
        await eventually_async(lambda: any(record["type"] == "heartbeat" for record in lines(path)))
        await running.manager.reload(settings(tmp_path))
        before = lines(path)
        await running.outbox.append(running.recorder.started_records(1))
        await eventually_async(lambda: running.outbox.depth("first") == 0)
    assert [record["type"] for record in lines(path)[len(before) :]] == ["started"]
    assert {record["type"] for record in lines(tmp_path / "second.jsonl")} == {"started"}


async def test_shutdown_incomplete_is_logged_when_drain_times_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    initial = settings(tmp_path, path=str(tmp_path / "missing" / "first.jsonl"))
    async with open_outbox(None, "first", "second") as outbox, task_group() as tasks:
        running = RunningManager(tasks, initial, outbox)
        await running.outbox.append(running.recorder.started_records(3))
        await eventually_async(lambda: running.outbox.depth("second") == 0)
        await running.manager.drain(0.01)
        await running.manager.close()
    assert "shutdown_incomplete" in capsys.readouterr().out


async def test_fault_45_failed_sink_holds_up_no_other(tmp_path: Path) -> None:
    """The first sink's path is a directory, until a reload."""
    (tmp_path / "first.jsonl").mkdir()
    async with running_manager(settings(tmp_path)) as running:
        await running.outbox.append(running.recorder.started_records(3))
        await eventually_async(lambda: running.outbox.depth("second") == 0)
        (first, second) = running.manager.pumps
        await eventually_async(lambda: first.state == "failed")
        assert second.state == "ok"
        (tmp_path / "first.jsonl").rmdir()
        assert await running.manager.reload(settings(tmp_path))  # without a change
    assert [record["sequence"] for record in lines(tmp_path / "first.jsonl")] == [1, 2, 3]


class Disconnected:
    """A sink whose reader has gone."""

    async def start(self) -> None:
        raise DisconnectedError("the reader has gone")

    async def publish(self, _: Sequence[Record]) -> None:
        raise AssertionError

    async def close(self) -> None:
        """Do nothing."""


async def test_bridge_ends_only_when_last_reader_is_gone(tmp_path: Path) -> None:
    initial = settings(tmp_path)
    async with open_outbox(None, "first", "second") as outbox, task_group() as tasks:
        manager = SinkManager(outbox, SystemClock(), HeartbeatFactory(lambda: None, 60))
        manager.start(tasks, initial, factory.create_sinks(initial, SystemClock()) | {"first": Disconnected()})
        await outbox.append(RecordFactory().started_records(3))
        await eventually_async(lambda: outbox.depth("second") == 0 and manager.pumps[0].disconnected)
        await manager.drain(60)
        await manager.close()

    async def run_without_readers() -> None:
        async with open_outbox(None, "first", "second") as outbox, task_group() as tasks:
            manager = SinkManager(outbox, SystemClock(), HeartbeatFactory(lambda: None, 60))
            manager.start(tasks, initial, {"first": Disconnected(), "second": Disconnected()})

    with pytest.raises(DisconnectedError):
        await run_without_readers()


class SmallBatches(FileSettings):
    max_batch_records: int = 2


async def test_sink_setting_limits_records_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    initial = settings(tmp_path)
    limited = SmallBatches(path=str(tmp_path / "first.jsonl"))
    initial = initial.model_copy(update={"sinks": initial.sinks | {"first": limited}})
    sizes: dict[str, list[int]] = {"first": [], "second": []}
    async with open_outbox(None, *sizes) as outbox, task_group() as tasks:
        await outbox.append(RecordFactory().started_records(5))
        sinks = factory.create_sinks(initial, SystemClock())
        for name, sink in sinks.items():

            async def count(batch: Sequence[Record], name: str = name) -> None:
                sizes[name].append(len(batch))

            monkeypatch.setattr(sink, "publish", count)
        manager = SinkManager(outbox, SystemClock(), HeartbeatFactory(lambda: None, 60))
        manager.start(tasks, initial, sinks)
        await manager.drain(60)
        await manager.close()
    assert sizes == {"first": [2, 2, 1], "second": [5]}


async def test_batch_of_many_slow_requests_is_not_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_manager, "ATTEMPT_TIMEOUT_MARGIN", 0.2)
    received, ended = list[bytes](), asyncio.Event()

    async def respond_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # at the end
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"POST"):
                    length = head.partition(b"Content-Length: ")[2].split()[0]
                    received.append(await reader.readexactly(int(length)))
                    await asyncio.sleep(0.4)
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        ended.set()

    port = free_port()
    initial = load({"sinks": {"main": {"type": "http", "url": f"http://{HOST}:{port}/", "timeout": "1s"}}})
    async with await asyncio.start_server(respond_slowly, HOST, port), open_outbox(None, "main") as outbox:
        published = RecordFactory().started_records(5)
        await outbox.append(published)
        manager = SinkManager(outbox, SystemClock(), HeartbeatFactory(lambda: None, 60))
        async with task_group() as tasks:
            manager.start(tasks, initial, factory.create_sinks(initial, SystemClock()))
            (pump,) = manager.pumps
            await eventually_async(lambda: not pump.backlog)
            await manager.drain(1)
        await manager.close()
        await ended.wait()
    assert received == [each.data for each in published]
    assert pump.failures == 0
