"""Topics, streams, state topics and buckets that lose what was published: the sink notices it, and forgets the rest."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

import pytest
from structlog.testing import capture_logs

from sinks.kafka.sink import KafkaSink
from sinks.nats.sink import NatsSink
from tests.integration.kafka_sinks import decode_value, open_sink
from tests.integration.nats_reading import NatsFactory, StreamReader, start_sink
from tests.integration.target_checks import check_until_reset, publish_until_accepted
from tests.integration.test_kafka_state_topic import SOURCE, state_table
from tests.integration.test_nats_kv import running_ids
from tests.sample_records import control_record, record
from tests.testbed.kafka import COMPONENTS, Kafka
from tests.testbed.nats import Nats

# Kafka removes expired records at once.
FAST_RETENTION = {"log.retention.check.interval.ms": "200", "log.initial.task.delay.ms": "100"}
STREAM, BUCKET = "WHALEBRIDGE_EVENTS", "state"
FOREIGN = b"of another bridge"
_numbers = itertools.count()


class KafkaTarget:
    """Topics that do not exist yet: one for records (the log), and a state topic (the table)."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._topic = f"resets{next(_numbers)}"
        self._state_topic = f"{self._topic}.state"
        self.log, self.table = f"topic {self._topic}", f"topic {self._state_topic}"

    def sink(self) -> AbstractAsyncContextManager[KafkaSink]:
        return open_sink(self._kafka, self._topic, state_topic=self._state_topic)

    async def sequences(self) -> list[int]:
        admin = self._kafka.admin
        partitions = range(len(admin.describe(self._topic)["partitions"]))
        stored = [each for number in partitions for each in admin.records(self._topic, number)]
        return [decode_value(each)["sequence"] for each in stored]

    async def ids(self) -> set[str]:
        return {key.rpartition("/")[2] for key in state_table(self._kafka, self._state_topic) if key != SOURCE}

    async def delete_log(self) -> None:
        await asyncio.to_thread(self._kafka.admin.delete_topic, self._topic)

    async def replace_log(self) -> None:
        """Create it again before the sink notices, with another number of partitions."""
        await self.delete_log()
        await asyncio.to_thread(self._kafka.admin.create_topic, self._topic, partitions=7)

    async def purge_log(self) -> None:
        await asyncio.to_thread(self._kafka.admin.delete_records, self._topic)

    async def expire_log(self) -> None:
        self._kafka.admin.alter_topic(self._topic, {"retention.ms": "1"})
        await asyncio.to_thread(self._kafka.admin.wait_empty, self._topic)
        self._kafka.admin.alter_topic(self._topic, {"retention.ms": "3600000"})

    async def delete_table(self) -> None:
        await asyncio.to_thread(self._kafka.admin.delete_topic, self._state_topic)

    async def replace_table(self) -> None:
        await self.delete_table()
        compacted = {"cleanup.policy": "compact"}
        await asyncio.to_thread(self._kafka.admin.create_topic, self._state_topic, settings=compacted)

    def restart(self) -> None:
        self._kafka.stop()
        self._kafka.start()

    def restart_with_empty_disks(self) -> None:
        self._kafka.kill()
        self._kafka.erase()
        self._kafka.start()


class NatsTarget:
    """A stream (the log) and a bucket (the table); another bridge publishes to a replaced or expired stream, too."""

    log, table = f"stream {STREAM}", f"bucket {BUCKET}"

    def __init__(self, peer: Nats, reader: StreamReader) -> None:
        self._peer, self._reader = peer, reader

    @asynccontextmanager
    async def sink(self) -> AsyncIterator[NatsSink]:
        sink = await start_sink(self._peer, kv_bucket={"name": BUCKET})
        yield sink
        await sink.close()

    async def sequences(self) -> list[int]:
        return [each.position[1] for each in await self._reader.read_stored() if each.data != FOREIGN]

    async def ids(self) -> set[str]:
        return await running_ids(self._reader, BUCKET)

    async def delete_log(self) -> None:
        await self._reader.jetstream.delete_stream(STREAM)

    async def replace_log(self) -> None:
        """Create it again before the sink notices, with more records than before."""
        await self.delete_log()
        await self._reader.jetstream.add_stream(name=STREAM, subjects=["events.>"], allow_atomic=True)
        for _ in range(50):
            await self._reader.jetstream.publish("events.other", FOREIGN)

    async def purge_log(self) -> None:
        await self._reader.jetstream.purge_stream(STREAM)

    async def expire_log(self) -> None:
        jetstream = self._reader.jetstream
        config = (await jetstream.stream_info(STREAM)).config
        await jetstream.update_stream(config, max_age=0.1, duplicate_window=0.1)
        async with asyncio.timeout(60):
            while (await jetstream.stream_info(STREAM)).state.messages:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.02)
        await jetstream.update_stream(config, max_age=3600, duplicate_window=60)
        await jetstream.publish("events.other", FOREIGN)

    async def delete_table(self) -> None:
        await self._reader.jetstream.delete_key_value(BUCKET)

    async def replace_table(self) -> None:
        await self.delete_table()
        await self._reader.jetstream.create_key_value(bucket=BUCKET)

    async def purge_table(self) -> None:
        await self._reader.jetstream.purge_stream(f"KV_{BUCKET}")

    def restart(self) -> None:
        self._peer.stop()
        self._peer.start()

    def restart_with_empty_disks(self) -> None:
        self._peer.kill()
        for node in self._peer.nodes:
            shutil.rmtree(node.directory / "jetstream")
        self._peer.start()


