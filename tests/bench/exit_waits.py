"""Measure the memory of waits for exits, in the bridge or in the proxy: `python -m tests.bench.exit_waits [--proxy]`.

A simulated containerd in another process has the tasks; the waits are those of the watch.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.core.label_rules import LabelRules
from bridge.watch.exit_waits import ExitWaits
from tests.bench.simulated_node import keys, simulated_node
from tests.bench.usage import resident_bytes
from tests.proxy_process import ProxyProcess

SETTLE_SECONDS = 10.0  # until all calls are pending


async def measure(path: str, waits: int, memory: Callable[[], int]) -> float:
    """Return by how many KiB each wait makes the ``memory`` grow."""
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
    parser.add_argument("--waits", type=int, default=10_000, help="pending waits (default: 10,000)")
    parser.add_argument("--proxy", action="store_true", help="wait through the proxy, and measure its memory")
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="whalebridge-"))
        path = f"{directory}/c.sock"
        node = stack.enter_context(simulated_node(path, options.waits))

        def own_memory() -> int:
            gc.collect()
            return resident_bytes([os.getpid()]) - resident_bytes([node])  # without its child

        if options.proxy:
            proxy = stack.enter_context(ProxyProcess(path, Path(directory)))
            size = measure(proxy.address, options.waits, lambda: resident_bytes([proxy.process.pid]))
        else:
            size = measure(path, options.waits, own_memory)
        print(f"{asyncio.run(size):.2f} KiB for each of {options.waits} waits")


if __name__ == "__main__":
    main()
