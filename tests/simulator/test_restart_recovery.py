"""Restarts of the bridge with its stored state: under the same or another containerd, boot, host name or settings."""

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
from bridge.core.containerd_model import ContainerKey, Instant
from bridge.core.filters import ContainerPredicate, match_all
from bridge.core.label_rules import LabelRules
from bridge.core.time import SECOND
from bridge.outbox.outbox import StoredOutbox
from bridge.watch import ContainerWatch, WatchSettings
from tests.bridge_process import CONTROL_TYPES, RecordDict, check_runs, running_after, transitions
from tests.eventually import eventually_async
from tests.outboxes import open_outbox
from tests.simulator.containerd import SimulatedContainerd

WEB, DB, NEW = ContainerKey("shop", "web"), ContainerKey("shop", "db"), ContainerKey("default", "new")
BOOT, NEXT_BOOT = "5f3c9a1e-0000", "77777777-0000"
HOUR = 3600 * SECOND


class ShiftedClock(SystemClock):
    """The real clock, with its wall clock shifted."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def now(self) -> Instant:
        now = super().now()
        return Instant(now.wall + self._offset, now.monotonic)


class Node:
    """A host with a containerd and a bridge that is started and stopped, and all records that it published."""

    def __init__(self, directory: Path) -> None:
        self.state_dir = directory / "state"
        self.containerd = SimulatedContainerd(directory / "c.sock")
        self.records: list[RecordDict] = []

    @contextlib.asynccontextmanager
    async def bridge(
        self,
        *,
        boot: str = BOOT,
        host: str = "node-1",
        offset: int = 0,
        filter_fingerprint: str = "",
        rules: LabelRules | None = None,
        namespaces: Callable[[str], bool] = lambda _: True,
        in_scope: ContainerPredicate = match_all,
    ) -> AsyncIterator[None]:
        """Run a bridge during the context, which begins when the first snapshot is published."""
        clock, before = ShiftedClock(offset), len(self.records)
        async with open_outbox(self.state_dir, "reader", clock=clock) as outbox:
            client = ContainerdClient(self.containerd.address, LabelRules.keep_all(), container_filter=in_scope)
            settings = WatchSettings(
                host=host,
                namespace_filter=namespaces,
                container_filter=in_scope,
                label_rules=rules or LabelRules.keep_all(),
                filter_fingerprint=filter_fingerprint,
                selection_fingerprint=filter_fingerprint,
            )
            watch = asyncio.create_task(ContainerWatch(client, outbox, clock, settings, boot).run())
            reading = asyncio.create_task(self._read(outbox))
            try:
                await eventually_async(lambda: self._snapshot_completed(host, before))
                yield
            finally:
                for task in (watch, reading):
                    task.cancel()
                    await asyncio.wait([task])
                while outbox.depth("reader"):
                    await self._read_batch(outbox)
                await client.close()

    def _snapshot_completed(self, host: str, before: int) -> bool:
        source = (host, self.containerd.id)
        completed = (each for each in self.records[before:] if each["type"] == "snapshot_completed")
        return any((each["host"], each["engine"]["id"]) == source for each in completed)

    async def _read(self, outbox: StoredOutbox) -> None:
        while True:
            await self._read_batch(outbox)

    async def _read_batch(self, outbox: StoredOutbox) -> None:
        batch = await outbox.read("reader", 100)
        self.records += [msgspec.json.decode(record.data) for record in batch]
        await outbox.acknowledge("reader", batch)

    def epochs(self) -> list[list[RecordDict]]:
        """Return the records by epoch; check that epochs increase, and that sequences have no gaps."""
        epochs: dict[int, list[RecordDict]] = {}
        for record in self.records:
            epochs.setdefault(record["epoch"], []).append(record)
        assert list(epochs) == sorted(epochs)
        for records in epochs.values():
            assert [each["sequence"] for each in records] == list(range(1, len(records) + 1))
        return list(epochs.values())

    def published(self) -> list[tuple[str, str, str]]:
        """Return type, id and incarnation of the last epoch's transitions and snapshot records."""
        return [
            (each["type"], each["id"], each["container"]["incarnation"]) for each in self.epochs()[-1] if each["id"]
        ]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    async with node.containerd:
        yield node


def incarnation_of(pid: int, boot: str = BOOT) -> str:
    return f"{boot[:8]}-{pid}"


