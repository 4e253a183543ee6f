"""Measure the memory of pending calls of `Tasks.Wait`: `python -m tests.bench.exit_waits`.

A simulated containerd in another process has the tasks; the waits are those of the watch.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import tempfile

from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.core.label_rules import LabelRules
from bridge.watch.exit_waits import ExitWaits
from tests.bench.simulated_node import keys, simulated_node
from tests.bench.usage import resident_bytes

SETTLE_SECONDS = 10.0  # until all calls are pending


async def measure(path: str, node: int, waits: int) -> float:
    """Return the KiB of one wait, in this process without its child ``node``."""

    def memory() -> int:
        gc.collect()
        return resident_bytes([os.getpid()]) - resident_bytes([node])

    async with ContainerdClient(path, LabelRules.keep_all()) as client:
        await client.engine()
        exit_waits = ExitWaits(client.wait_calls(), SystemClock(), lambda *_: None, lambda *_: False)
        tasks = keys(waits)
        before = memory()
        for pid, key in enumerate(tasks, 1):
            exit_waits.add(key, pid)
        await asyncio.sleep(SETTLE_SECONDS)
        growth = memory() - before
        exit_waits.close()
    return growth / 1024 / waits


def main() -> None:
    """Print the memory of one wait."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waits", type=int, default=10_000, help="pending calls (default: 10,000)")
    waits = parser.parse_args().waits
    with tempfile.TemporaryDirectory(prefix="whalebridge-") as directory:
        path = f"{directory}/c.sock"
        with simulated_node(path, waits) as node:
            print(f"{asyncio.run(measure(path, node, waits)):.2f} KiB for each of {waits} waits")


if __name__ == "__main__":
    main()
