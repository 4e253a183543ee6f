"""Kafka fails in every way it can: nothing is lost, first occurrences stand in order (P5), nothing waits for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest
from structlog.testing import capture_logs

from bridge.clock import SystemClock
from bridge.core.errors import TransientError
from bridge.core.events import Record
from sinks.kafka.sink import KafkaSink
from tests.integration.kafka_sinks import FreshKafka, data, first_occurrences, insist, settings, sink
from tests.naming import assert_names, raises_naming
from tests.sample_records import batches, records
from tests.testbed.kafka import PATIENT, Kafka

CLOCK = SystemClock()


async def pumped(made: KafkaSink, whole: Sequence[Record], size: int = 100, *, seconds: float = 120) -> list[str]:
    """Publish all, as a pump does; return what was in the way."""
    complaints: list[str] = []
    for batch in batches(whole, size):
        complaints += await insist(made, batch, seconds=seconds)
        await asyncio.sleep(0.01)
    return complaints


async def disturbed(made: KafkaSink, whole: Sequence[Record], *steps: Callable[[], object]) -> list[str]:
    """Publish all while one step after the other is taken."""
    pumping = asyncio.create_task(pumped(made, whole))
    for step in steps:
        await asyncio.sleep(0.5)
        await asyncio.to_thread(step)
    return await pumping


def assert_complete(kafka: Kafka, topic: str, whole: Sequence[Record]) -> None:
    assert first_occurrences(kafka.admin.records(topic)) == data(whole)


# --- brokers that die ---


async def test_a_broker_that_is_dead_at_the_start_is_waited_for(fresh_kafka: FreshKafka) -> None:
    kafka = fresh_kafka()
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


async def test_a_broker_that_dies_and_comes_back_gets_all_in_order(fresh_kafka: FreshKafka) -> None:
    kafka, whole = fresh_kafka(), records(3000, size=800)
    async with sink(kafka, "dies", insistent=True, request_timeout="3s") as made:
        await disturbed(made, whole, kafka.kill, lambda: time.sleep(6), kafka.start, kafka.stop, kafka.start)
    assert_complete(kafka, "dies", whole)


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_a_broker_that_flaps_gets_all_in_order(fresh_kafka: FreshKafka, compression: str) -> None:
    kafka, whole = fresh_kafka(proxied=True), records(3000, size=800)
    (proxy,) = kafka.proxies
    async with sink(
        kafka.bootstrap_of("plaintext"), "flaps", insistent=True, request_timeout="3s", compression=compression
    ) as made:
        await disturbed(made, whole, *(step for _ in range(8) for step in (proxy.cut, proxy.heal, proxy.drop)))
    assert_complete(kafka, "flaps", whole)


async def test_a_connection_that_is_reset_in_the_middle_of_a_record_leaves_no_half_one(
    fresh_kafka: FreshKafka,
) -> None:
    kafka, whole = fresh_kafka(proxied=True), records(2000, size=800)
    (proxy,) = kafka.proxies
    steps = [lambda count=count: proxy.reset_after(count) for count in (1, 100, 5000, 50_001, 70_003)]
    async with sink(kafka.bootstrap_of("plaintext"), "halves", insistent=True, request_timeout="3s") as made:
        await disturbed(made, whole, *steps)
    assert_complete(kafka, "halves", whole)


async def test_a_lost_acknowledgement_brings_the_same_bytes_again_at_the_most(fresh_kafka: FreshKafka) -> None:
    kafka, whole = fresh_kafka(proxied=True), records(100)
    (proxy,) = kafka.proxies
    async with sink(kafka.bootstrap_of("plaintext"), "again") as made:
        await made.publish(whole[:50])
        await asyncio.to_thread(proxy.delay, 1)
        log = kafka.nodes[0].folder / "data" / "again-0" / f"{0:020}.log"  # any client would be delayed, too
        before = log.stat().st_size
        publishing = asyncio.create_task(made.publish(whole[50:]))
        while log.stat().st_size == before:  # noqa: ASYNC110 (a test has nothing else to do meanwhile)
            await asyncio.sleep(0.01)
        # The broker has it, and its answer is on the way.
        await asyncio.to_thread(proxy.drop)
        await asyncio.to_thread(proxy.heal)
        await publishing
        assert [each.value for each in kafka.admin.records("again")] == data(whole)  # the broker knows them
        await made.close()  # a restart: nobody knows them
        await made.publish(whole[50:])
    assert [each.value for each in kafka.admin.records("again")] == data([*whole, *whole[50:]])


async def test_a_topic_that_is_deleted_is_created_again(fresh_kafka: FreshKafka) -> None:
    kafka, whole = fresh_kafka(), records(200)
    async with sink(kafka, "deleted", insistent=True, request_timeout="2s") as made:
        await insist(made, whole[:100])
        kafka.admin.delete_topic("deleted")
        await insist(made, whole[100:])
    assert_complete(kafka, "deleted", whole[100:])


# --- brokers that hang ---


async def test_a_suspended_broker_is_given_up_in_time_and_gets_all_afterwards(fresh_kafka: FreshKafka) -> None:
    kafka, whole = fresh_kafka(settings=PATIENT), records(300)
    async with sink(kafka, "hangs", insistent=True, request_timeout="2s") as made:
        await insist(made, whole[:100])
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
        complaints = await insist(made, whole[100:])
        assert [each for each in complaints if kafka.bootstrap not in each and "2 s" not in each] == []
    assert_complete(kafka, "hangs", whole)


async def test_an_end_while_the_broker_hangs_comes_in_time_and_nothing_goes_on(fresh_kafka: FreshKafka) -> None:
    """`sink` sees to it that close() is quick, and that no task is left."""
    kafka, whole = fresh_kafka(settings=PATIENT), records(300)
    async with sink(kafka, "ends") as made:
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
    async with sink(kafka, "ends") as made:
        await made.publish(whole[100:])
    assert_complete(kafka, "ends", whole)


async def test_a_half_open_connection_is_noticed(fresh_kafka: FreshKafka) -> None:
    kafka, whole = fresh_kafka(proxied=True), records(300)
    (proxy,) = kafka.proxies
    async with sink(kafka.bootstrap_of("plaintext"), "open", insistent=True, request_timeout="2s") as made:
        await insist(made, whole[:100])
        await asyncio.to_thread(proxy.silence)
        with raises_naming(TransientError, "topic open", "2 s"):
            await made.publish(whole[100:200])
        await asyncio.to_thread(proxy.heal)
        await insist(made, whole[100:])
    assert_complete(kafka, "open", whole)


async def test_a_slow_network_is_no_fault(fresh_kafka: FreshKafka) -> None:
    kafka, whole = fresh_kafka(proxied=True), records(500)
    (proxy,) = kafka.proxies
    proxy.delay(0.05)
    async with sink(kafka.bootstrap_of("plaintext"), "slow") as made:
        for batch in batches(whole, 100):
            await made.publish(batch)
    assert [each.value for each in kafka.admin.records("slow")] == data(whole)


async def test_a_leader_that_cannot_be_reached_is_named(fresh_kafka: FreshKafka) -> None:
    """The classic mistake: brokers advertise an address that clients cannot use."""
    kafka = fresh_kafka(proxied=True)
    (proxy,) = kafka.proxies
    kafka.admin.create_topic("advertised")
    proxy.cut()
    with pytest.raises(TransientError) as caught:
        async with sink(kafka, "advertised", request_timeout="12s"):
            pass
    assert_names(caught.value, kafka.bootstrap, "12 s", "leader of partition 0", f"{proxy.address}: connection refused")


# --- producers whose count the broker does not share ---


@pytest.mark.parametrize("how", ["OutOfOrderSequenceNumber", "ProducerFenced"])
async def test_a_poisoned_producer_is_replaced_at_once(kafka: Kafka, how: str) -> None:
    topic, whole = f"poisoned-{how}", records(300)
    async with sink(kafka, topic) as made:
        pretend(made, epoch=1)
        await made.publish(whole[:100])
        if how == "ProducerFenced":
            pretend(made, epoch=0)
        else:
            pretend(made, skipped=5)
        with capture_logs() as logs:
            await made.publish(whole[100:200])  # after one acknowledgement that does not come, it would raise
        await made.publish(whole[200:])
    assert [each.value for each in kafka.admin.records(topic)] == data(whole)
    assert [each["reason"] for each in logs if each["event"] == "producer_recreated"] == [how]


def pretend(made: KafkaSink, *, epoch: int = 1, skipped: int = 0) -> None:
    """Make the producer's count differ from the broker's, as after a batch that failed when it had been counted."""
    assert made._link
    manager = made._link.producer._txn_manager
    manager._pid_and_epoch = manager._pid_and_epoch._replace(epoch=epoch)
    for place in manager._sequence_numbers:
        manager.increment_sequence_number(place, skipped)
