"""Kafka fails in every way it can: nothing is lost, first occurrences stand in order (P5), nothing waits for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest
from structlog.testing import capture_logs

from bridge.clock import SystemClock
from bridge.core.errors import TransientError
from bridge.core.records import Record
from sinks.kafka.sink import KafkaSink
from tests.integration.kafka_sinks import (
    KafkaFactory,
    distinct_values,
    open_sink,
    publish_until_accepted,
    record_data,
    settings,
)
from tests.naming import assert_names, raises_naming
from tests.sample_records import batches, records
from tests.testbed.kafka import LONG_SESSION_TIMEOUT, Kafka

CLOCK = SystemClock()


async def publish_all(
    sink: KafkaSink, all_records: Sequence[Record], size: int = 100, *, seconds: float = 120
) -> list[str]:
    """Publish all, as a pump does; return what was in the way."""
    complaints: list[str] = []
    for batch in batches(all_records, size):
        complaints += await publish_until_accepted(sink, batch, seconds=seconds)
        await asyncio.sleep(0.01)
    return complaints


async def publish_during(sink: KafkaSink, all_records: Sequence[Record], *steps: Callable[[], object]) -> list[str]:
    """Publish all while one step after the other is taken."""
    pumping = asyncio.create_task(publish_all(sink, all_records))
    for step in steps:
        await asyncio.sleep(0.5)
        await asyncio.to_thread(step)
    return await pumping


def assert_complete(kafka: Kafka, topic: str, all_records: Sequence[Record]) -> None:
    assert distinct_values(kafka.admin.records(topic)) == record_data(all_records)


# --- brokers that die ---


async def test_kafka_sink_connects_after_broker_was_down_at_start(kafka_factory: KafkaFactory) -> None:
    kafka = kafka_factory()
    kafka.kill()
    made = KafkaSink(settings(kafka, "dead"), CLOCK)
    with raises_naming(TransientError, kafka.bootstrap, "connection refused"):
        await made.start()
    with raises_naming(TransientError, kafka.bootstrap, "connection refused"):
        await made.publish(records(1))
    await asyncio.to_thread(kafka.start)
    await made.start()
    await made.publish(records(10))
    await made.close()
    await made.close()
    assert_complete(kafka, "dead", records(10))


async def test_kafka_sink_delivers_in_order_when_broker_restarts(kafka_factory: KafkaFactory) -> None:
    kafka, whole = kafka_factory(), records(3000, size=800)
    async with open_sink(kafka, "dies", retry_start=True, request_timeout="3s") as made:
        await publish_during(made, whole, kafka.kill, lambda: time.sleep(6), kafka.start, kafka.stop, kafka.start)
    assert_complete(kafka, "dies", whole)


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_kafka_sink_delivers_in_order_when_connection_flaps(
    kafka_factory: KafkaFactory, compression: str
) -> None:
    kafka, whole = kafka_factory(proxied=True), records(3000, size=800)
    (proxy,) = kafka.proxies
    async with open_sink(
        kafka.bootstrap_for("plaintext"), "flaps", retry_start=True, request_timeout="3s", compression=compression
    ) as made:
        await publish_during(
            made, whole, *(step for _ in range(8) for step in (proxy.refuse, proxy.restore, proxy.reset))
        )
    assert_complete(kafka, "flaps", whole)


async def test_kafka_sink_stores_whole_records_when_connection_resets(
    kafka_factory: KafkaFactory,
) -> None:
    kafka, whole = kafka_factory(proxied=True), records(2000, size=800)
    (proxy,) = kafka.proxies
    steps = [lambda count=count: proxy.reset_after(count) for count in (1, 100, 5000, 50_001, 70_003)]
    async with open_sink(kafka.bootstrap_for("plaintext"), "halves", retry_start=True, request_timeout="3s") as made:
        await publish_during(made, whole, *steps)
    assert_complete(kafka, "halves", whole)


async def test_kafka_sink_resends_same_bytes_when_acknowledgement_lost(kafka_factory: KafkaFactory) -> None:
    kafka, whole = kafka_factory(proxied=True), records(100)
    (proxy,) = kafka.proxies
    async with open_sink(kafka.bootstrap_for("plaintext"), "again") as made:
        await made.publish(whole[:50])
        await asyncio.to_thread(proxy.delay, 1)
        log = kafka.nodes[0].directory / "data" / "again-0" / f"{0:020}.log"  # any client would be delayed, too
        before = log.stat().st_size
        publishing = asyncio.create_task(made.publish(whole[50:]))
        while log.stat().st_size == before:  # noqa: ASYNC110 (a test has nothing else to do meanwhile)
            await asyncio.sleep(0.01)
        # The broker has it, and its answer is on the way.
        await asyncio.to_thread(proxy.reset)
        await asyncio.to_thread(proxy.restore)
        await publishing
        assert [each.value for each in kafka.admin.records("again")] == record_data(whole)  # the broker knows them
        await made.close()  # a restart: nobody knows them
        await made.publish(whole[50:])
    assert [each.value for each in kafka.admin.records("again")] == record_data([*whole, *whole[50:]])


async def test_kafka_sink_recreates_deleted_topic(kafka_factory: KafkaFactory) -> None:
    kafka, whole = kafka_factory(), records(200)
    async with open_sink(kafka, "deleted", retry_start=True, request_timeout="2s") as made:
        await publish_until_accepted(made, whole[:100])
        kafka.admin.delete_topic("deleted")
        await publish_until_accepted(made, whole[100:])
    assert_complete(kafka, "deleted", whole[100:])


# --- brokers that hang ---


async def test_kafka_sink_times_out_and_recovers_when_broker_hangs(kafka_factory: KafkaFactory) -> None:
    kafka, whole = kafka_factory(settings=LONG_SESSION_TIMEOUT), records(300)
    async with open_sink(kafka, "hangs", retry_start=True, request_timeout="2s") as made:
        await publish_until_accepted(made, whole[:100])
        kafka.suspend()
        began = time.monotonic()
        with pytest.raises(TransientError) as caught:
            await made.publish(whole[100:200])
        assert_names(caught.value, "topic hangs", "2 s", kafka.bootstrap)
        with raises_naming(TransientError, kafka.bootstrap):
            await made.publish(whole[100:200])
        assert time.monotonic() - began < 25
        kafka.resume()
        # At once, or as soon as a loaded machine is quick enough for this timeout.
        complaints = await publish_until_accepted(made, whole[100:])
        assert [each for each in complaints if kafka.bootstrap not in each and "2 s" not in each] == []
    assert_complete(kafka, "hangs", whole)


async def test_kafka_sink_closes_in_time_when_broker_hangs(kafka_factory: KafkaFactory) -> None:
    """`sink` sees to it that close() is quick, and that no task is left."""
    kafka, whole = kafka_factory(settings=LONG_SESSION_TIMEOUT), records(300)
    async with open_sink(kafka, "ends") as made:
        await made.publish(whole[:100])
        kafka.suspend()
        publishing = asyncio.create_task(made.publish(whole[100:200]))
        await asyncio.sleep(0.5)
        publishing.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        await made.close()
        assert time.monotonic() - began < 8
    kafka.resume()
    async with open_sink(kafka, "ends") as made:
        await made.publish(whole[100:])
    assert_complete(kafka, "ends", whole)


async def test_kafka_sink_detects_half_open_connection(kafka_factory: KafkaFactory) -> None:
    kafka, whole = kafka_factory(proxied=True), records(300)
    (proxy,) = kafka.proxies
    async with open_sink(kafka.bootstrap_for("plaintext"), "open", retry_start=True, request_timeout="2s") as made:
        await publish_until_accepted(made, whole[:100])
        await asyncio.to_thread(proxy.drop_traffic)
        with raises_naming(TransientError, "topic open", "2 s"):
            await made.publish(whole[100:200])
        await asyncio.to_thread(proxy.restore)
        await publish_until_accepted(made, whole[100:])
    assert_complete(kafka, "open", whole)


async def test_kafka_sink_tolerates_slow_network(kafka_factory: KafkaFactory) -> None:
    kafka, whole = kafka_factory(proxied=True), records(500)
    (proxy,) = kafka.proxies
    proxy.delay(0.05)
    async with open_sink(kafka.bootstrap_for("plaintext"), "slow") as made:
        for batch in batches(whole, 100):
            await made.publish(batch)
    assert [each.value for each in kafka.admin.records("slow")] == record_data(whole)


async def test_kafka_sink_reports_unreachable_leader(kafka_factory: KafkaFactory) -> None:
    """The classic mistake: brokers advertise an address that clients cannot use."""
    kafka = kafka_factory(proxied=True)
    (proxy,) = kafka.proxies
    kafka.admin.create_topic("advertised")
    proxy.refuse()
    with pytest.raises(TransientError) as caught:
        async with open_sink(kafka, "advertised", request_timeout="12s"):
            pass
    assert_names(caught.value, kafka.bootstrap, "12 s", "leader of partition 0", f"{proxy.address}: connection refused")


# --- producers whose count the broker does not share ---


@pytest.mark.parametrize("how", ["OutOfOrderSequenceNumber", "ProducerFenced"])
async def test_kafka_sink_recreates_broken_producer_immediately(kafka: Kafka, how: str) -> None:
    topic, whole = f"poisoned-{how}", records(300)
    async with open_sink(kafka, topic) as made:
        desynchronize_producer(made, epoch=1)
        await made.publish(whole[:100])
        if how == "ProducerFenced":
            desynchronize_producer(made, epoch=0)
        else:
            desynchronize_producer(made, skipped=5)
        with capture_logs() as logs:
            await made.publish(whole[100:200])  # after one acknowledgement that does not come, it would raise
        await made.publish(whole[200:])
    assert [each.value for each in kafka.admin.records(topic)] == record_data(whole)
    assert [each["reason"] for each in logs if each["event"] == "producer_recreated"] == [how]


def desynchronize_producer(sink: KafkaSink, *, epoch: int = 1, skipped: int = 0) -> None:
    """Make the producer's count differ from the broker's, as after a batch that failed when it had been counted."""
    assert sink._connection
    manager = sink._connection.producer._txn_manager
    manager._pid_and_epoch = manager._pid_and_epoch._replace(epoch=epoch)
    for place in manager._sequence_numbers:
        manager.increment_sequence_number(place, skipped)
