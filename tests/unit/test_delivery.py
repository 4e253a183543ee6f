"""All sinks together: each is replaced by itself, and goes on where the one before was."""

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
from bridge.core.errors import FatalError
from bridge.core.events import Proof, Record
from bridge.delivery import Delivery
from bridge.outbox.memory import MemoryOutbox
from bridge.pump import Heart
from bridge.tasks import together
from config.settings import Settings, load
from sinks import registry
from tests.eventually import eventually_async
from tests.records import Recorder


def settings(folder: Path, heartbeat: dict[str, Any] | None = None, **first: Any) -> Settings:
    """Settings of two files as sinks."""
    sinks = {
        name: {"type": "file", "path": str(folder / f"{name}.jsonl"), **changed}
        for name, changed in (("first", first), ("second", {}))
    }
    return load({"sinks": sinks} | ({"heartbeat": heartbeat} if heartbeat else {}))


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; one may be under way."""
    return [msgspec.json.decode(each) for each in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


class Running:
    """A delivery that runs."""

    def __init__(self, tasks: asyncio.TaskGroup, chosen: Settings) -> None:
        clock = SystemClock()
        self.recorder = Recorder()
        self.outbox = MemoryOutbox(["first", "second"], clock)
        proof = Proof(self.recorder.ledger.epoch, 1_795_447_300_000_000_000)
        self.heart = Heart(lambda: proof, 0.02)
        self.delivery = Delivery(self.outbox, clock, self.heart)
        self.delivery.start(tasks, chosen, registry.make_all(chosen.sinks))
        self.tasks = tasks


@contextlib.asynccontextmanager
async def delivering(chosen: Settings) -> AsyncIterator[Running]:
    async with together() as tasks:
        running = Running(tasks, chosen)
        try:
            yield running
            await running.delivery.drain(60)
        finally:
            await running.delivery.close()


async def test_a_sink_that_is_replaced_goes_on_where_the_one_before_was(tmp_path: Path) -> None:
    async with delivering(settings(tmp_path)) as running:
        await running.outbox.append(running.recorder.starts(3))
        await eventually_async(lambda: running.outbox.depth("first") == 0)
        before = running.delivery.pumps
        await running.delivery.reload(settings(tmp_path, path=str(tmp_path / "other.jsonl")))
        assert [new is old for new, old in zip(running.delivery.pumps, before, strict=True)] == [False, True]
        await running.outbox.append(running.recorder.starts(2))
    assert [each["sequence"] for each in lines(tmp_path / "first.jsonl")] == [1, 2, 3]
    assert [each["sequence"] for each in lines(tmp_path / "other.jsonl")] == [4, 5]
    assert [each["sequence"] for each in lines(tmp_path / "second.jsonl")] == [1, 2, 3, 4, 5]


async def test_what_is_on_its_way_to_a_sink_that_is_replaced_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.pump.SETTLE_SECONDS", 60)
    written, acknowledge = asyncio.Event(), asyncio.Event()
    async with delivering(settings(tmp_path)) as running:
        (first, _) = running.delivery.pumps
        publish = first._sink.publish

        async def slow(batch: Sequence[Record]) -> None:
            await publish(batch)
            written.set()
            await acknowledge.wait()

        monkeypatch.setattr(first._sink, "publish", slow)
        await running.outbox.append(running.recorder.starts(3))
        await written.wait()
        reloading = asyncio.create_task(running.delivery.reload(settings(tmp_path, max_files=2)))
        await running.outbox.append(running.recorder.starts(2))
        acknowledge.set()
        await reloading
    assert [each["sequence"] for each in lines(tmp_path / "first.jsonl")] == [1, 2, 3, 4, 5]


async def test_a_sink_that_never_worked_is_replaced_by_one_that_does(tmp_path: Path) -> None:
    async with delivering(settings(tmp_path, path=str(tmp_path / "missing" / "first.jsonl"))) as running:
        await running.outbox.append(running.recorder.starts(3))
        await eventually_async(lambda: running.outbox.depth("second") == 0)
        await running.delivery.reload(settings(tmp_path))
    assert [each["sequence"] for each in lines(tmp_path / "first.jsonl")] == [1, 2, 3]


async def test_a_sink_whose_secret_is_another_now_is_replaced(tmp_path: Path) -> None:
    """Nobody listens there: what matters is that it is made anew."""
    password = tmp_path / "password"
    password.write_text("one")
    login = {"user": "bridge", "password_file": str(password)}
    sink = {"type": "nats", "servers": ["127.0.0.1:1"], "subject_prefix": "s", "auth": login}
    chosen = load({"sinks": {"first": sink}})
    async with together() as tasks:
        delivery = Delivery(MemoryOutbox(["first"], SystemClock()), SystemClock(), Heart(lambda: None, 60))
        delivery.start(tasks, chosen, registry.make_all(chosen.sinks))
        (before,) = delivery.pumps
        await delivery.reload(chosen)
        assert delivery.pumps == [before]
        for secret in ("two", None):
            password.unlink() if secret is None else password.write_text(secret)
            await delivery.reload(chosen)
            (after,) = delivery.pumps
            assert after is not before
            before = after
        await delivery.drain(0.01)
        await delivery.close()


async def test_where_one_sink_cannot_be_made_none_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = settings(tmp_path, path=str(tmp_path / "other.jsonl"))
    nats = load({"sinks": ["second=nats://h:4222/s"]}).sinks
    monkeypatch.setitem(sys.modules, "sinks.nats.sink", None)  # as where its library is not installed
    async with delivering(settings(tmp_path)) as running:
        before = running.delivery.pumps
        with pytest.raises(FatalError, match="nats"):
            await running.delivery.reload(changed.model_copy(update={"sinks": changed.sinks | nats}))
        assert all(new is old for new, old in zip(running.delivery.pumps, before, strict=True))


async def test_it_is_told_whether_a_sink_was_replaced(tmp_path: Path) -> None:
    async with delivering(settings(tmp_path)) as running:
        assert not await running.delivery.reload(settings(tmp_path))
        assert await running.delivery.reload(settings(tmp_path, path=str(tmp_path / "other.jsonl")))


async def test_an_interval_of_heartbeats_that_is_switched_off_is_not_none_at_all(tmp_path: Path) -> None:
    async with delivering(settings(tmp_path, heartbeats=True)) as running:
        await running.delivery.reload(settings(tmp_path, {"interval": "5m"}, heartbeats=True))
        await running.delivery.reload(settings(tmp_path, {"interval": "off"}, heartbeats=True))
        assert running.heart.interval == 300


async def test_heartbeats_begin_and_end_with_their_setting(tmp_path: Path) -> None:
    path = tmp_path / "first.jsonl"
    async with delivering(settings(tmp_path)) as running:
        await running.outbox.append(running.recorder.starts(1))
        await running.delivery.reload(settings(tmp_path, heartbeats=True))
        running.heart.interval = 0.02  # no setting is that short
        await running.outbox.append(running.recorder.starts(1))
        await eventually_async(lambda: any(each["type"] == "heartbeat" for each in lines(path)))
        await running.delivery.reload(settings(tmp_path))
        told = lines(path)
        await asyncio.sleep(0.05)
    assert lines(path) == told
    assert {each["type"] for each in lines(tmp_path / "second.jsonl")} == {"started"}


async def test_what_is_not_drained_in_time_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with together() as tasks:
        running = Running(tasks, settings(tmp_path, path=str(tmp_path / "missing" / "first.jsonl")))
        await running.outbox.append(running.recorder.starts(3))
        await eventually_async(lambda: running.outbox.depth("second") == 0)
        await running.delivery.drain(0.01)
        await running.delivery.close()
    assert "shutdown_incomplete" in capsys.readouterr().out
