"""Ten thousand running tasks of the simulated containerd, with the real bridge."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bridge.core.containerd_model import ContainerKey
from tests.bridge_process import BridgeProcess, RecordDict, check_stream, running_after, transitions
from tests.simulator.containerd import SimulatedContainerd
from tests.simulator.state import KILLED

KEYS = [ContainerKey(f"ns{number % 3}", f"c{number}") for number in range(10_000)]
MAX_MEMORY_MIB = 256  # 158 were measured


async def test_bridge_tracks_ten_thousand_tasks_in_bounded_memory(tmp_path: Path) -> None:
    address = tmp_path / "c.sock"
    async with SimulatedContainerd(address) as containerd:
        for key in KEYS:
            containerd.state.run(key, labels={"tier": "front", "note": "x" * 200})
        with BridgeProcess(str(address), tmp_path) as bridge:
            await asyncio.to_thread(bridge.wait_synced)
            assert len(running_after(bridge.records())) == len(KEYS)

            for key in KEYS[:1000]:
                containerd.state.exit(key, 3)
                if key.id.endswith("7"):
                    containerd.state.delete_task(key)
                    containerd.state.create_task(key)
                    containerd.state.start(key)
            records = await wait_records(
                bridge, lambda records: len(transitions(records)) == 1100, "the exits and restarts"
            )
            first = len(records)

            for key in KEYS[1000:1500]:
                containerd.state.stop_without_event(key)
                containerd.state.delete_task(key)
            await containerd.restart()
            await wait_records(
                bridge,
                lambda records: len(running_after(records)) == len(KEYS) - 1000 + 100 - 500,
                "the inferred exits",
            )
            records = await wait_records(bridge, lambda records: snapshots(records) >= 2, "the second snapshot")
            memory = peak_memory(bridge.process.pid)
    check_stream(records)
    # On a busy machine, events can arrive so late that a query precedes them.
    assert Counter(map(outcome, transitions(records[:first]))) == {("exited", 3): 1000, ("started", None): 100}
    assert Counter(map(outcome, transitions(records[first:]))) == {("exited", KILLED): 500}
    assert {each["origin"] for each in transitions(records[first:])} == {"inferred"}
    assert memory < MAX_MEMORY_MIB, memory


def outcome(record: RecordDict) -> tuple[str, int | None]:
    return record["type"], record["exit"] and record["exit"]["status"]


def snapshots(records: list[RecordDict]) -> int:
    return sum(each["type"] == "snapshot_completed" for each in records)


async def wait_records(
    bridge: BridgeProcess, predicate: Callable[[list[RecordDict]], object], what: str
) -> list[RecordDict]:
    return await asyncio.to_thread(bridge.wait, predicate, what, 60)


def peak_memory(pid: int) -> float:
    """Return the peak resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) / 1024