async def two_containers(node: Node) -> tuple[int, int]:
    """Start two containers while the bridge is running; return their pids."""
    state = node.containerd.state
    async with node.bridge():
        pids = (state.run(WEB, {"password": "x", "tier": "front"}), state.run(DB, {}))
        await eventually_async(lambda: len(transitions(node.records)) == 2)
    return pids


async def test_restart_publishes_missed_transitions_and_interval(node: Node) -> None:
    web, db = await two_containers(node)
    state = node.containerd.state
    state.exit(WEB)
    state.delete_task(WEB)
    new = state.run(NEW, {})
    async with node.bridge():
        pass
    first, second = node.epochs()
    assert sorted(node.published()) == [
        ("exited", "shop/web", incarnation_of(web)),
        ("present", "new", incarnation_of(new)),
        ("present", "shop/db", incarnation_of(db)),
        ("started", "new", incarnation_of(new)),
    ]
    snapshot = second[0]["snapshot"]
    assert snapshot["reason"] == "start"
    assert first[0]["snapshot"]["until"] < snapshot["since"] < snapshot["until"]
    assert snapshot["previous"] == {"epoch": first[0]["epoch"], "sequence": len(first)}
    assert first[0]["snapshot"]["previous"] is None
    check_runs(node.records)


async def test_restart_publishes_snapshot_only_when_nothing_changed(node: Node) -> None:
    web, db = await two_containers(node)
    for _ in range(3):
        async with node.bridge():
            pass
        assert sorted(node.published()) == [
            ("present", "shop/db", incarnation_of(db)),
            ("present", "shop/web", incarnation_of(web)),
        ]


async def test_fault_18_host_is_rebooted(node: Node) -> None:
    web, db = await two_containers(node)
    state = node.containerd.state
    for key in (WEB, DB):
        state.exit(key)
        state.delete_task(key)
    restarted = state.create_task(WEB)
    state.start(WEB)
    async with node.bridge(boot=NEXT_BOOT):
        pass
    assert sorted(node.published()) == [
        ("exited", "shop/db", incarnation_of(db)),
        ("exited", "shop/web", incarnation_of(web)),
        ("present", "shop/web", incarnation_of(restarted, NEXT_BOOT)),
        ("started", "shop/web", incarnation_of(restarted, NEXT_BOOT)),
    ]
    async with node.bridge(boot=NEXT_BOOT):
        pass
    assert node.published() == [("present", "shop/web", incarnation_of(restarted, NEXT_BOOT))]
    check_runs(node.records)


async def test_fault_18_containerd_is_reinstalled(node: Node) -> None:
    web, db = await two_containers(node)
    old, last = node.containerd.id, len(node.records)
    node.containerd.id = "another"
    async with node.bridge():
        pass
    _, previous, current = node.epochs()
    assert {each["engine"]["id"] for each in previous} == {old}
    assert [each["type"] for each in previous] == ["snapshot_started", "exited", "exited", "snapshot_completed"]
    assert previous[0]["snapshot"]["previous"] == {"epoch": node.records[0]["epoch"], "sequence": last}
    assert {each["container"]["incarnation"] for each in previous if each["id"]} == {
        incarnation_of(web),
        incarnation_of(db),
    }
    assert {each["engine"]["id"] for each in current} == {"another"}
    assert current[0]["snapshot"]["previous"] is None
    assert [each["type"] for each in current if each["id"]] == ["present", "present"]
    node.containerd.id = old
    async with node.bridge():
        pass
    *_, back = node.epochs()
    assert back[0]["snapshot"]["previous"] == {"epoch": previous[0]["epoch"], "sequence": 4}


async def test_restart_with_new_host_name_changes_source_without_exits(node: Node) -> None:
    web, db = await two_containers(node)
    async with node.bridge(host="renamed"):
        pass
    _, previous, current = node.epochs()
    assert [(each["type"], each["host"]) for each in previous] == [
        ("snapshot_started", "node-1"),
        ("snapshot_completed", "node-1"),
    ]
    assert previous[1]["snapshot"]["containers"] == 0
    assert {each["host"] for each in current} == {"renamed"}
    assert sorted(node.published()) == [
        ("present", "shop/db", incarnation_of(db)),
        ("present", "shop/web", incarnation_of(web)),
    ]


