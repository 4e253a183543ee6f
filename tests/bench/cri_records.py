"""Measure what CRI's records add to the CPU time of a synchronization: `python -m tests.bench.cri_records`.

A simulated containerd in another process stands in for a node: for each pod a sandbox, a running container, and one
that has exited. The synchronizations are those after a restart, alternately without and with CRI: when the ends of the
exited containers are known, and when they fell into the gap.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.containerd.protos import cri_pb2
from bridge.core.containerd_model import ContainerKey
from bridge.core.label_rules import LabelRules
from bridge.core.records import Record
from bridge.watch import ContainerWatch
from tests.eventually import eventually
from tests.simulator import wire
from tests.simulator.containerd import SimulatedContainerd
from tests.unit.watch.fakes import RecordingOutbox, settings

ANNOTATIONS = wire.field(9, b"x" * 1024)  # of a container of CRI, with all else that the bridge does not read

Checkpoint = Mapping[str, bytes | None]


class Node(SimulatedContainerd):
    """A containerd with CRI, whose containers have annotations."""

    async def _cri_containers(self, request: cri_pb2.ListContainersRequest, namespace: str) -> bytes:
        response = await super()._cri_containers(request, namespace)
        assert isinstance(response, cri_pb2.ListContainersResponse)
        return b"".join(wire.field(1, each.SerializeToString() + ANNOTATIONS) for each in response.containers)

    async def _cri_status(self, request: cri_pb2.ContainerStatusRequest, namespace: str) -> bytes:
        response = await super()._cri_status(request, namespace)
        assert isinstance(response, cri_pb2.ContainerStatusResponse)
        return wire.field(1, response.status.SerializeToString() + 2 * ANNOTATIONS)


class SignalingOutbox(RecordingOutbox):
    """An outbox that signals the first records, which are a snapshot."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.appended = asyncio.Event()

    async def append(self, records: Sequence[Record], checkpoint: Checkpoint | None = None) -> None:
        await super().append(records, checkpoint)
        if records:
            self.appended.set()


def serve(path: str, pods: int) -> None:
    """Simulate a node."""

    async def run() -> None:
        async with Node(path) as node:
            node.state.has_cri = True
            for number in range(pods):
                for kind in ("sandbox", "main"):
                    node.state.create_unseen(ContainerKey("k8s.io", f"{kind}-{number:058x}"))
                    node.state.create_task(ContainerKey("k8s.io", f"{kind}-{number:058x}"))
                    node.state.start(ContainerKey("k8s.io", f"{kind}-{number:058x}"))
                node.state.run_unseen(ContainerKey("k8s.io", f"ended-{number:058x}"), 1)
            await asyncio.Event().wait()

    asyncio.run(run())


async def synchronize(path: str, checkpoint: Checkpoint, *, uses_cri: bool) -> tuple[float, Checkpoint, int]:
    """Synchronize once; return the CPU time in milliseconds, the checkpoint and the number of published exits."""
    outbox = SignalingOutbox(checkpoint)
    async with ContainerdClient(path, LabelRules.keep_all()) as client:
        watch = ContainerWatch(client, outbox, SystemClock(), settings(uses_cri=uses_cri), "5f3c9a1e-0000")
        gc.collect()
        begin = time.process_time()
        task = asyncio.create_task(watch.run())
        await outbox.appended.wait()
        milliseconds = (time.process_time() - begin) * 1000
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return milliseconds, outbox.checkpoint, sum(each.type == "exited" for each in outbox.records)


async def measure(path: str, rounds: int) -> None:
    _, known, _ = await synchronize(path, {}, uses_cri=True)
    # Before the gap, the ended containers were unknown.
    unknown = {key: value for key, value in known.items() if "ended-" not in key}
    results: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, checkpoint in (("ends known", known), ("ends in the gap", unknown)):
            for uses_cri in (False, True):
                milliseconds, _, exits = await synchronize(path, checkpoint, uses_cri=uses_cri)
                results[f"{name}, {'with' if uses_cri else 'without'} CRI, {exits} exits"].append(milliseconds)
    for name, values in results.items():
        print(f"{name}: median {statistics.median(values):.0f} ms, {min(values):.0f} to {max(values):.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cri_records", description=__doc__)
    parser.add_argument("--pods", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = f"{directory}/c.sock"
        node = multiprocessing.get_context("spawn").Process(target=serve, args=(path, options.pods))
        node.start()
        try:
            eventually(Path(path).exists, "the node to listen", within=60)
            asyncio.run(measure(path, options.rounds))
        finally:
            node.terminate()
            node.join()


if __name__ == "__main__":
    main()
