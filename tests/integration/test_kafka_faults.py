"""Failures of Kafka: no record is lost, first occurrences are in order (P5), and every wait is bounded."""

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
from tests.integration.kafka_sinks import KafkaFactory, distinct_values, open_sink, record_data, settings
from tests.integration.target_checks import publish_until_accepted
from tests.naming import assert_names, raises_naming
from tests.sample_records import batches, records
from tests.testbed.kafka import LONG_SESSION_TIMEOUT, Kafka
from tests.testbed.server import HOST
from tests.testbed.tcp_proxy import TcpProxy

CLOCK = SystemClock()


async def publish_all(
    sink: KafkaSink, all_records: Sequence[Record], size: int = 100, *, seconds: float = 120
) -> list[str]:
    """Publish all records as a pump does; return the errors."""
    errors: list[str] = []
    for batch in batches(all_records, size):
        errors += await publish_until_accepted(sink, batch, seconds=seconds)
        await asyncio.sleep(0.01)
    return errors


async def publish_during(sink: KafkaSink, all_records: Sequence[Record], *steps: Callable[[], object]) -> list[str]:
    """Publish all records while the steps run one after the other."""
    publishing = asyncio.create_task(publish_all(sink, all_records))
    for step in steps:
        await asyncio.sleep(0.5)
        await asyncio.to_thread(step)
    return await publishing


def assert_complete(kafka: Kafka, topic: str, all_records: Sequence[Record]) -> None:
    assert distinct_values(kafka.admin.records(topic)) == record_data(all_records)


# --- brokers that stop ---


async def test_kafka_sink_connects_after_broker_was_down_at_start(kafka_factory: KafkaFactory) -> None:
    kafka = kafka_factory()
    kafka.kill()
    sink = KafkaSink(settings(kafka, "late"), CLOCK)
    with raises_naming(TransientError, kafka.bootstrap, "connection refused"):
        await sink.start()
    with raises_naming(TransientError, kafka.bootstrap, "connection refused"):
        await sink.publish(records(1))
    await asyncio.to_thread(kafka.start)
    await sink.start()
    await sink.publish(records(10))
    await sink.close()
    await sink.close()
    assert_complete(kafka, "late", records(10))


async def test_kafka_sink_delivers_in_order_when_broker_restarts(kafka_factory: KafkaFactory) -> None:
    kafka, all_records = kafka_factory(), records(3000, size=800)
    async with open_sink(kafka, "restarted", retry_start=True, request_timeout="3s") as sink:
        await publish_during(sink, all_records, kafka.kill, lambda: time.sleep(6), kafka.start, kafka.stop, kafka.start)
    assert_complete(kafka, "restarted", all_records)


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_kafka_sink_delivers_in_order_when_connection_flaps(
    kafka_factory: KafkaFactory, compression: str
) -> None:
    kafka, all_records = kafka_factory(proxied=True), records(3000, size=800)
    (proxy,) = kafka.proxies
    async with open_sink(
        kafka.bootstrap_for("plaintext"), "flaps", retry_start=True, request_timeout="3s", compression=compression
    ) as sink:
        await publish_during(
            sink, all_records, *(step for _ in range(8) for step in (proxy.refuse, proxy.restore, proxy.reset))
        )
    assert_complete(kafka, "flaps", all_records)


async def test_kafka_sink_stores_whole_records_when_connection_resets(
    kafka_factory: KafkaFactory,
) -> None:
    kafka, all_records = kafka_factory(proxied=True), records(2000, size=800)
    (proxy,) = kafka.proxies
    steps = [lambda count=count: proxy.reset_after(count) for count in (1, 100, 5000, 50_001, 70_003)]
    async with open_sink(kafka.bootstrap_for("plaintext"), "halves", retry_start=True, request_timeout="3s") as sink:
        await publish_during(sink, all_records, *steps)
    assert_complete(kafka, "halves", all_records)


