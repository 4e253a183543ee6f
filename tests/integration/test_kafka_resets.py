"""Topics that lose what was published: the sink notices it, and forgets what they held."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from sinks.kafka.sink import KafkaSink
from tests.integration.kafka_sinks import decode_value, open_sink
from tests.integration.target_checks import check_until_reset, publish_until_accepted
from tests.integration.test_kafka_state_topic import SOURCE, state_table
from tests.sample_records import control_record, record
from tests.testbed.kafka import COMPONENTS, Kafka

COMPACT = {"cleanup.policy": "compact"}
FAST_RETENTION = {"log.retention.check.interval.ms": "200", "log.initial.task.delay.ms": "100"}
Loss = Callable[[Kafka, str], None]
_numbers = itertools.count()


def delete_topic(kafka: Kafka, topic: str) -> None:
    kafka.admin.delete_topic(topic)


def replace_topic(kafka: Kafka, topic: str) -> None:
    """Create it again before the sink notices, with another number of partitions."""
    kafka.admin.delete_topic(topic)
    kafka.admin.create_topic(topic, partitions=7)


def delete_records(kafka: Kafka, topic: str) -> None:
    kafka.admin.delete_records(topic)


def delete_state_topic(kafka: Kafka, topic: str) -> None:
    kafka.admin.delete_topic(f"{topic}.state")


def replace_state_topic(kafka: Kafka, topic: str) -> None:
    kafka.admin.delete_topic(f"{topic}.state")
    kafka.admin.create_topic(f"{topic}.state", settings=COMPACT)


LOSSES: list[Loss] = [delete_topic, replace_topic, delete_records, delete_state_topic, replace_state_topic]


@pytest.fixture(scope="module")
def broker(require: Callable[..., None]) -> Iterator[Kafka]:
    """A broker that the tests may kill and erase, and which removes expired records at once."""
    require(*COMPONENTS)
    with Kafka(settings=FAST_RETENTION) as kafka:
        yield kafka


@pytest.fixture
def topic() -> str:
    """A topic that does not exist yet."""
    return f"resets{next(_numbers)}"


async def publish_snapshot(sink: KafkaSink, first: int, number: int = 1) -> None:
    """Publish a snapshot of the containers a, b and c: five records."""
    published = [
        control_record(first, "snapshot_started", number),
        *(record(first + 1 + index, "present", id_=id_) for index, id_ in enumerate("abc")),
        control_record(first + 4, "snapshot_completed", number),
    ]
    await publish_until_accepted(sink, published)


def assert_complete(kafka: Kafka, topic: str, first: int) -> None:
    """Check that the topic ends with a snapshot, from sequence ``first`` on, and that the state topic is complete."""
    partitions = range(len(kafka.admin.describe(topic)["partitions"]))
    stored = [decode_value(each)["sequence"] for number in partitions for each in kafka.admin.records(topic, number)]
    assert stored[-5:] == list(range(first, first + 5))
    assert set(state_table(kafka, f"{topic}.state")) == {SOURCE, *(f"{SOURCE}/shop/{id_}" for id_ in "abc")}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
async def test_kafka_sink_detects_loss_while_idle(kafka: Kafka, topic: str, loss: Loss) -> None:
    async with open_sink(kafka, topic, state_topic=f"{topic}.state") as sink:
        await publish_snapshot(sink, 1)
        await sink.check_target()
        assert sink.resets == 0
        await asyncio.to_thread(loss, kafka, topic)
        with capture_logs() as logs:
            await check_until_reset(sink)
        assert sink.resets == 1
        target = f"topic {topic}.state" if "state" in loss.__name__ else f"topic {topic}"
        assert [line["target"] for line in logs if line["event"] == "target_reset"] == [target]
        await publish_snapshot(sink, 6, 2)
        await sink.check_target()
        assert sink.resets == 1
    assert_complete(kafka, topic, 6)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
async def test_kafka_sink_detects_loss_while_publishing(kafka: Kafka, topic: str, loss: Loss) -> None:
    async with open_sink(kafka, topic, state_topic=f"{topic}.state") as sink:
        for number in range(1, 11):
            await publish_snapshot(sink, 5 * number - 4, number)
        await asyncio.to_thread(loss, kafka, topic)
        await publish_until_accepted(sink, [record(51, id_="d")])
        assert sink.resets == 1
        await publish_snapshot(sink, 52, 11)
    assert_complete(kafka, topic, 52)


async def test_kafka_sink_detects_expired_records(broker: Kafka, topic: str) -> None:
    async with open_sink(broker, topic, state_topic=f"{topic}.state") as sink:
        await publish_snapshot(sink, 1)
        broker.admin.alter_topic(topic, {"retention.ms": "1"})
        await asyncio.to_thread(broker.admin.wait_empty, topic)
        broker.admin.alter_topic(topic, {"retention.ms": "3600000"})
        await sink.check_target()
        assert sink.resets == 1
        await publish_snapshot(sink, 6, 2)
    assert_complete(broker, topic, 6)


async def test_kafka_sink_detects_cluster_on_empty_disks(broker: Kafka, topic: str) -> None:
    async with open_sink(broker, topic, state_topic=f"{topic}.state") as sink:
        await publish_snapshot(sink, 1)
        broker.kill()
        broker.erase()
        await asyncio.to_thread(broker.start)
        await publish_until_accepted(sink, [record(6, id_="d")])
        assert sink.resets == 2  # both topics
        await publish_snapshot(sink, 7, 2)
    assert_complete(broker, topic, 7)


async def test_kafka_sink_counts_no_reset_for_first_creation(broker: Kafka, topic: str) -> None:
    async with open_sink(broker, topic, state_topic=f"{topic}.state") as sink:
        delete_topic(broker, topic)
        await publish_snapshot(sink, 1)
        await asyncio.to_thread(broker.stop)
        await asyncio.to_thread(broker.start)
        await publish_until_accepted(sink, [record(6, "exited", id_="a")])
        await sink.check_target()
        assert sink.resets == 0
