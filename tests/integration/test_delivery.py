"""From containerd to both brokers: plain consumers find all records despite failures in between."""

from __future__ import annotations

import itertools
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.bridge_process import RecordDict, transitions
from tests.eventually import eventually
from tests.integration.delivery import BrokerTargets, ContainerChurn, deduplicated_records, wait_consistent
from tests.integration.engines import one_engine
from tests.integration.running import listed_containers, published_containers
from tests.scale import scaled
from tests.testbed.containerd import Containerd
from tests.testbed.flood import COMPONENTS as FLOOD
from tests.testbed.flood import NAMESPACE as FLOODED
from tests.testbed.flood import evenly, flood
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats

pytestmark = one_engine

KILLS = scaled(reduced=8, full=100)
OUTAGE_SECONDS = scaled(reduced=8, full=120)
_numbers = itertools.count()


@pytest.fixture
def churn(engine: Containerd) -> Iterator[ContainerChurn]:
    """Run container churn in a unique namespace, separate from other tests on this containerd."""
    churn = ContainerChurn(engine, f"e2e{os.getpid()}x{next(_numbers)}")
    yield churn
    churn.remove_all()


def start_counts(records: Sequence[RecordDict]) -> Counter[str]:
    """Return the number of published starts by container."""
    return Counter(record["id"] for record in transitions(list(records)) if record["type"] == "started")


def test_kafka_and_nats_receive_identical_records(
    engine: Containerd, churn: ContainerChurn, kafka: Kafka, nats: Nats, tmp_path: Path
) -> None:
    """Neither the topic nor the stream exists before."""
    targets = BrokerTargets(kafka, nats)
    with targets.bridge(engine, tmp_path, "--namespace", churn.namespace) as bridge:
        bridge.wait_logged("synced")
        for _ in range(25):
            churn.step()
        wait_consistent(targets.kafka_values, engine, churn.namespace)
        eventually(
            lambda: start_counts(deduplicated_records(targets.kafka_values())) == churn.runs, "all starts"
        )  # some containers run only briefly
    stored, messages = targets.kafka_records(), targets.nats_records()
    values = [record.value for record in stored]
    assert values == [message.data for message in messages]
    records = targets.complete_records()
    assert len(records) == len(values)
    assert [record["sequence"] for record in records] == list(range(1, len(records) + 1))
    assert start_counts(records) == churn.runs
    assert len({record.key for record in stored}) == 1
    for document, record, message in zip(records, stored, messages, strict=True):
        headers = {name: value.decode() for name, value in record.headers}
        assert headers["ce_id"] == message.headers["ce-id"] == f"{document['epoch']}-{document['sequence']}"
        assert headers["ce_type"] == message.headers["ce-type"]
        assert headers["ce_type"].startswith("io.whalebridge.")
        assert headers.get("ce_subject") == message.headers.get("ce-subject") == document["id"]
        assert headers["content-type"] == message.headers["ce-datacontenttype"] == "application/json"
        assert (
            message.subject == f"{targets.topic}.node-1.{churn.namespace if document['id'] else '_'}.{document['type']}"
        )


@pytest.mark.timeout(scaled(reduced=300, full=1800))
def test_fault_18_bridge_is_killed_at_random_moments(
    engine: Containerd,
    churn: ContainerChurn,
    kafka: Kafka,
    nats: Nats,
    tmp_path: Path,
    require: Callable[..., None],
) -> None:
    """Real containers start and exit meanwhile, and events of nonexistent containers are forwarded."""
    require(*FLOOD)
    rng = random.Random(os.environ.get("WHALEBRIDGE_TEST_SEED", "7"))  # noqa: S311 (reproducible)
    targets = BrokerTargets(kafka, nats)
    bridge = targets.bridge(engine, tmp_path, "--namespace", churn.namespace, "--namespace", FLOODED)
    with ThreadPoolExecutor(1) as pool, bridge:
        with churn:
            synced = 0
            flooding = pool.submit(flood, engine, events=KILLS * 480, containers=20, due=evenly(KILLS * 480, 200))
            for number in range(KILLS):
                if number % 4:  # otherwise kill it possibly before it is synced
                    bridge.wait_logged("synced", synced + 1)
                time.sleep(rng.uniform(0, 2))
                bridge.kill()
                synced = len(bridge.log_lines("synced"))
                bridge.start()
            flooding.result()
            bridge.wait_logged("synced", synced + 1)
        for read in (targets.kafka_values, targets.nats_values):
            wait_consistent(read, engine, churn.namespace, FLOODED)
    records = targets.complete_records()
    assert published_containers(records) == listed_containers(engine, churn.namespace)
    incarnations = {
        (record["id"], record["container"]["incarnation"])
        for record in records
        if record["container"] and record["container"]["namespace"] == churn.namespace
    }
    assert Counter(id_ for id_, _ in incarnations) <= churn.runs  # no incarnation without a start


