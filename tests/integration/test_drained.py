"""P8 while a broker is dead: a burst fills neither our memory nor containerd's, and all of it arrives afterwards."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from aiokafka.errors import KafkaError

from tests.bridge_process import BridgeProcess, transitions
from tests.integration.delivery import check_whole, documents, in_order, wait_for, without_heartbeats
from tests.scale import scaled
from tests.testbed.containerd import Containerd
from tests.testbed.flood import COMPONENTS as FLOOD
from tests.testbed.flood import PHASES, create, flood
from tests.testbed.kafka import Kafka
from tests.testbed.process import freeze

EVENTS = scaled(part=40_000, full=100_000)
CONTAINERS = 100
MOST_OURS = 200  # MiB, peak, imports and all; 87 to 90 were seen
LEAST_UNREAD = 250  # bytes that containerd holds at the least for an event that nobody reads

pytestmark = pytest.mark.parametrize("fresh_engine", ["2.4"], indirect=True)


def test_a_burst_while_kafka_is_dead(
    fresh_engine: Callable[[], Containerd],
    fresh_kafka: Callable[..., Kafka],
    tmp_path: Path,
    require: Callable[..., None],
) -> None:
    require(*FLOOD)
    engine, kafka = fresh_engine(), fresh_kafka()
    kafka.kill()
    create(engine, CONTAINERS)
    sink = f"kafka://{kafka.bootstrap_of('plaintext')}/burst"
    written: list[bytes] = []

    def complete() -> bool:
        written[:] = values(kafka)
        return len(transitions(documents(written))) == EVENTS + 4_000

    with BridgeProcess(engine.address, tmp_path, sinks=[sink], state_dir=tmp_path / "state") as bridge:
        bridge.wait_said("synced")
        flood(engine, events=4_000, containers=CONTAINERS, prefix="warm-")  # containerd's heap has grown by then
        before = memory(engine.pid, "VmRSS")
        sent = flood(engine, events=EVENTS, containers=CONTAINERS)
        grown = memory(engine.pid, "VmRSS") - before
        ours = memory(bridge.process.pid, "VmHWM")
        kafka.start()
        # The next attempt at Kafka may be 30 s away.
        wait_for(lambda: len(values(kafka)) > EVENTS, "the first records", seconds=120)
        wait_for(complete, "all of them", seconds=120)
        undrained = growth_unread(engine, bridge)
    records = documents(written)
    check_whole(records)
    assert in_order(written)
    assert len(set(written)) == len(written), "nothing was sent twice: Kafka was dead, not slow"
    lives = Counter(each["type"] for each in transitions(records) if each["id"].startswith("flooded/flood-"))
    assert lives == dict.fromkeys(("started", "paused", "unpaused", "exited"), sent.events // PHASES)
    assert ours < MOST_OURS, ours
    assert grown < undrained / 2, (grown, undrained)
    assert undrained * 2**20 > EVENTS * LEAST_UNREAD, "an unread stream shows in containerd's memory"


def memory(pid: int, which: str) -> float:
    """Resident memory of a process in MiB: VmRSS now, VmHWM at the most."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def growth_unread(engine: Containerd, bridge: BridgeProcess) -> float:
    """What the same burst does to containerd's memory while the bridge, frozen, reads nothing."""
    before = memory(engine.pid, "VmRSS")
    freeze(bridge.process.pid)
    try:
        flood(engine, events=EVENTS, containers=CONTAINERS, prefix="unread-")
        return memory(engine.pid, "VmRSS") - before
    finally:
        os.kill(bridge.process.pid, signal.SIGCONT)


def values(kafka: Kafka) -> list[bytes]:
    try:
        return without_heartbeats(record.value or b"" for record in kafka.admin.records("burst"))
    except KafkaError:  # there is no topic yet, or a broker that is too busy has lost its place for a moment
        return []
