"""Records in the Kafka topic: in order, byte for byte, with the documented key and headers."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary, from_kafka, from_structured
from cloudevents.core.formats.json import JSONFormat

from bridge.clock import SystemClock
from bridge.core.containerd_model import Instant
from bridge.core.errors import RejectedRecordError, TransientError
from bridge.core.records import EngineInfo
from bridge.core.time import SECOND
from sinks import cloudevents
from tests.integration.kafka_sinks import KafkaFactory, decode_value, kcat, open_sink, record_data
from tests.naming import assert_names, raises_naming
from tests.sample_records import EPOCH, TIME, batches, control_record, loss_record, record, records
from tests.testbed.kafka import Kafka
from tests.testbed.kafka_admin import Record as Stored


def parse_cloudevent(stored: Stored) -> KafkaMessage:
    """Convert a stored record for the CloudEvents SDK; without the key, which the SDK would read as an attribute."""
    return KafkaMessage(headers=dict(stored.headers), key=None, value=stored.value or b"")


# --- order and bytes ---


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_kafka_sink_stores_records_in_order_with_any_compression(kafka: Kafka, compression: str) -> None:
    """The broker reads all batches, as it compresses them in another way; kcat uses librdkafka."""
    topic = f"order-{compression}"
    kafka.admin.create_topic(topic, settings={"compression.type": "gzip" if compression == "zstd" else "zstd"})
    all_records = records(4500, size=800)
    async with open_sink(kafka, topic, compression=compression) as sink:
        for batch in batches(all_records, 1700):
            await sink.publish(batch)
    stored = kafka.admin.records(topic)
    assert [each.value for each in stored] == record_data(all_records)
    assert {each.key for each in stored} == {b"node-1/c79d280c-f53d-4d5e"}
    now = time.time() * 1000
    assert all(now - 60_000 < each.timestamp <= now for each in stored)
    assert kcat("-C", "-e", "-q", "-b", kafka.bootstrap, "-t", topic).encode().splitlines() == record_data(all_records)


async def test_kafka_sink_uses_one_partition_per_source(kafka: Kafka) -> None:
    kafka.admin.create_topic("sources", partitions=7)
    all_records = [
        record(sequence, host=f"node-{node}", engine=EngineInfo(f"engine-{node % 3}", "containerd.io", "2", "/", 1))
        for sequence in range(1, 101)
        for node in range(20)
    ]
    async with open_sink(kafka, "sources") as sink:
        for batch in batches(all_records, 333):
            await sink.publish(batch)
    stored = [kafka.admin.records("sources", partition) for partition in range(7)]
    assert sum(map(len, stored)) == len(all_records)
    assert sum(bool(partition) for partition in stored) > 3
    for node in range(20):
        expected = [record_data([each]) for each in all_records if each.host == f"node-{node}"]
        partitions = [
            partition for partition in stored if any(decode_value(each)["host"] == f"node-{node}" for each in partition)
        ]
        assert len(partitions) == 1
        assert [[each.value] for each in partitions[0] if decode_value(each)["host"] == f"node-{node}"] == expected


async def test_kafka_sink_partitions_keys_like_other_clients(kafka: Kafka, tmp_path: Path) -> None:
    kafka.admin.create_topic("murmur", partitions=20)
    async with open_sink(kafka, "murmur") as sink:
        await sink.publish([record(1)])
    expected = [partition for partition in range(20) if kafka.admin.records("murmur", partition)]
    line = tmp_path / "line"
    line.write_text("node-1/c79d280c-f53d-4d5e\tby kcat")
    options = ["-K", "\t", "-X", "partitioner=murmur2_random"]
    kcat("-P", "-b", kafka.bootstrap, "-t", "murmur", *options, "-l", str(line))
    assert [partition for partition in range(20) if len(kafka.admin.records("murmur", partition)) == 2] == expected


# --- topics ---


async def test_kafka_sink_creates_missing_topics_as_configured(kafka_factory: KafkaFactory) -> None:
    """The brokers' own defaults do not apply, and the brokers create no topic by themselves."""
    kafka = kafka_factory(settings={"num.partitions": "3", "auto.create.topics.enable": "true"})
    async with open_sink(kafka, "plain"):
        pass
    async with open_sink(kafka, "wide", partitions=5, replication_factor=1, state_topic="wide.state"):
        pass
    assert len(kafka.admin.describe("plain")["partitions"]) == 1
    assert kafka.admin.describe("plain")["settings"]["cleanup.policy"] == "delete"
    assert len(kafka.admin.describe("wide")["partitions"]) == 5
    assert kafka.admin.describe("wide.state")["settings"]["cleanup.policy"] == "compact"
    with pytest.raises(TransientError) as caught:
        async with open_sink(kafka, "missing", auto_create=False, partitions=4):
            pass
    command = "kafka-topics.sh --create --topic missing --partitions 4 --config cleanup.policy=delete"
    assert_names(caught.value, "topic missing", command)
    assert "missing" not in kafka.admin.topics()
    kafka.admin.create_topic("missing")
    async with open_sink(kafka, "missing", auto_create=False):
        pass


# --- oversized records ---


