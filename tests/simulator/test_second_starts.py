"""The bridge is started again with what it left: the same containerd or another, the same boot or the next."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.core.identity import Scope, everything
from bridge.core.labels import LabelRules
from bridge.core.model import ContainerKey, Instant
from bridge.core.time import SECOND
from bridge.outbox.bounds import Bounds
from bridge.outbox.sqlite import SqliteOutbox
from bridge.watch import Watch, WatchSettings
from tests.bridge_process import Document, check_lives, fold, transitions
from tests.eventually import eventually_async
from tests.simulator.containerd import SimulatedContainerd

WIDE = Bounds(max_records=1_000_000, max_bytes=1 << 30, max_age=7 * 24 * 3600)
WEB, DB, NEW = ContainerKey("shop", "web"), ContainerKey("shop", "db"), ContainerKey("default", "new")
BOOT, NEXT_BOOT = "5f3c9a1e-0000", "77777777-0000"
HOUR = 3600 * SECOND


class SetClock(SystemClock):
    """The real clock, but that somebody has set the wall clock."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def now(self) -> Instant:
        now = super().now()
        return Instant(now.wall + self._offset, now.monotonic)


class Node:
    """A host with a containerd and a bridge, which is started and stopped; all that it ever told."""

    def __init__(self, folder: Path) -> None:
        self.state_dir = folder / "state"
        self.containerd = SimulatedContainerd(folder / "c.sock")
        self.records: list[Document] = []

    @contextlib.asynccontextmanager
    async def bridge(
        self,
        *,
        boot: str = BOOT,
        host: str = "node-1",
        offset: int = 0,
        scope: str = "",
        rules: LabelRules | None = None,
        namespaces: Callable[[str], bool] = lambda _: True,
        in_scope: Scope = everything,
    ) -> AsyncIterator[None]:
        """Run a bridge until it has told its first snapshot, and then for as long as the test likes."""
        clock, before = SetClock(offset), len(self.records)
        outbox = await SqliteOutbox.open(self.state_dir, ["reader"], clock, WIDE)
        source = ContainerdClient(self.containerd.address, LabelRules.keep_all(), scope=in_scope)
        settings = WatchSettings(
            host=host,
            namespaces=namespaces,
            in_scope=in_scope,
            rules=rules or LabelRules.keep_all(),
            scope=scope,
        )
        watch = asyncio.create_task(Watch(source, outbox, clock, settings, boot).run())
        reading = asyncio.create_task(self._read(outbox))
        try:
            await eventually_async(lambda: self._live(host, before))
            yield
        finally:
            for task in (watch, reading):
                task.cancel()
                await asyncio.wait([task])
            while outbox.depth("reader"):
                await self._take(outbox)
            await source.close()
            await outbox.close()

    def _live(self, host: str, before: int) -> bool:
        source = (host, self.containerd.id)
        told = (each for each in self.records[before:] if each["type"] == "snapshot_completed")
        return any((each["host"], each["engine"]["id"]) == source for each in told)

    async def _read(self, outbox: SqliteOutbox) -> None:
        while True:
            await self._take(outbox)

    async def _take(self, outbox: SqliteOutbox) -> None:
        batch = await outbox.read("reader", 100)
        self.records += [msgspec.json.decode(record.data) for record in batch]
        await outbox.acknowledge("reader", batch)

    def epochs(self) -> list[list[Document]]:
        """The records by epoch, which must be in order and gapless."""
        epochs: dict[int, list[Document]] = {}
        for record in self.records:
            epochs.setdefault(record["epoch"], []).append(record)
        assert list(epochs) == sorted(epochs)
        for records in epochs.values():
            assert [each["sequence"] for each in records] == list(range(1, len(records) + 1))
        return list(epochs.values())

    def told(self) -> list[tuple[str, str, str]]:
        """The last epoch's transitions and rows."""
        return [
            (each["type"], each["id"], each["container"]["incarnation"]) for each in self.epochs()[-1] if each["id"]
        ]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    async with node.containerd:
        yield node


