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

from tests.bridge_process import Document, transitions
from tests.integration.delivery import (
    Churn,
    Places,
    alive,
    check_whole,
    documents,
    in_order,
    told_alive,
    wait_agreement,
    wait_for,
)
from tests.scale import scaled
from tests.testbed.containerd import Containerd
from tests.testbed.flood import COMPONENTS as FLOOD
from tests.testbed.flood import NAMESPACE as FLOODED
from tests.testbed.flood import flood
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats

KILLS = scaled(part=8, full=100)
DEAD_SECONDS = scaled(part=15, full=120)
_numbers = itertools.count()
one_engine = pytest.mark.parametrize("engine", ["2.4"], indirect=True)


@pytest.fixture
def churn(engine: Containerd) -> Iterator[Churn]:
    """In a namespace of its own, so that others on this containerd do not matter."""
    churn = Churn(engine, f"e2e{os.getpid()}x{next(_numbers)}")
    yield churn
    churn.clear()


def born(records: Sequence[Document]) -> Counter[str]:
    """How often each was started."""
    return Counter(record["id"] for record in transitions(list(records)) if record["type"] == "started")


def test_both_brokers_have_the_same_records(
    engine: Containerd, churn: Churn, kafka: Kafka, nats: Nats, tmp_path: Path
) -> None:
    """Neither the topic nor the stream was there before."""
    places = Places(kafka, nats)
    with places.bridge(engine, tmp_path, "--namespace", churn.namespace) as bridge:
        bridge.wait_said("synced")
        for _ in range(25):
            churn.step()
        wait_agreement(places.kafka_values, engine, churn.namespace)
        wait_for(lambda: born(documents(places.kafka_values())) == churn.lives, "all births")  # some live for a moment
    stored, messages = places.in_kafka(), places.in_nats()
    values = [record.value for record in stored]
    assert values == [message.data for message in messages]
    records = documents(places.kafka_values())
    assert len(records) == len(values)
    assert [record["sequence"] for record in records] == list(range(1, len(records) + 1))
    check_whole(records)
    assert born(records) == churn.lives
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


@pytest.mark.timeout(scaled(part=300, full=1800))
def test_sigkill_at_any_moment_loses_nothing(
    engine: Containerd,
    churn: Churn,
    kafka: Kafka,
    nats: Nats,
    tmp_path: Path,
    require: Callable[..., None],
) -> None:
    """Under a stream of real containers, and of forwarded events of records that nothing runs behind."""
    require(*FLOOD)
    chance = random.Random(os.environ.get("WHALEBRIDGE_TEST_SEED", "7"))  # noqa: S311 (to be repeated by its seed)
    places = Places(kafka, nats)
    bridge = places.bridge(engine, tmp_path, "--namespace", churn.namespace, "--namespace", FLOODED)
    with ThreadPoolExecutor(1) as other, bridge:
        with churn:
            before = 0
            flooding = other.submit(flood, engine, events=KILLS * 800, containers=20, rate=200)
            for number in range(KILLS):
                if number % 4:  # else it may be dead before it is live
                    bridge.wait_said("synced", before + 1)
                time.sleep(chance.uniform(0, 2))
                bridge.kill()
                before = len(bridge.said("synced"))
                bridge.start()
            flooding.result()
            bridge.wait_said("synced", before + 1)
        for read in (places.kafka_values, places.nats_values):
            wait_agreement(read, engine, churn.namespace, FLOODED)
    for values in (places.kafka_values(), places.nats_values()):
        records = documents(values)
        check_whole(records)
        assert in_order(values)
        assert told_alive(records) == alive(engine, churn.namespace)
        lives = {
            (record["id"], record["container"]["incarnation"])
            for record in records
            if record["container"] and record["container"]["namespace"] == churn.namespace
        }
        assert Counter(id_ for id_, _ in lives) <= churn.lives  # nobody lives who was never born
    assert documents(places.kafka_values()) == documents(places.nats_values())


