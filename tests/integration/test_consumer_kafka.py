"""Read topics of real Kafka brokers."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from bridge import consumer
from bridge.clock import SystemClock
from bridge.consumer.kafka import KafkaReader
from bridge.consumer.record_reader import StartPosition
from bridge.core.errors import NotFoundError, TransientError
from sinks.kafka.sink import KafkaSink
from tests.eventually import eventually_async
from tests.integration.consumer_reading import (
    RESUMED_RECORDS,
    check_resumption,
    check_start_from_table,
    follow,
    read_to_end,
    record_data,
)
from tests.integration.kafka_sinks import KafkaFactory, settings
from tests.integration.target_checks import retry_until_done
from tests.naming import assert_names, raises_naming
from tests.sample_records import control_record, record, records
from tests.testbed.kafka import USERS, Kafka


def reader(
    servers: Kafka | str, topic: str, *, start: StartPosition = "beginning", follow: bool = False, **options: Any
) -> KafkaReader:
    return KafkaReader(settings(servers, topic, **options), SystemClock(), start_position=start, follow=follow)


async def publish(kafka: Kafka, topic: str, first: int, count: int, **options: Any) -> list[bytes]:
    """Publish records. Unlike `open_sink`, this tolerates the tasks of a concurrent reader."""
    batch = records(count, first, **options)
    sink = KafkaSink(settings(kafka, topic), SystemClock())
    try:
        await retry_until_done(sink.start)
        await retry_until_done(partial(sink.publish, batch))
    finally:
        await sink.close()
    return record_data(batch)


async def test_kafka_reader_reads_all_partitions_to_end(kafka: Kafka) -> None:
    kafka.admin.create_topic("read.three", partitions=3)
    published = [each for host in "abcdef" for each in await publish(kafka, "read.three", 1, 50, host=host)]
    messages = await read_to_end(all_partitions := reader(kafka, "read.three"))
    assert all_partitions.total == 300
    assert sorted(record_data(messages)) == sorted(published)
    assert len({each.location for each in messages}) > 1
    for location in {each.location for each in messages}:
        numbers = [each.number for each in messages if each.location == location]
        assert numbers == list(range(len(numbers)))


async def test_kafka_consumer_killed_at_any_point_resumes_exactly(kafka: Kafka, tmp_path: Path) -> None:
    kafka.admin.create_topic("read.resumed", partitions=3)
    for host in "abcdef":
        await publish(kafka, "read.resumed", 1, RESUMED_RECORDS // 6, host=host)
    await check_resumption(kafka_url(kafka, "read.resumed"), tmp_path)


async def test_kafka_state_topic_and_later_records_are_whole_state(kafka: Kafka) -> None:
    await check_start_from_table(
        lambda: KafkaSink(settings(kafka, "read.table", state_topic="read.table.state"), SystemClock()),
        kafka_url(kafka, "read.table"),
        kafka_url(kafka, "read.table.state"),
    )


async def test_kafka_topic_of_records_is_no_state_table(kafka: Kafka) -> None:
    """The last record of a source, taken for its entry, would say that no container is running."""
    sink = KafkaSink(settings(kafka, "read.notable"), SystemClock())
    await sink.start()
    await sink.publish([control_record(1, "snapshot_started"), record(2), control_record(3, "snapshot_completed")])
    await sink.close()
    assert (await consumer.load_table(kafka_url(kafka, "read.notable"))).sources() == []


def kafka_url(kafka: Kafka, topic: str) -> str:
    return f"kafka://{','.join(settings(kafka, topic).bootstrap_servers)}/{topic}"


async def test_kafka_reader_ends_when_topic_is_empty(kafka: Kafka) -> None:
    kafka.admin.create_topic("read.empty")
    assert await read_to_end(reader(kafka, "read.empty")) == []


async def test_kafka_reader_ends_when_last_offset_is_not_a_message(kafka: Kafka) -> None:
    """A transaction marker takes an offset but is not a message."""
    kafka.admin.create_topic("read.markers")
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id="read.markers")
    await producer.start()
    async with producer.transaction():
        await producer.send_and_wait("read.markers", b"{}")
    await producer.stop()
    assert record_data(await read_to_end(reader(kafka, "read.markers"))) == [b"{}"]


async def test_kafka_reader_starts_at_timestamp_or_end(kafka: Kafka) -> None:
    await publish(kafka, "read.since", 1, 10)
    await asyncio.sleep(0.05)
    moment = datetime.now(UTC)
    await asyncio.sleep(0.05)
    later = await publish(kafka, "read.since", 11, 10)
    assert record_data(await read_to_end(reader(kafka, "read.since", start=moment))) == later
    assert await read_to_end(reader(kafka, "read.since", start="end")) == []
    assert await read_to_end(reader(kafka, "read.since", start=datetime.now(UTC))) == []
    async with follow(reader(kafka, "read.since", start="end", follow=True)) as followed:
        newest = await publish(kafka, "read.since", 21, 3)
        assert record_data(await followed.wait_count(3)) == newest


async def test_kafka_reader_leaves_no_consumer_group_behind(kafka: Kafka) -> None:
    await publish(kafka, "read.group", 1, 10)
    before = kafka.admin.topics(internal=True)
    async with follow(reader(kafka, "read.group", follow=True)) as followed:
        await followed.wait_count(10)
    assert kafka.admin.topics(internal=True) == before  # no __consumer_offsets topic


async def test_kafka_reader_resumes_after_broker_restart(kafka_factory: KafkaFactory) -> None:
    kafka = kafka_factory()
    first = await publish(kafka, "events", 1, 10)
    async with follow(reader(kafka, "events", follow=True, request_timeout="6s")) as followed:
        await followed.wait_count(10)
        kafka.kill()
        await eventually_async(lambda: bool(followed.notices))
        await asyncio.to_thread(kafka.start)
        second = await publish(kafka, "events", 11, 10)
        assert record_data(await followed.wait_count(20)) == first + second
        # An interruption, and the resumption; more of both if the broker is not ready yet after its start.
        lost, *_, resumed = followed.notices
        assert_names(lost, "127.0.0.1:", "connection refused")
        assert resumed == "reading resumed"


async def test_kafka_reader_raises_not_found_when_topic_is_missing(kafka: Kafka) -> None:
    with raises_naming(NotFoundError, "read.missing", kafka.bootstrap):
        await read_to_end(reader(kafka, "read.missing"))
    assert "read.missing" not in kafka.admin.topics()


async def test_kafka_reader_fails_in_time_when_broker_is_unresponsive(kafka_factory: KafkaFactory) -> None:
    kafka = kafka_factory(proxied=True)
    await publish(kafka, "events", 1, 10)
    address = f"127.0.0.1:{kafka.proxies[0].port}"
    assert len(await read_to_end(reader(address, "events", request_timeout="8s"))) == 10
    kafka.proxies[0].drop_traffic()
    started = time.monotonic()
    with raises_naming(TransientError, address):
        await read_to_end(reader(address, "events", request_timeout="8s", follow=True))
    assert time.monotonic() - started < 20
    with raises_naming(TransientError, "127.0.0.1:1", "refused"):
        await read_to_end(reader("127.0.0.1:1", "events", follow=True))


async def test_kafka_reader_needs_only_describe_and_read_permission(kafka_factory: KafkaFactory) -> None:
    kafka = kafka_factory(listeners=("sasl_plaintext",), acls=True)
    published = await publish(kafka, "events", 1, 10)
    address, auth = kafka.bootstrap_for("sasl_plaintext"), {"username": "reader", "password": USERS["reader"]}
    with raises_naming(TransientError, "user reader", "topic events", "Describe", "Read"):
        await read_to_end(reader(address, "events", auth=auth))
    kafka.admin.allow("User:reader", "describe", "events")
    with raises_naming(TransientError, "user reader", "topic events", "Describe", "Read"):
        await read_to_end(reader(address, "events", auth=auth))
    kafka.admin.allow("User:reader", "read", "events")
    assert record_data(await read_to_end(reader(address, "events", auth=auth))) == published