def life(pid: int, boot: str = BOOT) -> str:
    return f"{boot[:8]}-{pid}"


async def two_containers(node: Node) -> tuple[int, int]:
    """Run the bridge while two containers are started; return their pids."""
    state = node.containerd.state
    async with node.bridge():
        pids = (state.run(WEB, {"password": "x", "tier": "front"}), state.run(DB, {}))
        await eventually_async(lambda: len(transitions(node.records)) == 2)
    return pids


async def test_what_happened_meanwhile_is_told_with_reason_and_interval(node: Node) -> None:
    web, db = await two_containers(node)
    state = node.containerd.state
    state.exit(WEB)
    state.delete_task(WEB)
    new = state.run(NEW, {})
    async with node.bridge():
        pass
    first, second = node.epochs()
    assert sorted(node.told()) == [
        ("exited", "shop/web", life(web)),
        ("present", "new", life(new)),
        ("present", "shop/db", life(db)),
        ("started", "new", life(new)),
    ]
    frame = second[0]["snapshot"]
    assert frame["reason"] == "start"
    assert first[0]["snapshot"]["until"] < frame["since"] < frame["until"]
    assert frame["previous"] == {"epoch": first[0]["epoch"], "sequence": len(first)}
    assert first[0]["snapshot"]["previous"] is None
    check_lives(node.records)


async def test_nothing_is_told_twice_and_incarnations_stay(node: Node) -> None:
    web, db = await two_containers(node)
    for _ in range(3):
        async with node.bridge():
            pass
        assert sorted(node.told()) == [("present", "shop/db", life(db)), ("present", "shop/web", life(web))]


async def test_the_next_boot_ends_every_life(node: Node) -> None:
    web, db = await two_containers(node)
    state = node.containerd.state
    for key in (WEB, DB):
        state.exit(key)
        state.delete_task(key)
    again = state.create_task(WEB)
    state.start(WEB)
    async with node.bridge(boot=NEXT_BOOT):
        pass
    assert sorted(node.told()) == [
        ("exited", "shop/db", life(db)),
        ("exited", "shop/web", life(web)),
        ("present", "shop/web", life(again, NEXT_BOOT)),
        ("started", "shop/web", life(again, NEXT_BOOT)),
    ]
    async with node.bridge(boot=NEXT_BOOT):
        pass
    assert node.told() == [("present", "shop/web", life(again, NEXT_BOOT))]
    check_lives(node.records)


async def test_another_engine_ends_the_lives_of_the_one_before_under_its_name(node: Node) -> None:
    web, db = await two_containers(node)
    old, last = node.containerd.id, len(node.records)
    node.containerd.id = "another"
    async with node.bridge():
        pass
    _, ended, begun = node.epochs()
    assert {each["engine"]["id"] for each in ended} == {old}
    assert [each["type"] for each in ended] == ["snapshot_started", "exited", "exited", "snapshot_completed"]
    assert ended[0]["snapshot"]["previous"] == {"epoch": node.records[0]["epoch"], "sequence": last}
    assert {each["container"]["incarnation"] for each in ended if each["id"]} == {life(web), life(db)}
    assert {each["engine"]["id"] for each in begun} == {"another"}
    assert begun[0]["snapshot"]["previous"] is None
    assert [each["type"] for each in begun if each["id"]] == ["present", "present"]
    node.containerd.id = old
    async with node.bridge():
        pass
    *_, back = node.epochs()
    assert back[0]["snapshot"]["previous"] == {"epoch": ended[0]["epoch"], "sequence": 4}


async def test_another_name_of_the_host_is_another_source_and_nobody_died(node: Node) -> None:
    web, db = await two_containers(node)
    async with node.bridge(host="renamed"):
        pass
    _, ended, begun = node.epochs()
    assert [(each["type"], each["host"]) for each in ended] == [
        ("snapshot_started", "node-1"),
        ("snapshot_completed", "node-1"),
    ]
    assert ended[1]["snapshot"]["containers"] == 0
    assert {each["host"] for each in begun} == {"renamed"}
    assert sorted(node.told()) == [("present", "shop/db", life(db)), ("present", "shop/web", life(web))]


