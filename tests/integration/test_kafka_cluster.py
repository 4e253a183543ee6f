"""Kafka with three brokers, whose leader fails under load: no record is lost, and the order follows P5."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
from aiokafka.errors import KafkaError

from bridge.core.errors import TransientError
from bridge.core.records import Record
from sinks.kafka.sink import KafkaSink
from tests.eventually import eventually
from tests.integration.kafka_sinks import distinct_values, open_sink, record_data
from tests.integration.target_checks import publish_until_accepted
from tests.sample_records import records
from tests.scale import scaled
from tests.testbed.kafka import COMPONENTS, Kafka
from tests.testbed.kafka_admin import KafkaAdmin
from tests.testbed.server import Server

ROUNDS = scaled(reduced=1, full=3)


@pytest.fixture(scope="module")
def cluster(require: Callable[..., None]) -> Iterator[Kafka]:
    """Three brokers, which all run before and after each test; use unique topics."""
    require(*COMPONENTS)
    with Kafka(3) as kafka:
        yield kafka


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("compression", "failure"), [("none", "kill"), ("lz4", "stop"), ("zstd", "suspend")])
async def test_fault_31_kafka_leader_fails(cluster: Kafka, compression: str, failure: str) -> None:
    topic, all_records = f"leader-{failure}", list[Record]()
    cluster.admin.create_topic(topic, replicas=3)
    published, finished = asyncio.Event(), asyncio.Event()

    async def publish(sink: KafkaSink) -> None:
        while not finished.is_set():
            batch = records(200, len(all_records) + 1, size=800)
            all_records.extend(batch)
            await publish_until_accepted(sink, batch, seconds=120)
            published.set()
            await asyncio.sleep(0.2)

    async with open_sink(cluster, topic, compression=compression, request_timeout="30s") as sink:
        publishing = asyncio.create_task(publish(sink))
        await published.wait()
        for _ in range(ROUNDS):
            await asyncio.to_thread(fail_leader, cluster, topic, failure)
        finished.set()
        await publishing
    stored = cluster.admin.records(topic)
    assert distinct_values(stored) == record_data(all_records)
    duplicates = [count for count in Counter(each.value for each in stored).values() if count > 1]
    print(f"{failure}: {len(stored)} stored, {len(duplicates)} of {len(all_records)} records duplicated")


async def test_kafka_sink_waits_when_too_few_replicas_are_in_sync(cluster: Kafka) -> None:
    cluster.admin.create_topic("safe", replicas=3, settings={"min.insync.replicas": "3"})
    all_records = records(20)
    async with open_sink(cluster, "safe", retry_start=True, request_timeout="8s") as sink:
        await publish_until_accepted(sink, all_records[:10])
        other = next(server for server in cluster.servers if server is not cluster.leader("safe"))
        other.kill()
        eventually(lambda: in_sync(cluster, "safe") == 2, "the broker to leave the ISR", within=60)
        await publish_until_reported(sink, all_records[10:], "topic safe", "8 s", "partition 0", "2 of 3 replicas")
        await asyncio.to_thread(other.start)
        await publish_until_accepted(sink, all_records[10:])
    assert distinct_values(cluster.admin.records("safe")) == record_data(all_records)


async def publish_until_reported(sink: KafkaSink, batch: Sequence[Record], *message: str) -> None:
    """Publish until an error contains the message; the sink may fail to determine the cause at first."""
    errors = list[str]()
    while not any(all(each in text for each in message) for text in errors):
        assert len(errors) < 6, errors
        with pytest.raises(TransientError) as caught:
            await sink.publish(batch)
        errors.append(str(caught.value))


def fail_leader(cluster: Kafka, topic: str, failure: str) -> None:
    """Make the leader fail, wait for another leader, and restore the first one."""
    leader = cluster.leader(topic)
    getattr(leader, failure)()
    eventually(lambda: has_other_leader(leader, cluster, topic), "another leader", within=60)
    if failure == "suspend":
        leader.resume()
    else:
        leader.start()
    eventually(lambda: in_sync(cluster, topic) == 3, "all replicas in sync", within=60)


def has_other_leader(leader: Server, cluster: Kafka, topic: str) -> bool:
    remaining = [node for node, server in zip(cluster.nodes, cluster.servers, strict=True) if server is not leader]
    addresses = ",".join(f"127.0.0.1:{node.ports['plaintext']}" for node in remaining)
    with contextlib.suppress(KafkaError, TimeoutError):
        leader_id = KafkaAdmin(addresses, timeout=5).leader(topic)
        return leader_id not in (-1, cluster.servers.index(leader) + 1)
    return False


def in_sync(cluster: Kafka, topic: str) -> int:
    with contextlib.suppress(KafkaError, TimeoutError):
        return len(cluster.admin.describe(topic)["partitions"][0]["isr"])
    return 0
