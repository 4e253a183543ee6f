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
from tests.eventually import eventually
from tests.integration.delivery import check_gapless, deduplicated_records, is_in_order, without_heartbeats
from tests.scale import scaled
from tests.testbed.containerd import Containerd
from tests.testbed.flood import COMPONENTS as FLOOD
from tests.testbed.flood import PHASES, create_containers, flood
from tests.testbed.kafka import Kafka
from tests.testbed.process import suspend_process

EVENTS = scaled(reduced=40_000, full=100_000)
CONTAINERS = 100
MAX_BRIDGE_MIB = 200  # MiB, peak, imports and all; 87 to 90 were seen
MIN_UNREAD_MIB = 250  # bytes that containerd holds at the least for an event that nobody reads

pytestmark = pytest.mark.parametrize("engine_factory", ["2.4"], indirect=True)


def test_burst_is_buffered_in_bounded_memory_when_kafka_is_down(
    engine_factory: Callable[[], Containerd],
    kafka_factory: Callable[..., Kafka],
    tmp_path: Path,
    require: Callable[..., None],
) -> None:
    require(*FLOOD)
    engine, kafka = engine_factory(), kafka_factory()
    kafka.kill()
    create_containers(engine, CONTAINERS)
    sink = f"kafka://{kafka.bootstrap_for('plaintext')}/burst"
    written: list[bytes] = []

    def complete() -> bool:
        written[:] = values(kafka)
        return len(transitions(deduplicated_records(written))) == EVENTS + 4_000

    with BridgeProcess(engine.address, tmp_path, sinks=[sink], state_dir=tmp_path / "state") as bridge:
        bridge.wait_logged("synced")
        flood(engine, events=4_000, containers=CONTAINERS, prefix="warm-")  # containerd's heap has grown by then
        before = memory_mib(engine.pid, "VmRSS")
        sent = flood(engine, events=EVENTS, containers=CONTAINERS)
        grown = memory_mib(engine.pid, "VmRSS") - before
        ours = memory_mib(bridge.process.pid, "VmHWM")
        kafka.start()
        # The next attempt at Kafka may be 30 s away.
        eventually(lambda: len(values(kafka)) > EVENTS, "the first records", within=120)
        eventually(complete, "all of them", within=120)
        undrained = unread_growth(engine, bridge)
    records = deduplicated_records(written)
    check_gapless(records)
    assert is_in_order(written)
    assert len(set(written)) == len(written), "nothing was sent twice: Kafka was dead, not slow"
    lives = Counter(each["type"] for each in transitions(records) if each["id"].startswith("flooded/flood-"))
    assert lives == dict.fromkeys(("started", "paused", "unpaused", "exited"), sent.events // PHASES)
    assert ours < MAX_BRIDGE_MIB, ours
    assert grown < undrained / 2, (grown, undrained)
    assert undrained * 2**20 > EVENTS * MIN_UNREAD_MIB, "an unread stream shows in containerd's memory"


def memory_mib(pid: int, field: str) -> float:
    """Resident memory of a process in MiB: VmRSS now, VmHWM at the most."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def unread_growth(engine: Containerd, bridge: BridgeProcess) -> float:
    """What the same burst does to containerd's memory while the bridge, frozen, reads nothing."""
    before = memory_mib(engine.pid, "VmRSS")
    suspend_process(bridge.process.pid)
    try:
        flood(engine, events=EVENTS, containers=CONTAINERS, prefix="unread-")
        return memory_mib(engine.pid, "VmRSS") - before
    finally:
        os.kill(bridge.process.pid, signal.SIGCONT)


def values(kafka: Kafka) -> list[bytes]:
    try:
        return without_heartbeats(record.value or b"" for record in kafka.admin.records("burst"))
    except KafkaError:  # there is no topic yet, or a broker that is too busy has lost its place for a moment
        return []
