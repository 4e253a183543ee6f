"""From containerd to both brokers at once: what plain consumers find there, whatever dies in between."""

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
from tests.integration.delivery import (
    BrokerTargets,
    ContainerChurn,
    check_gapless,
    deduplicated_records,
    is_in_order,
    listed_containers,
    published_containers,
    wait_consistent,
)
from tests.scale import scaled
from tests.testbed.containerd import Containerd
from tests.testbed.flood import COMPONENTS as FLOOD
from tests.testbed.flood import NAMESPACE as FLOODED
from tests.testbed.flood import flood
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats

KILLS = scaled(reduced=8, full=100)
OUTAGE_SECONDS = scaled(reduced=15, full=120)
_numbers = itertools.count()
one_engine = pytest.mark.parametrize("engine", ["2.4"], indirect=True)


@pytest.fixture
def churn(engine: Containerd) -> Iterator[ContainerChurn]:
    """In a namespace of its own, so that others on this containerd do not matter."""
    churn = ContainerChurn(engine, f"e2e{os.getpid()}x{next(_numbers)}")
    yield churn
    churn.remove_all()


def start_counts(records: Sequence[RecordDict]) -> Counter[str]:
    """How often each was started."""
    return Counter(record["id"] for record in transitions(list(records)) if record["type"] == "started")


def test_kafka_and_nats_receive_identical_records(
    engine: Containerd, churn: ContainerChurn, kafka: Kafka, nats: Nats, tmp_path: Path
) -> None:
    """Neither the topic nor the stream was there before."""
    places = BrokerTargets(kafka, nats)
    with places.bridge(engine, tmp_path, "--namespace", churn.namespace) as bridge:
        bridge.wait_logged("synced")
        for _ in range(25):
            churn.step()
        wait_consistent(places.kafka_values, engine, churn.namespace)
        eventually(
            lambda: start_counts(deduplicated_records(places.kafka_values())) == churn.runs, "all births"
        )  # some live for a moment
    stored, messages = places.kafka_records(), places.nats_records()
    values = [record.value for record in stored]
    assert values == [message.data for message in messages]
    records = deduplicated_records(places.kafka_values())
    assert len(records) == len(values)
    assert [record["sequence"] for record in records] == list(range(1, len(records) + 1))
    check_gapless(records)
    assert start_counts(records) == churn.runs
    assert len({record.key for record in stored}) == 1
    for document, record, message in zip(records, stored, messages, strict=True):
        there = {name: value.decode() for name, value in record.headers}
        assert there["ce_id"] == message.headers["ce-id"] == f"{document['epoch']}-{document['sequence']}"
        assert there["ce_type"] == message.headers["ce-type"]
        assert there["ce_type"].startswith("io.whalebridge.")
        assert there.get("ce_subject") == message.headers.get("ce-subject") == document["id"]
        assert there["content-type"] == message.headers["ce-datacontenttype"] == "application/json"
        assert (
            message.subject == f"{places.topic}.node-1.{churn.namespace if document['id'] else '_'}.{document['type']}"
        )


@pytest.mark.timeout(scaled(reduced=300, full=1800))
def test_bridge_loses_nothing_when_killed_at_random_moments(
    engine: Containerd,
    churn: ContainerChurn,
    kafka: Kafka,
    nats: Nats,
    tmp_path: Path,
    require: Callable[..., None],
) -> None:
    """Under a stream of real containers, and of forwarded events of records that nothing runs behind."""
    require(*FLOOD)
    chance = random.Random(os.environ.get("WHALEBRIDGE_TEST_SEED", "7"))  # noqa: S311 (to be repeated by its seed)
    places = BrokerTargets(kafka, nats)
    bridge = places.bridge(engine, tmp_path, "--namespace", churn.namespace, "--namespace", FLOODED)
    with ThreadPoolExecutor(1) as other, bridge:
        with churn:
            before = 0
            flooding = other.submit(flood, engine, events=KILLS * 800, containers=20, rate=200)
            for number in range(KILLS):
                if number % 4:  # else it may be dead before it is live
                    bridge.wait_logged("synced", before + 1)
                time.sleep(chance.uniform(0, 2))
                bridge.kill()
                before = len(bridge.log_lines("synced"))
                bridge.start()
            flooding.result()
            bridge.wait_logged("synced", before + 1)
        for read in (places.kafka_values, places.nats_values):
            wait_consistent(read, engine, churn.namespace, FLOODED)
    for values in (places.kafka_values(), places.nats_values()):
        records = deduplicated_records(values)
        check_gapless(records)
        assert is_in_order(values)
        assert published_containers(records) == listed_containers(engine, churn.namespace)
        lives = {
            (record["id"], record["container"]["incarnation"])
            for record in records
            if record["container"] and record["container"]["namespace"] == churn.namespace
        }
        assert Counter(id_ for id_, _ in lives) <= churn.runs  # nobody lives who was never born
    assert deduplicated_records(places.kafka_values()) == deduplicated_records(places.nats_values())