def test_fault_25_brokers_come_and_go(
    engine: Containerd,
    churn: ContainerChurn,
    kafka_factory: Callable[..., Kafka],
    nats_factory: Callable[..., Nats],
    tmp_path: Path,
) -> None:
    kafka, nats = kafka_factory(proxied=True), nats_factory(proxied=True)
    targets = BrokerTargets(kafka, nats)
    kafka.kill()
    nats.kill()
    with targets.bridge(engine, tmp_path, "--namespace", churn.namespace) as bridge:
        bridge.wait_logged("synced")  # without the brokers
        with churn:
            time.sleep(OUTAGE_SECONDS / 3)
            kafka.start()
            nats.start()
            # The next attempt begins within 30 s, and one in progress may take another 30 s.
            eventually(lambda: len(bridge.log_lines("sink_recovered")) >= 2, "both connections", within=90)
            kafka.kill()
            nats.kill()
            time.sleep(OUTAGE_SECONDS)
            kafka.start()
            nats.start()
            for _ in range(OUTAGE_SECONDS):  # flapping
                for proxy in (*kafka.proxies, *nats.proxies):
                    proxy.refuse()
                time.sleep(0.5)
                for proxy in (*kafka.proxies, *nats.proxies):
                    proxy.restore()
                time.sleep(0.5)
        for read in (targets.kafka_values, targets.nats_values):
            wait_consistent(read, engine, churn.namespace)
            eventually(lambda: start_counts(deduplicated_records(read())) == churn.runs, "all starts")  # noqa: B023 (called immediately)
    assert start_counts(targets.complete_records()) == churn.runs


@pytest.mark.parametrize("failing", ["kafka", "nats"])
def test_fault_24_one_sink_is_down(
    engine: Containerd,
    churn: ContainerChurn,
    kafka: Kafka,
    kafka_factory: Callable[..., Kafka],
    nats_factory: Callable[..., Nats],
    tmp_path: Path,
    failing: str,
) -> None:
    kafka, nats = kafka_factory() if failing == "kafka" else kafka, nats_factory()
    targets = BrokerTargets(kafka, nats)
    victim, read, late = (
        (kafka, targets.nats_values, targets.kafka_values)
        if failing == "kafka"
        else (nats, targets.kafka_values, targets.nats_values)
    )
    with targets.bridge(engine, tmp_path, "--namespace", churn.namespace) as bridge:
        bridge.wait_logged("synced")
        for each in (read, late):
            eventually(lambda: len(each()) >= 2, "the first snapshot")  # noqa: B023 (called immediately)

        def measure_delay() -> float:
            churn.step()
            started = time.monotonic()
            wait_consistent(read, engine, churn.namespace)
            return time.monotonic() - started

        usual_delays, delays = [measure_delay() for _ in range(3)], []
        victim.kill()
        deadline = time.monotonic() + OUTAGE_SECONDS
        while time.monotonic() < deadline:
            delays.append(measure_delay())
        victim.start()
        wait_consistent(late, engine, churn.namespace)
    assert statistics.median(delays) < statistics.median(usual_delays) + 5, (usual_delays, delays)
    targets.complete_records()


@pytest.mark.parametrize("fault", ["killed", "suspended"])
def test_fault_33_bridge_stops_while_brokers_hang(
    engine: Containerd,
    churn: ContainerChurn,
    kafka_factory: Callable[..., Kafka],
    nats_factory: Callable[..., Nats],
    tmp_path: Path,
    fault: str,
) -> None:
    """The bridge stops within its deadline, and delivers the backlog after the next start."""
    kafka, nats = kafka_factory(), nats_factory()
    targets = BrokerTargets(kafka, nats)
    with targets.bridge(engine, tmp_path, "--namespace", churn.namespace) as bridge:
        bridge.wait_logged("synced")
        for peer in (kafka, nats):
            peer.kill() if fault == "killed" else peer.suspend()
        for _ in range(8):
            churn.step()
        assert bridge.stop() < 20  # the deadline is 10 s; an attempt at a broker takes 30 s
        assert bridge.log_lines("shutdown_incomplete")
        churn.step()  # while the bridge is down
        for peer in (kafka, nats):
            peer.start() if fault == "killed" else peer.resume()
        bridge.start()
        bridge.wait_logged("synced", 2)  # records of the first run may be consistent already
        for read in (targets.kafka_values, targets.nats_values):
            wait_consistent(read, engine, churn.namespace)
    assert len({record["epoch"] for record in targets.complete_records()}) == 2
    assert "Traceback" not in bridge.log.read_text()