@pytest.mark.parametrize("offset", [-HOUR, 1000 * HOUR])
async def test_epochs_grow_whatever_the_clock_says(node: Node, offset: int) -> None:
    await two_containers(node)
    async with node.bridge(offset=offset):
        pass
    async with node.bridge():
        pass
    first, second, third = (records[0]["epoch"] for records in node.epochs())
    assert first < second < third
    if offset < 0:
        assert second == first + 1
    else:
        assert third == second + 1


async def test_a_namespace_that_is_not_watched_any_more_is_left_out_and_comes_back_as_it_is(node: Node) -> None:
    web, db = await two_containers(node)
    async with node.bridge(scope="less", namespaces=lambda name: name != "shop"):
        node.containerd.state.exit(WEB)
        node.containerd.state.delete_task(WEB)
    assert node.told() == []
    assert fold(node.epochs()[-1]) == {}
    again = node.containerd.state.create_task(WEB)
    node.containerd.state.start(WEB)
    async with node.bridge():
        pass
    assert sorted(node.told()) == [("present", "shop/db", life(db)), ("present", "shop/web", life(again))]
    assert web != again


async def test_containers_that_are_not_published_any_more_are_left_out(node: Node) -> None:
    web, db = await two_containers(node)
    async with node.bridge(scope="less", in_scope=lambda *, id, **_: id != WEB.id):
        pass
    assert node.told() == [("present", "shop/db", life(db))]
    async with node.bridge():
        pass
    assert sorted(node.told()) == [("present", "shop/db", life(db)), ("present", "shop/web", life(web))]


async def test_labels_that_may_not_be_told_any_more_are_not(node: Node) -> None:
    await two_containers(node)
    node.containerd.state.exit(WEB)
    node.containerd.state.delete_task(WEB)
    node.containerd.state.delete(WEB)
    strict = LabelRules(include=["*"], exclude=[], redact=["pass*"])
    async with node.bridge(scope="strict", rules=strict):
        pass
    (exited,) = (each for each in node.epochs()[-1] if each["type"] == "exited")
    assert exited["container"]["labels"] == {"password": "[redacted]", "tier": "front"}


async def test_a_damaged_outbox_is_told_as_that(node: Node) -> None:
    web, db = await two_containers(node)
    (node.state_dir / "outbox.db").write_bytes(b"\x13" * 100_000)
    async with node.bridge(offset=-HOUR):
        pass
    first, second = node.epochs()
    frame = second[0]["snapshot"]
    assert (frame["reason"], frame["since"], frame["previous"]) == ("outbox_reset", None, None)
    assert second[0]["epoch"] > first[0]["epoch"], "although the clock was set back"
    assert sorted(node.told()) == [("present", "shop/db", life(db)), ("present", "shop/web", life(web))]


async def test_a_memory_that_nobody_understands_is_told_as_that(node: Node) -> None:
    await two_containers(node)
    with sqlite3.connect(node.state_dir / "outbox.db") as database:
        database.execute("UPDATE checkpoint SET value = x'c1' WHERE key LIKE 'state%'")
    database.close()
    async with node.bridge():
        pass
    assert node.epochs()[-1][0]["snapshot"]["reason"] == "outbox_reset"
    async with node.bridge():
        pass
    assert node.epochs()[-1][0]["snapshot"]["reason"] == "start"


async def test_without_its_directory_it_is_a_first_start(node: Node) -> None:
    await two_containers(node)
    shutil.rmtree(node.state_dir)
    async with node.bridge():
        pass
    frame = node.epochs()[-1][0]["snapshot"]
    assert (frame["reason"], frame["since"], frame["previous"]) == ("start", None, None)