@one_engine
def test_sinks_deliver_all_in_order_when_brokers_come_and_go(
    engine: Containerd,
    churn: ContainerChurn,
    kafka_factory: Callable[..., Kafka],
    nats_factory: Callable[..., Nats],
    tmp_path: Path,
) -> None:
    kafka, nats = kafka_factory(proxied=True), nats_factory(proxied=True)
    places = BrokerTargets(kafka, nats)
    kafka.kill()
    nats.kill()
    with places.bridge(engine, tmp_path, "--namespace", churn.namespace) as bridge:
        bridge.wait_logged("synced")  # without them
        with churn:
            time.sleep(OUTAGE_SECONDS / 3)
            kafka.start()
            nats.start()
            eventually(lambda: len(bridge.log_lines("sink_recovered")) >= 2, "both brokers to be reached")
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
        for read in (places.kafka_values, places.nats_values):
            wait_consistent(read, engine, churn.namespace)
            eventually(lambda: start_counts(deduplicated_records(read())) == churn.runs, "all births")  # noqa: B023 (called at once)
    for values in (places.kafka_values(), places.nats_values()):
        records = deduplicated_records(values)
        check_gapless(records)
        assert is_in_order(values)
        assert start_counts(records) == churn.runs
    assert deduplicated_records(places.kafka_values()) == deduplicated_records(places.nats_values())


@one_engine
@pytest.mark.parametrize("dead", ["kafka", "nats"])
def test_sink_keeps_pace_when_other_sink_is_down(
    engine: Containerd,
    churn: ContainerChurn,
    kafka_factory: Callable[..., Kafka],
    nats_factory: Callable[..., Nats],
    tmp_path: Path,
    dead: str,
) -> None:
    kafka, nats = kafka_factory(), nats_factory()
    places = BrokerTargets(kafka, nats)
    victim, read, late = (
        (kafka, places.nats_values, places.kafka_values)
        if dead == "kafka"
        else (nats, places.kafka_values, places.nats_values)
    )
    with places.bridge(engine, tmp_path, "--namespace", churn.namespace) as bridge:
        bridge.wait_logged("synced")
        for each in (read, late):
            eventually(lambda: len(each()) >= 2, "the first snapshot")  # noqa: B023 (called at once)

        def pace() -> float:
            churn.step()
            began = time.monotonic()
            wait_consistent(read, engine, churn.namespace, seconds=20)
            return time.monotonic() - began

        usual, took = [pace() for _ in range(3)], []
        victim.kill()
        until = time.monotonic() + OUTAGE_SECONDS
        while time.monotonic() < until:
            took.append(pace())
        victim.start()
        wait_consistent(late, engine, churn.namespace)
    assert statistics.median(took) < statistics.median(usual) + 5, (usual, took)
    for values in (places.kafka_values(), places.nats_values()):
        check_gapless(deduplicated_records(values))
        assert is_in_order(values)
    assert deduplicated_records(places.kafka_values()) == deduplicated_records(places.nats_values())


@one_engine
@pytest.mark.parametrize("how", ["dead", "frozen"])
def test_bridge_delivers_backlog_after_stop_with_hung_brokers(
    engine: Containerd,
    churn: ContainerChurn,
    kafka_factory: Callable[..., Kafka],
    nats_factory: Callable[..., Nats],
    tmp_path: Path,
    how: str,
) -> None:
    """It ends within its deadline; what could not be handed over is, after the next start."""
    kafka, nats = kafka_factory(), nats_factory()
    places = BrokerTargets(kafka, nats)
    with places.bridge(engine, tmp_path, "--namespace", churn.namespace) as bridge:
        bridge.wait_logged("synced")
        for peer in (kafka, nats):
            peer.kill() if how == "dead" else peer.suspend()
        for _ in range(8):
            churn.step()
        assert bridge.stop() < 20  # of which 10 are its own; an attempt at a broker takes 30
        assert bridge.log_lines("shutdown_incomplete")
        churn.step()  # while nobody watches
        for peer in (kafka, nats):
            peer.start() if how == "dead" else peer.resume()
        bridge.start()
        bridge.wait_logged("synced", 2)  # what was told before may agree already
        for read in (places.kafka_values, places.nats_values):
            wait_consistent(read, engine, churn.namespace)
    for values in (places.kafka_values(), places.nats_values()):
        records = deduplicated_records(values)
        check_gapless(records)
        assert len({record["epoch"] for record in records}) == 2
    assert "Traceback" not in bridge.log.read_text()
