"""P8 while a broker is down: a burst exhausts neither the bridge's memory nor containerd's, and arrives afterwards."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from aiokafka.errors import KafkaError

from tests.bridge_process import BridgeProcess, transitions
from tests.eventually import eventually
from tests.integration.delivery import complete_records, deduplicated_records, without_heartbeats
from tests.integration.engines import one_engine_factory
from tests.scale import scaled
from tests.testbed.containerd import Containerd
from tests.testbed.flood import COMPONENTS as FLOOD
from tests.testbed.flood import PHASES, create_containers, flood
from tests.testbed.kafka import Kafka
from tests.testbed.process import suspend_process

EVENTS = scaled(reduced=20_000, full=100_000)
CONTAINERS = 100
MAX_BRIDGE_MIB = 200  # MiB, peak, including imports; measured: 87 to 90
MIN_UNREAD_BYTES = 250  # bytes that containerd buffers at least per unread event

pytestmark = one_engine_factory


def test_fault_35_burst_of_events_while_kafka_is_down(
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
    stored: list[bytes] = []

    def complete() -> bool:
        stored[:] = values(kafka)
        return len(transitions(deduplicated_records(stored))) == EVENTS + 4_000

    with BridgeProcess(engine.address, tmp_path, sinks=[sink], state_dir=tmp_path / "state") as bridge:
        bridge.wait_logged("synced")
        flood(engine, events=4_000, containers=CONTAINERS, prefix="warm-")  # containerd's heap grows during this
        before = memory_mib(engine.pid, "VmRSS")
        sent = flood(engine, events=EVENTS, containers=CONTAINERS)
        growth = memory_mib(engine.pid, "VmRSS") - before
        peak = memory_mib(bridge.process.pid, "VmHWM")
        kafka.start()
        # The next connection attempt may start after 30 s.
        eventually(lambda: end_offset(kafka) >= EVENTS + 4_000, "the records", within=180)
        eventually(complete, "all records", within=120)
        growth_unread = unread_growth(engine, bridge)
    records = complete_records(stored)
    assert len(set(stored)) == len(stored), "nothing is sent twice: Kafka was down, not slow"
    counts = Counter(each["type"] for each in transitions(records) if each["id"].startswith("flooded/flood-"))
    assert counts == dict.fromkeys(("started", "paused", "unpaused", "exited"), sent.events // PHASES)
    assert peak < MAX_BRIDGE_MIB, peak
    assert growth < growth_unread / 2, (growth, growth_unread)
    assert growth_unread * 2**20 > EVENTS * MIN_UNREAD_BYTES, "an unread stream grows containerd's memory"


def memory_mib(pid: int, field: str) -> float:
    """Return the resident memory of a process in MiB: VmRSS is the current one, VmHWM the peak."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def unread_growth(engine: Containerd, bridge: BridgeProcess) -> float:
    """Return the growth of containerd's memory in MiB by the same burst while the bridge is suspended."""
    before = memory_mib(engine.pid, "VmRSS")
    suspend_process(bridge.process.pid)
    try:
        flood(engine, events=EVENTS, containers=CONTAINERS, prefix="unread-")
        return memory_mib(engine.pid, "VmRSS") - before
    finally:
        os.kill(bridge.process.pid, signal.SIGCONT)


def end_offset(kafka: Kafka) -> int:
    try:
        return kafka.admin.end_offset("burst")
    except (KafkaError, TimeoutError):  # the topic does not exist yet, or the broker is overloaded
        return 0


def values(kafka: Kafka) -> list[bytes]:
    try:
        return without_heartbeats(record.value or b"" for record in kafka.admin.records("burst"))
    except (KafkaError, TimeoutError):
        return []
