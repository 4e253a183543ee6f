"""Measure the memory of pending calls of `Tasks.Wait`: `python -m tests.bench.exit_waits`.

A simulated containerd in another process has the tasks; the waits are those of the watch.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import os
import re
import tempfile
from pathlib import Path

from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.core.containerd_model import ContainerKey
from bridge.core.label_rules import LabelRules
from bridge.watch.exit_waits import ExitWaits
from tests.eventually import eventually
from tests.simulator.containerd import SimulatedContainerd

SETTLE_SECONDS = 10.0  # until all calls are pending


def keys(waits: int) -> list[ContainerKey]:
    return [ContainerKey("default", f"{number:064x}") for number in range(waits)]


def serve(path: str, waits: int) -> None:
    """Simulate a containerd in which the tasks run."""

    async def run() -> None:
        async with SimulatedContainerd(path) as containerd:
            for key in keys(waits):
                containerd.state.run(key)
            await asyncio.Event().wait()

    asyncio.run(run())


def resident_kib() -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1])


async def measure(path: str, waits: int) -> float:
    """Return the KiB of one wait."""
    async with ContainerdClient(path, LabelRules.keep_all()) as client:
        await client.engine()
        exit_waits = ExitWaits(client.wait_calls(), SystemClock(), lambda *_: None, lambda *_: False)
        tasks = keys(waits)
        gc.collect()
        before = resident_kib()
        for pid, key in enumerate(tasks, 1):
            exit_waits.add(key, pid)
        await asyncio.sleep(SETTLE_SECONDS)
        gc.collect()
        growth = resident_kib() - before
        exit_waits.close()
    return growth / waits


def main() -> None:
    """Print the memory of one wait."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waits", type=int, default=10_000, help="pending calls (default: 10,000)")
    waits = parser.parse_args().waits
    with tempfile.TemporaryDirectory(prefix="whalebridge-") as directory:
        path = f"{directory}/c.sock"
        containerd = multiprocessing.get_context("spawn").Process(target=serve, args=(path, waits), daemon=True)
        containerd.start()
        eventually(lambda: os.path.exists(path), "the simulated containerd")
        print(f"{asyncio.run(measure(path, waits)):.2f} KiB for each of {waits} waits")
        containerd.terminate()
        containerd.join()


if __name__ == "__main__":
    main()