@one_engine
def test_brokers_that_are_dead_or_come_and_go_get_everything_in_order(
    engine: Containerd,
    churn: Churn,
    fresh_kafka: Callable[..., Kafka],
    fresh_nats: Callable[..., Nats],
    tmp_path: Path,
) -> None:
    kafka, nats = fresh_kafka(proxied=True), fresh_nats(proxied=True)
    places = Places(kafka, nats)
    kafka.kill()
    nats.kill()
    with places.bridge(engine, tmp_path, "--namespace", churn.namespace) as bridge:
        bridge.wait_said("synced")  # without them
        with churn:
            time.sleep(DEAD_SECONDS / 3)
            kafka.start()
            nats.start()
            wait_for(lambda: len(bridge.said("sink_recovered")) >= 2, "both brokers to be reached")
            kafka.kill()
            nats.kill()
            time.sleep(DEAD_SECONDS)
            kafka.start()
            nats.start()
            for _ in range(DEAD_SECONDS):  # flapping
                for proxy in (*kafka.proxies, *nats.proxies):
                    proxy.cut()
                time.sleep(0.5)
                for proxy in (*kafka.proxies, *nats.proxies):
                    proxy.heal()
                time.sleep(0.5)
        for read in (places.kafka_values, places.nats_values):
            wait_agreement(read, engine, churn.namespace)
            wait_for(lambda: born(documents(read())) == churn.lives, "all births")  # noqa: B023 (called at once)
    for values in (places.kafka_values(), places.nats_values()):
        records = documents(values)
        check_whole(records)
        assert in_order(values)
        assert born(records) == churn.lives
    assert documents(places.kafka_values()) == documents(places.nats_values())


@one_engine
@pytest.mark.parametrize("dead", ["kafka", "nats"])
def test_of_two_sinks_one_does_not_notice_that_the_other_is_dead(
    engine: Containerd,
    churn: Churn,
    fresh_kafka: Callable[..., Kafka],
    fresh_nats: Callable[..., Nats],
    tmp_path: Path,
    dead: str,
) -> None:
    kafka, nats = fresh_kafka(), fresh_nats()
    places = Places(kafka, nats)
    victim, read, late = (
        (kafka, places.nats_values, places.kafka_values)
        if dead == "kafka"
        else (nats, places.kafka_values, places.nats_values)
    )
    with places.bridge(engine, tmp_path, "--namespace", churn.namespace) as bridge:
        bridge.wait_said("synced")
        for each in (read, late):
            wait_for(lambda: len(each()) >= 2, "the first snapshot")  # noqa: B023 (called at once)

        def pace() -> float:
            churn.step()
            began = time.monotonic()
            wait_agreement(read, engine, churn.namespace, seconds=20)
            return time.monotonic() - began

        usual, took = [pace() for _ in range(3)], []
        victim.kill()
        until = time.monotonic() + DEAD_SECONDS
        while time.monotonic() < until:
            took.append(pace())
        victim.start()
        wait_agreement(late, engine, churn.namespace)
    assert statistics.median(took) < statistics.median(usual) + 5, (usual, took)
    for values in (places.kafka_values(), places.nats_values()):
        check_whole(documents(values))
        assert in_order(values)
    assert documents(places.kafka_values()) == documents(places.nats_values())


@one_engine
@pytest.mark.parametrize("how", ["dead", "frozen"])
def test_sigterm_with_brokers_that_do_not_answer(
    engine: Containerd,
    churn: Churn,
    fresh_kafka: Callable[..., Kafka],
    fresh_nats: Callable[..., Nats],
    tmp_path: Path,
    how: str,
) -> None:
    """It ends within its deadline; what could not be handed over is, after the next start."""
    kafka, nats = fresh_kafka(), fresh_nats()
    places = Places(kafka, nats)
    with places.bridge(engine, tmp_path, "--namespace", churn.namespace) as bridge:
        bridge.wait_said("synced")
        for peer in (kafka, nats):
            peer.kill() if how == "dead" else peer.suspend()
        for _ in range(8):
            churn.step()
        assert bridge.stop() < 20  # of which 10 are its own; an attempt at a broker takes 30
        assert bridge.said("shutdown_incomplete")
        churn.step()  # while nobody watches
        for peer in (kafka, nats):
            peer.start() if how == "dead" else peer.resume()
        bridge.start()
        bridge.wait_said("synced", 2)  # what was told before may agree already
        for read in (places.kafka_values, places.nats_values):
            wait_agreement(read, engine, churn.namespace)
    for values in (places.kafka_values(), places.nats_values()):
        records = documents(values)
        check_whole(records)
        assert len({record["epoch"] for record in records}) == 2
    assert "Traceback" not in bridge.log.read_text()