async def test_kafka_sink_identifies_oversized_records_before_sending(kafka: Kafka) -> None:
    all_records = records(10)
    all_records[3], all_records[7] = record(4, size=20_000), record(8, size=20_000)
    async with open_sink(kafka, "large", max_request_size=16_384) as sink:
        with raises_naming(RejectedRecordError, "max_request_size", "16384") as caught:
            await sink.publish(all_records)
        assert caught.value.positions == {(EPOCH, 4), (EPOCH, 8)}
        assert kafka.admin.records("large") == []
        accepted = [each for each in all_records if (each.epoch, each.sequence) not in caught.value.positions]
        await sink.publish(accepted)
    assert [each.value for each in kafka.admin.records("large")] == record_data(accepted)


async def test_kafka_sink_shrinks_batches_when_topic_limit_is_lowered(kafka: Kafka) -> None:
    """The limit is lowered while the sink is connected, so that the sink learns of it from a rejection."""
    all_records = records(200, size=900)
    all_records[150] = record(151, size=40_000)
    kafka.admin.create_topic("smaller")
    async with open_sink(kafka, "smaller") as sink:
        kafka.admin.alter_topic("smaller", {"max.message.bytes": "30000"})
        with raises_naming(RejectedRecordError, "topic smaller") as caught:
            await sink.publish(all_records)
        assert caught.value.positions == {(EPOCH, 151)}
        stored = kafka.admin.records("smaller")
        assert [each.value for each in stored] == record_data(all_records[: len(stored)])
        del all_records[150]
        await sink.publish(all_records)
    assert list(dict.fromkeys(each.value for each in kafka.admin.records("smaller"))) == record_data(all_records)


# --- CloudEvents ---


async def test_kafka_binary_cloudevents_are_readable_by_sdk(kafka: Kafka) -> None:
    all_records = [
        control_record(1, "snapshot_started"),
        record(2),
        control_record(3, "snapshot_completed"),
        loss_record(record(9), 4),
    ]
    async with open_sink(kafka, "binary") as sink:
        await sink.publish(all_records)
    for sent, stored in zip(all_records, kafka.admin.records("binary"), strict=True):
        event = from_binary(parse_cloudevent(stored), JSONFormat())
        assert event.get_data() == msgspec.json.decode(sent.data)
        assert event.get_id() == sent.id
        assert event.get_source() == "//node-1/containerd.io/c79d280c-f53d-4d5e"
        assert event.get_subject() == (sent.subject or None)
        assert event.get_datacontenttype() == "application/json"
        assert event.get_dataschema() == cloudevents.SCHEMA
        assert event.get_extension("sequence") == f"{EPOCH}-{sent.sequence:020}"
        assert event.get_extension("partitionkey").encode() == stored.key
        assert stored.value == sent.data
    headers = [dict(each.headers) for each in kafka.admin.records("binary")]
    assert [each["ce_type"].decode().removeprefix("io.whalebridge.") for each in headers] == [
        "snapshot.started", "container.started", "snapshot.completed", "lost",
    ]  # fmt: skip
    assert headers[1] == {
        "content-type": b"application/json",
        "ce_specversion": b"1.0",
        "ce_id": f"{EPOCH}-2".encode(),
        "ce_source": b"//node-1/containerd.io/c79d280c-f53d-4d5e",
        "ce_type": b"io.whalebridge.container.started",
        "ce_dataschema": b"urn:whalebridge:event:1",
        "ce_partitionkey": b"node-1/c79d280c-f53d-4d5e",
        "ce_time": TIME.encode(),
        "ce_sequence": f"{EPOCH}-00000000000000000002".encode(),
        "ce_subject": b"shop/web-1",
    }


async def test_kafka_structured_cloudevents_are_readable_by_sdk(kafka: Kafka) -> None:
    all_records = [
        control_record(1, "snapshot_started"),
        record(2, id_="größe"),
        control_record(3, "snapshot_completed"),
    ]
    async with open_sink(kafka, "structured", cloudevents="structured") as sink:
        await sink.publish(all_records)
    for sent, stored in zip(all_records, kafka.admin.records("structured"), strict=True):
        assert stored.headers == (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
        for read in (from_kafka, from_structured):
            event = read(parse_cloudevent(stored), JSONFormat())
            assert event.get_data() == msgspec.json.decode(sent.data)
            assert event.get_id() == sent.id
            assert event.get_subject() == (sent.subject or None)
            assert event.get_type() == cloudevents.event_type(sent.type)
            assert event.get_extension("sequence") == f"{EPOCH}-{sent.sequence:020}"
            assert event.get_extension("partitionkey").encode() == stored.key


# --- clocks ---


class SkewableClock(SystemClock):
    """A clock that can be set ahead."""

    ahead_ns = 0

    def now(self) -> Instant:
        return super().now()._replace(wall=time.time_ns() + self.ahead_ns)


async def test_kafka_sink_publishes_when_brokers_reject_timestamps(kafka: Kafka) -> None:
    all_records, clock = records(30), SkewableClock()
    async with open_sink(kafka, "clock", clock=clock) as sink:
        await sink.publish(all_records[:10])
        clock.ahead_ns = 7_200 * SECOND  # two hours; brokers accept one
        await sink.publish(all_records[10:20])
        await sink.publish(all_records[20:])
    stored = kafka.admin.records("clock")
    assert [each.value for each in stored] == record_data(all_records)
    assert [each.timestamp for each in stored[10:]] == [-1] * 20