async def test_kafka_sink_resends_same_bytes_when_acknowledgment_lost(kafka_factory: KafkaFactory) -> None:
    kafka, all_records = kafka_factory(proxied=True), records(100)
    (proxy,) = kafka.proxies
    async with open_sink(kafka.bootstrap_for("plaintext"), "again") as sink:
        await sink.publish(all_records[:50])
        await asyncio.to_thread(proxy.delay, 1)
        log = kafka.nodes[0].directory / "data" / "again-0" / f"{0:020}.log"  # a client would be delayed as well
        before = log.stat().st_size
        publishing = asyncio.create_task(sink.publish(all_records[50:]))
        while log.stat().st_size == before:  # noqa: ASYNC110 (the test does nothing else meanwhile)
            await asyncio.sleep(0.01)
        # The broker has stored the records; its acknowledgment is delayed.
        await asyncio.to_thread(proxy.reset)
        await asyncio.to_thread(proxy.restore)
        await publishing
        assert [each.value for each in kafka.admin.records("again")] == record_data(
            all_records
        )  # the broker detects the duplicates
        await sink.close()  # as after a restart: duplicates are not detected
        await sink.publish(all_records[50:])
    assert [each.value for each in kafka.admin.records("again")] == record_data([*all_records, *all_records[50:]])


async def test_kafka_sink_recreates_deleted_topic(kafka_factory: KafkaFactory) -> None:
    kafka, all_records = kafka_factory(), records(200)
    async with open_sink(kafka, "deleted", retry_start=True, request_timeout="2s") as sink:
        await publish_until_accepted(sink, all_records[:100])
        kafka.admin.delete_topic("deleted")
        await publish_until_accepted(sink, all_records[100:])
    assert_complete(kafka, "deleted", all_records[100:])


async def test_kafka_sink_follows_broker_to_another_address(kafka_factory: KafkaFactory) -> None:
    """The bootstrap address stays, as that of a load balancer does; the timeout is longer than the test may take."""
    kafka, all_records = kafka_factory(), records(300)
    with TcpProxy(HOST, kafka.nodes[0].ports["plaintext"]) as bootstrap:
        async with open_sink(bootstrap.address, "moved", request_timeout="10m") as sink:
            await sink.publish(all_records[:100])
            publishing = asyncio.create_task(publish_all(sink, all_records[100:]))
            await asyncio.to_thread(kafka.kill)
            await asyncio.to_thread(kafka.move, 1)
            bootstrap.redirect(kafka.nodes[0].ports["plaintext"])
            await asyncio.to_thread(kafka.start)
            began = time.monotonic()
            await publishing
            print(f"followed within {time.monotonic() - began:.1f} s")
    assert_complete(kafka, "moved", all_records)


# --- brokers that hang ---


async def test_kafka_sink_times_out_and_recovers_when_broker_hangs(kafka_factory: KafkaFactory) -> None:
    kafka, all_records = kafka_factory(settings=LONG_SESSION_TIMEOUT), records(300)
    async with open_sink(kafka, "hangs", retry_start=True, request_timeout="2s") as sink:
        await publish_until_accepted(sink, all_records[:100])
        kafka.suspend()
        began = time.monotonic()
        with pytest.raises(TransientError) as caught:
            await sink.publish(all_records[100:200])
        assert_names(caught.value, "topic hangs", "2 s", kafka.bootstrap)
        with raises_naming(TransientError, kafka.bootstrap):
            await sink.publish(all_records[100:200])
        assert time.monotonic() - began < 25
        kafka.resume()
        # A loaded machine may need several attempts within this timeout.
        errors = await publish_until_accepted(sink, all_records[100:])
        assert [each for each in errors if kafka.bootstrap not in each and "2 s" not in each] == []
    assert_complete(kafka, "hangs", all_records)