Target: TypeAlias = KafkaTarget | NatsTarget


@pytest.fixture(scope="module")
def fast_kafka(require: Callable[..., None]) -> Iterator[Kafka]:
    require(*COMPONENTS)
    with Kafka(settings=FAST_RETENTION) as kafka:
        yield kafka


@pytest.fixture
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    if request.param == "kafka":
        yield KafkaTarget(request.getfixturevalue("fast_kafka"))
    else:
        peer = request.getfixturevalue("nats_factory")()
        async with StreamReader(peer) as reader:
            yield NatsTarget(peer, reader)


both_brokers = pytest.mark.parametrize("target", ["kafka", "nats"], indirect=True)
LOSSES = ("delete_log", "replace_log", "purge_log", "expire_log", "delete_table", "replace_table")
# A publisher learns of these from the acknowledgment.
LOSSES_AT_PUBLISH = {
    "kafka": ("delete_log", "replace_log", "purge_log", "delete_table", "replace_table"),
    "nats": ("delete_log", "replace_log", "delete_table"),
}


async def publish_snapshot(sink: KafkaSink | NatsSink, first: int, number: int = 1) -> None:
    """Publish a snapshot of the containers a, b and c: five records."""
    presents = [record(first + 1 + index, "present", id_=id_) for index, id_ in enumerate("abc")]
    started = control_record(first, "snapshot_started", number)
    await publish_until_accepted(sink, [started, *presents, control_record(first + 4, "snapshot_completed", number)])


async def assert_complete(target: Target, first: int) -> None:
    """Check that the log ends with a snapshot, from sequence ``first`` on, and that the table is complete."""
    assert (await target.sequences())[-5:] == list(range(first, first + 5))
    assert await target.ids() == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("target", "loss"),
    [*itertools.product(("kafka", "nats"), LOSSES), ("nats", "purge_table")],
    indirect=["target"],
)
async def test_sink_detects_loss_while_idle(target: Target, loss: str) -> None:
    async with target.sink() as sink:
        await publish_snapshot(sink, 1)
        await sink.check_target()
        assert sink.resets == 0
        await getattr(target, loss)()
        with capture_logs() as logs:
            await check_until_reset(sink)
        assert sink.resets == 1
        lost = getattr(target, loss.rpartition("_")[2])
        assert [line["target"] for line in logs if line["event"] == "target_reset"] == [lost]
        await publish_snapshot(sink, 6, 2)
        await sink.check_target()
        assert sink.resets == 1
    await assert_complete(target, 6)


@pytest.mark.parametrize(
    ("target", "loss"),
    [(broker, loss) for broker, losses in LOSSES_AT_PUBLISH.items() for loss in losses],
    indirect=["target"],
)
async def test_sink_detects_loss_while_publishing(target: Target, loss: str) -> None:
    async with target.sink() as sink:
        for number in range(20):
            await publish_snapshot(sink, 1 + 5 * number, 1 + number)
        await getattr(target, loss)()
        await publish_until_accepted(sink, [record(101, id_="d")])
        assert sink.resets == 1
        await publish_snapshot(sink, 102, 21)
    await assert_complete(target, 102)


@both_brokers
async def test_fault_44_broker_has_empty_disks(target: Target) -> None:
    async with target.sink() as sink:
        await publish_snapshot(sink, 1)
        await asyncio.to_thread(target.restart_with_empty_disks)
        await publish_until_accepted(sink, [record(6, id_="d")])
        assert sink.resets == 2  # the log and the table
        await publish_snapshot(sink, 7, 2)
    await assert_complete(target, 7)


@both_brokers
async def test_sink_counts_no_reset_for_first_creation(target: Target) -> None:
    async with target.sink() as sink:
        await target.delete_log()
        await target.delete_table()
        await publish_snapshot(sink, 1)
        await asyncio.to_thread(target.restart)
        await publish_until_accepted(sink, [record(6, "exited", id_="a")])
        await sink.check_target()
        assert sink.resets == 0


async def test_sink_counts_no_reset_when_work_queue_is_emptied(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    async with StreamReader(peer) as reader:
        await reader.jetstream.add_stream(name=STREAM, subjects=["events.>"], retention="workqueue")
        sink = await start_sink(peer)
        await publish_snapshot(sink, 1)
        subscription = await reader.jetstream.pull_subscribe(">", durable="worker", stream=STREAM)
        for message in await subscription.fetch(5, timeout=10):
            await message.ack_sync()
        assert (await reader.jetstream.stream_info(STREAM)).state.messages == 0
        await sink.check_target()
    assert sink.resets == 0
    await sink.close()