async def test_restart_of_cloned_machine_leaves_old_source_alone(node: Node) -> None:
    """After a reboot under another host name, the disk may be a clone, and the old host alive."""
    web, db = await two_containers(node)
    async with node.bridge(host="clone", boot=NEXT_BOOT):
        pass
    first, second = node.epochs()
    assert {each["host"] for each in first} == {"node-1"}
    assert {each["host"] for each in second} == {"clone"}
    snapshot = second[0]["snapshot"]
    assert (snapshot["reason"], snapshot["since"], snapshot["previous"]) == ("start", None, None)
    assert sorted(node.published()) == [
        ("present", "shop/db", incarnation_of(db, NEXT_BOOT)),
        ("present", "shop/web", incarnation_of(web, NEXT_BOOT)),
    ]
    node.containerd.state.exit(WEB)
    node.containerd.state.delete_task(WEB)
    async with node.bridge(host="clone", boot=NEXT_BOOT):
        pass
    assert sorted(node.published()) == [
        ("exited", "shop/web", incarnation_of(web, NEXT_BOOT)),
        ("present", "shop/db", incarnation_of(db, NEXT_BOOT)),
    ]


@pytest.mark.parametrize("host", ["node-1", "clone"])
async def test_restart_with_copied_state_directory_repeats_nothing(node: Node, host: str) -> None:
    """The original may have published more since the copy was made, or be alive."""
    web, db = await two_containers(node)
    backup = node.state_dir.with_name("backup")
    shutil.copytree(node.state_dir, backup)
    state = node.containerd.state
    async with node.bridge():
        state.exit(WEB)
        state.delete_task(WEB)
        new = state.run(NEW, {})
        await eventually_async(lambda: len(transitions(node.records)) == 4)
    shutil.rmtree(node.state_dir)
    shutil.copytree(backup, node.state_dir)
    for _ in range(2):
        async with node.bridge(host=host):
            pass
        published = node.published()
    *_, before, restored, last = node.epochs()
    snapshot = restored[0]["snapshot"]
    assert (snapshot["reason"], snapshot["since"], snapshot["previous"]) == ("outbox_reset", None, None)
    assert {each["host"] for each in before} == {"node-1"}
    assert {each["host"] for each in (*restored, *last)} == {host}
    assert [each for each in (*restored, *last) if each["type"] not in ("present", *CONTROL_TYPES)] == []
    assert sorted(published) == [
        ("present", "new", incarnation_of(new)),
        ("present", "shop/db", incarnation_of(db)),
    ]
    assert last[0]["snapshot"]["previous"] == {"epoch": restored[0]["epoch"], "sequence": len(restored)}
    check_runs(node.records)
    assert web != new


@pytest.mark.parametrize("offset", [-HOUR, 1000 * HOUR])
async def test_fault_17_clock_steps_between_starts(node: Node, offset: int) -> None:
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


async def test_restart_skips_excluded_namespace_until_included_again(node: Node) -> None:
    web, db = await two_containers(node)
    async with node.bridge(filter_fingerprint="less", namespaces=lambda name: name != "shop"):
        node.containerd.state.exit(WEB)
        node.containerd.state.delete_task(WEB)
    assert node.published() == []
    assert running_after(node.epochs()[-1]) == {}
    restarted = node.containerd.state.create_task(WEB)
    node.containerd.state.start(WEB)
    async with node.bridge():
        pass
    assert sorted(node.published()) == [
        ("present", "shop/db", incarnation_of(db)),
        ("present", "shop/web", incarnation_of(restarted)),
    ]
    assert web != restarted


async def test_fault_22_outbox_is_corrupt(node: Node) -> None:
    web, db = await two_containers(node)
    (node.state_dir / "outbox.db").write_bytes(b"\x13" * 100_000)
    async with node.bridge(offset=-HOUR):
        pass
    first, second = node.epochs()
    snapshot = second[0]["snapshot"]
    assert (snapshot["reason"], snapshot["since"], snapshot["previous"]) == ("outbox_reset", None, None)
    assert second[0]["epoch"] > first[0]["epoch"], "although the clock was set back"
    assert sorted(node.published()) == [
        ("present", "shop/db", incarnation_of(db)),
        ("present", "shop/web", incarnation_of(web)),
    ]


async def test_restart_reports_outbox_reset_when_checkpoint_is_invalid(node: Node) -> None:
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


async def test_restart_without_state_directory_is_first_start(node: Node) -> None:
    await two_containers(node)
    shutil.rmtree(node.state_dir)
    async with node.bridge():
        pass
    snapshot = node.epochs()[-1][0]["snapshot"]
    assert (snapshot["reason"], snapshot["since"], snapshot["previous"]) == ("start", None, None)