async def test_kafka_sink_closes_in_time_when_broker_hangs(kafka_factory: KafkaFactory) -> None:
    """`open_sink` checks that close() is fast and leaves no task."""
    kafka, all_records = kafka_factory(settings=LONG_SESSION_TIMEOUT), records(300)
    async with open_sink(kafka, "closed") as sink:
        await sink.publish(all_records[:100])
        kafka.suspend()
        publishing = asyncio.create_task(sink.publish(all_records[100:200]))
        await asyncio.sleep(0.5)
        publishing.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        await sink.close()
        assert time.monotonic() - began < 8
    kafka.resume()
    async with open_sink(kafka, "closed") as sink:
        await sink.publish(all_records[100:])
    assert_complete(kafka, "closed", all_records)


async def test_kafka_sink_detects_half_open_connection(kafka_factory: KafkaFactory) -> None:
    kafka, all_records = kafka_factory(proxied=True), records(300)
    (proxy,) = kafka.proxies
    async with open_sink(kafka.bootstrap_for("plaintext"), "open", retry_start=True, request_timeout="2s") as sink:
        await publish_until_accepted(sink, all_records[:100])
        await asyncio.to_thread(proxy.drop_traffic)
        with raises_naming(TransientError, "topic open", "2 s"):
            await sink.publish(all_records[100:200])
        await asyncio.to_thread(proxy.restore)
        await publish_until_accepted(sink, all_records[100:])
    assert_complete(kafka, "open", all_records)


async def test_kafka_sink_tolerates_slow_network(kafka_factory: KafkaFactory) -> None:
    kafka, all_records = kafka_factory(proxied=True), records(500)
    (proxy,) = kafka.proxies
    proxy.delay(0.05)
    async with open_sink(kafka.bootstrap_for("plaintext"), "slow") as sink:
        for batch in batches(all_records, 100):
            await sink.publish(batch)
    assert [each.value for each in kafka.admin.records("slow")] == record_data(all_records)


async def test_kafka_sink_reports_unreachable_leader(kafka_factory: KafkaFactory) -> None:
    """A common misconfiguration: brokers advertise an address that clients cannot reach."""
    kafka = kafka_factory(proxied=True)
    (proxy,) = kafka.proxies
    kafka.admin.create_topic("advertised")
    proxy.refuse()
    with pytest.raises(TransientError) as caught:
        async with open_sink(kafka, "advertised", request_timeout="12s"):
            pass
    assert_names(caught.value, kafka.bootstrap, "12 s", "leader of partition 0", f"{proxy.address}: connection refused")


# --- producers out of sync with the broker ---


@pytest.mark.parametrize("error", ["OutOfOrderSequenceNumber", "ProducerFenced"])
async def test_kafka_sink_recreates_broken_producer_immediately(kafka: Kafka, error: str) -> None:
    topic, all_records = f"fenced-{error}", records(300)
    async with open_sink(kafka, topic) as sink:
        desynchronize_producer(sink, epoch=1)
        await sink.publish(all_records[:100])
        if error == "ProducerFenced":
            desynchronize_producer(sink, epoch=0)
        else:
            desynchronize_producer(sink, skipped=5)
        with capture_logs() as logs:
            await sink.publish(all_records[100:200])  # a missing acknowledgment would raise an error
        await sink.publish(all_records[200:])
    assert [each.value for each in kafka.admin.records(topic)] == record_data(all_records)
    assert [each["reason"] for each in logs if each["event"] == "producer_recreated"] == [error]


def desynchronize_producer(sink: KafkaSink, *, epoch: int = 1, skipped: int = 0) -> None:
    """Make the producer's sequence numbers differ from the broker's, as after a failed batch."""
    assert sink._connector._connection
    manager = sink._connector._connection.producer._txn_manager
    manager._pid_and_epoch = manager._pid_and_epoch._replace(epoch=epoch)
    for partition in manager._sequence_numbers:
        manager.increment_sequence_number(partition, skipped)
