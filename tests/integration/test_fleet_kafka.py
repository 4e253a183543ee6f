"""Reading topics of real Kafkas."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer

from bridge.clock import SystemClock
from bridge.core.errors import NotFoundError, TransientError
from bridge.fleet.kafka import KafkaReader
from bridge.fleet.messages import Begin
from sinks.kafka.sink import KafkaSink
from tests.certificates import Authority
from tests.eventually import eventually_async
from tests.integration.fleet_reading import data, following, whole
from tests.integration.kafka_sinks import FreshKafka, again, settings
from tests.naming import assert_names, raises_naming
from tests.sample_records import records
from tests.testbed.kafka import USERS, Kafka


def reader(
    servers: Kafka | str, topic: str, *, begin: Begin = "beginning", follow: bool = False, **options: Any
) -> KafkaReader:
    return KafkaReader(settings(servers, topic, **options), SystemClock(), begin=begin, follow=follow)


async def publish(kafka: Kafka, topic: str, first: int, count: int, **options: Any) -> list[bytes]:
    """Publish, also while a reader is at work: its tasks are not taken for the sink's."""
    batch = records(count, first, **options)
    made = KafkaSink(settings(kafka, topic), SystemClock())
    try:
        await again(made.start)
        await again(partial(made.publish, batch))
    finally:
        await made.close()
    return data(batch)


async def test_all_partitions_are_read_to_their_ends(kafka: Kafka) -> None:
    kafka.admin.create_topic("read.three", partitions=3)
    wanted = [each for host in "abcdef" for each in await publish(kafka, "read.three", 1, 50, host=host)]
    found = await whole(reader(kafka, "read.three"))
    assert sorted(data(found)) == sorted(wanted)
    assert len({each.place for each in found}) > 1
    for place in {each.place for each in found}:
        numbers = [each.number for each in found if each.place == place]
        assert numbers == list(range(len(numbers)))


async def test_an_empty_topic_has_an_end(kafka: Kafka) -> None:
    kafka.admin.create_topic("read.empty")
    assert await whole(reader(kafka, "read.empty")) == []


async def test_what_was_deleted_is_not_waited_for(kafka: Kafka) -> None:
    """Also where the oldest are gone, and where offsets are taken by something else than messages."""
    kafka.admin.create_topic("read.marks")
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id="read.marks")
    await producer.start()
    async with producer.transaction():
        await producer.send_and_wait("read.marks", b"{}")
    await producer.stop()
    assert data(await whole(reader(kafka, "read.marks"))) == [b"{}"]


async def test_reading_begins_at_a_moment_or_at_the_end(kafka: Kafka) -> None:
    await publish(kafka, "read.since", 1, 10)
    await asyncio.sleep(0.05)
    moment = datetime.now(UTC)
    await asyncio.sleep(0.05)
    later = await publish(kafka, "read.since", 11, 10)
    assert data(await whole(reader(kafka, "read.since", begin=moment))) == later
    assert await whole(reader(kafka, "read.since", begin="end")) == []
    assert await whole(reader(kafka, "read.since", begin=datetime.now(UTC))) == []
    async with following(reader(kafka, "read.since", begin="end", follow=True)) as found:
        newest = await publish(kafka, "read.since", 21, 3)
        assert data(await found.count(3)) == newest


async def test_nothing_is_left_behind(kafka: Kafka) -> None:
    await publish(kafka, "read.traces", 1, 10)
    before = kafka.admin.topics(internal=True)
    async with following(reader(kafka, "read.traces", follow=True)) as found:
        await found.count(10)
    assert kafka.admin.topics(internal=True) == before  # no __consumer_offsets: there was no group


async def test_a_reader_that_follows_outlives_the_brokers(fresh_kafka: FreshKafka) -> None:
    kafka = fresh_kafka()
    first = await publish(kafka, "events", 1, 10)
    async with following(reader(kafka, "events", follow=True, request_timeout="6s")) as found:
        await found.count(10)
        kafka.kill()
        await eventually_async(lambda: bool(found.told))
        await asyncio.to_thread(kafka.start)
        second = await publish(kafka, "events", 11, 10)
        assert data(await found.count(20)) == first + second
        # The loss of the connection, its return, and, where the broker that just started seems to be away, more.
        assert len(found.told) >= 2
        assert_names(found.told[0], "127.0.0.1:", "connection refused")


async def test_a_topic_that_is_not_there(kafka: Kafka) -> None:
    with raises_naming(NotFoundError, "read.nothing", kafka.bootstrap):
        await whole(reader(kafka, "read.nothing"))
    assert "read.nothing" not in kafka.admin.topics()


async def test_a_broker_that_is_silent_or_away_is_not_waited_for(fresh_kafka: FreshKafka) -> None:
    kafka = fresh_kafka(proxied=True)
    await publish(kafka, "events", 1, 10)
    address = f"127.0.0.1:{kafka.proxies[0].port}"
    assert len(await whole(reader(address, "events", request_timeout="8s"))) == 10
    kafka.proxies[0].silence()
    began = time.monotonic()
    with raises_naming(TransientError, address):
        await whole(reader(address, "events", request_timeout="8s", follow=True))
    assert time.monotonic() - began < 20
    with raises_naming(TransientError, "127.0.0.1:1", "refused"):
        await whole(reader("127.0.0.1:1", "events", follow=True))


async def test_the_access_of_a_sink_is_a_readers(kafka: Kafka, authority: Authority) -> None:
    wanted = await publish(kafka, "read.guarded", 1, 10)
    auth = {"username": "reader", "password": USERS["reader"]}
    tls = {"enabled": True, "ca_file": str(authority.certificate)}
    where = kafka.bootstrap_of("sasl_ssl")
    assert data(await whole(reader(where, "read.guarded", auth=auth, tls=tls))) == wanted
    with raises_naming(TransientError, where, "user reader", "scram-sha-512"):
        await whole(reader(where, "read.guarded", auth=auth | {"password": "wrong"}, tls=tls))
    with raises_naming(TransientError, where, "tls.enabled"):
        await whole(reader(where, "read.guarded", auth=auth))


async def test_reading_needs_to_be_allowed_and_nothing_else(fresh_kafka: FreshKafka) -> None:
    kafka = fresh_kafka(listeners=("sasl_plaintext",), acls=True)
    wanted = await publish(kafka, "events", 1, 10)
    where, auth = kafka.bootstrap_of("sasl_plaintext"), {"username": "reader", "password": USERS["reader"]}
    with raises_naming(TransientError, "user reader", "topic events", "Describe", "Read"):
        await whole(reader(where, "events", auth=auth))
    kafka.admin.allow("User:reader", "describe", "topic", "events")
    with raises_naming(TransientError, "user reader", "topic events", "Describe", "Read"):
        await whole(reader(where, "events", auth=auth))
    kafka.admin.allow("User:reader", "read", "topic", "events")
    assert data(await whole(reader(where, "events", auth=auth))) == wanted
