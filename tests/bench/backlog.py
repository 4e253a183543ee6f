"""Drain a backlog: whalebridge delivers what it has collected while its broker was suspended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.pipelines import Values, whalebridge
from tests.bench.usage import cpu_seconds
from tests.eventually import eventually
from tests.testbed.containerd import Containerd
from tests.testbed.flood import flood
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats
from tests.testbed.server import Servers

RECORDS = 100_000
CONTAINERS = 100
_COLLECT_SECONDS = 5.0  # after the last event, until it is in the outbox
_DRAIN_SECONDS = 300.0
_POLL_SECONDS = 0.1


def drain_to_kafka(engine: Containerd, kafka: Kafka, directory: Path, code: Path, name: str) -> Values:
    """Return the rate and the CPU time of draining to a topic."""
    kafka.admin.create_topic(name)
    sink = f"kafka://{kafka.bootstrap}/{name}"
    return _drain(engine, kafka, sink, lambda: kafka.admin.end_offset(name), directory / name, code)


def drain_to_jetstream(engine: Containerd, nats: Nats, directory: Path, code: Path, name: str) -> Values:
    """Return the rate and the CPU time of draining to a stream."""

    def stored() -> int:
        return int(nats.monitor("jsz")["messages"])

    before = stored()
    sink = f"{nats.urls[0]}/{name}"
    return _drain(engine, nats, sink, lambda: stored() - before, directory / name, code)


def _drain(
    engine: Containerd, servers: Servers, sink: str, stored: Callable[[], int], directory: Path, code: Path
) -> Values:
    with whalebridge(engine.address, sink, directory, code) as bridge:
        eventually(stored, "the first snapshot")
        before = stored()
        servers.suspend()
        flood(engine, events=RECORDS, containers=CONTAINERS, prefix=f"{directory.name}-")
        time.sleep(_COLLECT_SECONDS)
        cpu = cpu_seconds(bridge.pids)
        servers.resume()
        eventually(lambda: stored() > before, "the first record of the backlog")
        began, first = time.monotonic(), stored()
        while stored() < before + RECORDS:
            bridge.check()
            if time.monotonic() > began + _DRAIN_SECONDS:
                raise TimeoutError(f"{before + RECORDS - stored():,} records are missing after {_DRAIN_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)
        seconds = time.monotonic() - began
        cpu = cpu_seconds(bridge.pids) - cpu
    return {"records/s": (before + RECORDS - first) / seconds, "CPU/record (us)": cpu / RECORDS * 1e6}
