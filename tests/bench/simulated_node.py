"""Start-up, snapshots, memory and idle CPU of whalebridge with many running containers, which are simulated."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bridge.core.containerd_model import ContainerKey
from tests.bench.pipelines import Pipeline, Values, whalebridge
from tests.bench.usage import cpu_seconds, resident_bytes
from tests.eventually import eventually
from tests.simulator.containerd import SimulatedContainerd
from tests.testbed.kafka import Kafka

SETTLE_SECONDS = 75.0  # the first audit is due after 30 s, and freed memory is returned after 60 s
IDLE_SECONDS = 30.0
_CONTROL_RECORDS = 2  # of a snapshot: snapshot_started and snapshot_completed


def measure_start(directory: Path, code: Path, name: str) -> Values:
    """Return the CPU time from the start of the process to the first record in a file."""
    address, records = str(directory / f"{name}.sock"), directory / f"{name}.jsonl"
    with simulated_node(address, 0), whalebridge(address, f"file:{records}", directory / name, code) as bridge:
        return {"CPU to the first record (s)": _cpu_when(bridge, lambda: records.exists() and records.stat().st_size)}


def measure_node(kafka: Kafka, containers: int, directory: Path, code: Path, name: str) -> Values:
    """Return what a node with this number of running containers costs, with Kafka as the sink."""
    kafka.admin.create_topic(name)
    address, sink = str(directory / f"{name}.sock"), f"kafka://{kafka.bootstrap}/{name}"
    snapshot = containers + _CONTROL_RECORDS
    with simulated_node(address, containers) as node, whalebridge(address, sink, directory / name, code) as bridge:
        first = _cpu_when(bridge, lambda: kafka.admin.end_offset(name) >= snapshot)
        time.sleep(SETTLE_SECONDS)
        memory, before = resident_bytes(bridge.pids), cpu_seconds(bridge.pids)
        time.sleep(IDLE_SECONDS)
        idle = cpu_seconds(bridge.pids) - before
        before, published = cpu_seconds(bridge.pids), kafka.admin.end_offset(name)
        os.kill(node, signal.SIGHUP)
        reconnect = _cpu_when(bridge, lambda: kafka.admin.end_offset(name) >= published + snapshot) - before
        bridge.check()
    return {
        "CPU to the first snapshot (s)": first,
        "memory (MiB)": memory / 2**20,
        "idle CPU (% of a core)": idle / IDLE_SECONDS * 100,
        "CPU of a reconnect (s)": reconnect,
    }


def _cpu_when(bridge: Pipeline, condition: Callable[[], object]) -> float:
    """Return the CPU time used when the condition holds."""
    eventually(condition, "the records", within=120)
    return cpu_seconds(bridge.pids)


# --- the node ---


def keys(count: int) -> list[ContainerKey]:
    """Return the keys of running containers, with ids as long as containerd's clients make them."""
    return [ContainerKey("k8s.io", f"{number:064x}") for number in range(count)]


def labels(number: int) -> dict[str, str]:
    """Return labels like those of CRI's containers: most of them are the same for many containers."""
    return {
        "io.cri-containerd.kind": "container",
        "io.kubernetes.container.name": "web",
        "io.kubernetes.pod.name": f"web-{number:08x}",
        "io.kubernetes.pod.namespace": f"team-{number % 20}",
        "io.kubernetes.pod.uid": f"{number:032x}",
        "app.kubernetes.io/name": f"service-{number % 100}",
        "app.kubernetes.io/part-of": "shop",
    }


@contextmanager
def simulated_node(address: str, containers: int) -> Iterator[int]:
    """Simulate a containerd with running containers in a process of its own; yield its pid. SIGHUP restarts it."""
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(address, containers), daemon=True)
    process.start()
    try:
        eventually(lambda: os.path.exists(address), "the simulated containerd")
        assert process.pid is not None
        yield process.pid
    finally:
        process.terminate()
        process.join()


def _serve(address: str, containers: int) -> None:
    async def run() -> None:
        async with SimulatedContainerd(address) as containerd:
            for number, key in enumerate(keys(containers)):
                containerd.state.run(key, labels=labels(number))
            restart = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, restart.set)
            while True:
                await restart.wait()
                restart.clear()
                await containerd.restart()

    asyncio.run(run())
