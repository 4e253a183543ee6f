"""Three brokers, of which the one that leads dies or hangs under load: nothing is lost, and order is as P5 says."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence

import pytest
from aiokafka.errors import KafkaError

from bridge.core.errors import TransientError
from bridge.core.records import Record
from sinks.kafka.sink import KafkaSink
from tests.eventually import eventually
from tests.integration.kafka_sinks import KafkaFactory, distinct_values, open_sink, publish_until_accepted, record_data
from tests.sample_records import records
from tests.scale import scaled
from tests.testbed.kafka import Kafka
from tests.testbed.kafka_admin import KafkaAdmin
from tests.testbed.server import Server

ROUNDS = scaled(reduced=1, full=3)


@pytest.fixture
def cluster(kafka_factory: KafkaFactory) -> Kafka:
    return kafka_factory(3)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("compression", "how"), [("none", "kill"), ("lz4", "stop"), ("zstd", "suspend")])
async def test_kafka_sink_loses_nothing_when_leader_fails_under_load(
    cluster: Kafka, compression: str, how: str
) -> None:
    topic, whole = f"leader-{how}", list[Record]()
    cluster.admin.create_topic(topic, replicas=3)
    begun, over = asyncio.Event(), asyncio.Event()

    async def publish(made: KafkaSink) -> None:
        while not over.is_set():
            batch = records(200, len(whole) + 1, size=800)
            whole.extend(batch)
            await publish_until_accepted(made, batch, seconds=120)
            begun.set()
            await asyncio.sleep(0.2)

    async with open_sink(cluster, topic, compression=compression, request_timeout="30s") as made:
        publishing = asyncio.create_task(publish(made))
        await begun.wait()
        for _ in range(ROUNDS):
            await asyncio.to_thread(fail_leader, cluster, topic, how)
        over.set()
        await publishing
    stored = cluster.admin.records(topic)
    assert distinct_values(stored) == record_data(whole)
    again = [count for count in Counter(each.value for each in stored).values() if count > 1]
    print(f"{how}: {len(stored)} stored, {len(again)} of {len(whole)} records more than once")


async def test_kafka_sink_waits_when_too_few_replicas_are_in_sync(cluster: Kafka) -> None:
    cluster.admin.create_topic("safe", replicas=3, settings={"min.insync.replicas": "3"})
    whole = records(20)
    async with open_sink(cluster, "safe", retry_start=True, request_timeout="8s") as made:
        await publish_until_accepted(made, whole[:10])
        other = next(server for server in cluster.servers if server is not cluster.leader("safe"))
        other.kill()
        eventually(lambda: in_sync(cluster, "safe") == 2, "the broker to be missed", within=60)
        await publish_until_reported(made, whole[10:], "topic safe", "8 s", "partition 0", "2 of 3 replicas")
        await asyncio.to_thread(other.start)
        await publish_until_accepted(made, whole[10:])
    assert distinct_values(cluster.admin.records("safe")) == record_data(whole)


async def publish_until_reported(sink: KafkaSink, batch: Sequence[Record], *message: str) -> None:
    """Publish in vain until that is said to be in the way; it is found out in a short time, or left unsaid."""
    said = list[str]()
    while not any(all(each in text for each in message) for text in said):
        assert len(said) < 6, said
        with pytest.raises(TransientError) as caught:
            await sink.publish(batch)
        said.append(str(caught.value))


def fail_leader(cluster: Kafka, topic: str, failure: str) -> None:
    """Have the leader fail, wait for another one, and bring it back."""
    leader = cluster.leader(topic)
    getattr(leader, failure)()
    eventually(lambda: has_other_leader(leader, cluster, topic), "another leader", within=60)
    if failure == "suspend":
        leader.resume()
    else:
        leader.start()
    eventually(lambda: in_sync(cluster, topic) == 3, "all replicas in sync", within=60)


def has_other_leader(leader: Server, cluster: Kafka, topic: str) -> bool:
    living = [node for node, server in zip(cluster.nodes, cluster.servers, strict=True) if server is not leader]
    addresses = ",".join(f"127.0.0.1:{node.ports['plaintext']}" for node in living)
    with contextlib.suppress(KafkaError, TimeoutError):
        found = KafkaAdmin(addresses, timeout=5).leader(topic)
        return found not in (-1, cluster.servers.index(leader) + 1)
    return False


def in_sync(cluster: Kafka, topic: str) -> int:
    with contextlib.suppress(KafkaError, TimeoutError):
        return len(cluster.admin.describe(topic)["partitions"][0]["isr"])
    return 0
