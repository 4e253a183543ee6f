"""Failures of Kafka: no record is lost, first occurrences are in order (P5), and every wait is bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from structlog.testing import capture_logs

from bridge.core.errors import TransientError
from bridge.core.records import Record
from sinks.kafka.sink import KafkaSink
from tests.integration.kafka_sinks import KafkaFactory, distinct_values, open_sink, record_data
from tests.integration.target_checks import publish_until_accepted
from tests.integration.test_kafka_state_topic import SOURCE, state_table
from tests.naming import assert_names, raises_naming
from tests.sample_records import batches, control_record, record, records
from tests.testbed.kafka import COMPONENTS, Kafka
from tests.testbed.server import HOST
from tests.testbed.tcp_proxy import TcpProxy


@pytest.fixture(scope="module")
def shared_broker(require: Callable[..., None]) -> Iterator[Kafka]:
    require(*COMPONENTS)
    with Kafka(proxied=True) as kafka:
        yield kafka


@pytest.fixture
def broker(shared_broker: Kafka) -> Iterator[Kafka]:
    """A broker behind a proxy, which tests may kill, suspend and restart; use unique topics."""
    yield shared_broker
    shared_broker.proxies[0].restore()


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


async def test_kafka_sink_delivers_in_order_when_broker_restarts(broker: Kafka) -> None:
    all_records = records(3000, size=800)
    steps = (broker.kill, lambda: time.sleep(6), broker.start, broker.stop, broker.start)
    async with open_sink(broker, "restarted", retry_start=True, request_timeout="3s") as sink:
        await publish_during(sink, all_records, *steps)
    assert_complete(broker, "restarted", all_records)


async def test_kafka_sink_delivers_in_order_when_connection_flaps(broker: Kafka) -> None:
    (proxy,), all_records = broker.proxies, records(3000, size=800)
    async with open_sink(
        broker.bootstrap_for("plaintext"), "flaps", retry_start=True, request_timeout="3s", compression="none"
    ) as sink:
        await publish_during(
            sink, all_records, *(step for _ in range(8) for step in (proxy.refuse, proxy.restore, proxy.reset))
        )
    assert_complete(broker, "flaps", all_records)


async def test_fault_34_kafka_connection_is_reset(broker: Kafka) -> None:
    (proxy,), all_records = broker.proxies, records(2000, size=800)
    steps = [lambda count=count: proxy.reset_after(count) for count in (1, 100, 5000, 50_001, 70_003)]
    async with open_sink(broker.bootstrap_for("plaintext"), "halves", retry_start=True, request_timeout="3s") as sink:
        await publish_during(sink, all_records, *steps)
    assert_complete(broker, "halves", all_records)


async def test_fault_26_kafka_acknowledgment_is_lost(broker: Kafka) -> None:
    (proxy,), all_records = broker.proxies, records(100)
    async with open_sink(broker.bootstrap_for("plaintext"), "again") as sink:
        await sink.publish(all_records[:50])
        await asyncio.to_thread(proxy.delay, 1)
        log = broker.nodes[0].directory / "data" / "again-0" / f"{0:020}.log"  # a client would be delayed as well
        before = log.stat().st_size
        publishing = asyncio.create_task(sink.publish(all_records[50:]))
        while log.stat().st_size == before:  # noqa: ASYNC110 (the test does nothing else meanwhile)
            await asyncio.sleep(0.01)
        # The broker has stored the records; its acknowledgment is delayed.
        await asyncio.to_thread(proxy.reset)
        await asyncio.to_thread(proxy.restore)
        await publishing
        assert [each.value for each in broker.admin.records("again")] == record_data(
            all_records
        )  # the broker detects the duplicates
        await sink.close()  # as after a restart: duplicates are not detected
        await sink.publish(all_records[50:])
    assert [each.value for each in broker.admin.records("again")] == record_data([*all_records, *all_records[50:]])


async def test_fault_46_kafka_moves_to_another_address(kafka_factory: KafkaFactory) -> None:
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


async def test_fault_34_kafka_connection_is_half_open(broker: Kafka) -> None:
    (proxy,), all_records = broker.proxies, records(300)
    async with open_sink(broker.bootstrap_for("plaintext"), "open", retry_start=True, request_timeout="2s") as sink:
        await publish_until_accepted(sink, all_records[:100])
        await asyncio.to_thread(proxy.drop_traffic)
        with raises_naming(TransientError, "topic open", "2 s"):
            await sink.publish(all_records[100:200])
        await asyncio.to_thread(proxy.restore)
        await publish_until_accepted(sink, all_records[100:])
    assert_complete(broker, "open", all_records)


async def test_kafka_sink_tolerates_slow_network(broker: Kafka) -> None:
    (proxy,), all_records = broker.proxies, records(500)
    proxy.delay(0.05)
    async with open_sink(broker.bootstrap_for("plaintext"), "slow") as sink:
        for batch in batches(all_records, 100):
            await sink.publish(batch)
    assert [each.value for each in broker.admin.records("slow")] == record_data(all_records)


async def test_kafka_sink_reports_unreachable_leader(broker: Kafka) -> None:
    """A common misconfiguration: brokers advertise an address that clients cannot reach."""
    (proxy,) = broker.proxies
    broker.admin.create_topic("advertised")
    proxy.refuse()
    with pytest.raises(TransientError) as caught:
        async with open_sink(broker, "advertised", request_timeout="12s"):
            pass
    assert_names(
        caught.value, broker.bootstrap, "12 s", "leader of partition 0", f"{proxy.address}: connection refused"
    )


async def test_state_topic_is_complete_after_unacknowledged_publish(broker: Kafka) -> None:
    (proxy,) = broker.proxies
    batch = [record(1, id_="a"), record(2, id_="b"), record(3, "exited", id_="a"), record(4, "paused", id_="b")]
    async with open_sink(
        broker.bootstrap_for("plaintext"), "stream", state_topic="state", retry_start=True, request_timeout="2s"
    ) as sink:
        await publish_until_accepted(sink, [control_record(1, "snapshot_started"), *batch])
        broker.suspend()
        with pytest.raises(TransientError):
            await sink.publish([control_record(5, "snapshot_completed"), record(6, id_="c")])
        broker.resume()
        proxy.reset()
        await publish_until_accepted(sink, [control_record(5, "snapshot_completed"), record(6, id_="c")])
    assert set(state_table(broker, "state")) == {SOURCE, f"{SOURCE}/shop/b", f"{SOURCE}/shop/c"}


# --- producers out of sync with the broker ---


@pytest.mark.parametrize("error", ["OutOfOrderSequenceNumber", "ProducerFenced"])
async def test_fault_28_kafka_producer_is_broken(kafka: Kafka, error: str) -> None:
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
