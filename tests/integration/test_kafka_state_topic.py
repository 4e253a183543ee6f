"""The compacted state topic: it contains the running containers."""

from __future__ import annotations

from typing import Any

from bridge.core.records import EngineInfo
from tests.integration.kafka_sinks import decode_value, open_sink
from tests.sample_records import ENGINE, EPOCH, control_record, record, retirement
from tests.testbed.kafka import Kafka

SOURCE = f"node-1/{ENGINE.id}"


def state_table(kafka: Kafka, topic: str) -> dict[str, dict[str, Any]]:
    """Return the last value of each key, without tombstones."""
    last = {(each.key or b"").decode(): each for each in kafka.admin.records(topic)}
    return {key: decode_value(each) for key, each in last.items() if each.value is not None}


def tombstones(kafka: Kafka, topic: str) -> list[str]:
    return [(each.key or b"").decode() for each in kafka.admin.records(topic) if each.value is None]


async def test_state_topic_follows_records(kafka: Kafka) -> None:
    async with open_sink(kafka, "follows", state_topic="follows.state") as sink:
        await sink.publish(
            [control_record(1, "snapshot_started"), record(2, "present", id_="a"), record(3, "present", id_="b")]
        )
        assert set(state_table(kafka, "follows.state")) == {f"{SOURCE}/shop/a", f"{SOURCE}/shop/b"}
        await sink.publish(
            [control_record(4, "snapshot_completed"), record(5, "paused", id_="a"), record(6, "exited", id_="b")]
        )
        await sink.publish([record(7, id_="c", namespace="default")])
    entries = state_table(kafka, "follows.state")
    assert set(entries) == {SOURCE, f"{SOURCE}/shop/a", f"{SOURCE}/default/c"}
    assert entries[SOURCE]["type"] == "snapshot_completed"
    entry = entries[f"{SOURCE}/shop/a"]
    assert (entry["epoch"], entry["sequence"], entry["snapshot_id"]) == (EPOCH, 5, f"{EPOCH}-1")
    assert entry["container"]["paused"]
    assert tombstones(kafka, "follows.state") == [f"{SOURCE}/shop/b"]
    assert len(kafka.admin.records("follows")) == 7
    assert all(each.headers == () for each in kafka.admin.records("follows.state"))


async def test_state_topic_drops_stale_entries_after_first_snapshot(kafka: Kafka) -> None:
    other = EngineInfo("another-engine", "containerd.io", "2.4.2", "/", 1)
    async with open_sink(kafka, "stale", state_topic="stale.state") as sink:
        await sink.publish([record(1, id_=each) for each in ("a", "b", "c")])
        await sink.publish([record(2, id_="unlisted", namespace="failed"), record(3, "exited", id_="c")])
        await sink.publish([record(1, id_="foreign", engine=other), record(1, id_="foreign", host="node-2")])
    async with open_sink(kafka, "stale", state_topic="stale.state") as sink:
        later = EPOCH + 1
        await sink.publish(
            [control_record(1, "snapshot_started", epoch=later), record(2, "present", id_="a", epoch=later)]
        )
        assert f"{SOURCE}/shop/b" in state_table(kafka, "stale.state")
        await sink.publish([control_record(3, "snapshot_completed", failed=["failed"], epoch=later)])
    assert set(state_table(kafka, "stale.state")) == {
        SOURCE,
        f"{SOURCE}/shop/a",
        f"{SOURCE}/failed/unlisted",
        "node-1/another-engine/shop/foreign",
        f"node-2/{ENGINE.id}/shop/foreign",
    }
    assert tombstones(kafka, "stale.state") == [f"{SOURCE}/shop/c", f"{SOURCE}/shop/b"]


async def test_state_topic_drops_entries_of_retired_source(kafka: Kafka) -> None:
    async with open_sink(kafka, "retired", state_topic="retired.state") as sink:
        snapshot = [
            control_record(1, "snapshot_started"),
            record(2, "present"),
            control_record(3, "snapshot_completed"),
        ]
        await sink.publish([record(1, id_="foreign", host="node-2"), *snapshot])
    async with open_sink(kafka, "retired", state_topic="retired.state") as sink:
        await sink.publish([retirement(record(3))])
    assert set(state_table(kafka, "retired.state")) == {f"node-2/{ENGINE.id}/shop/foreign"}
    assert tombstones(kafka, "retired.state") == [f"{SOURCE}/shop/web-1", SOURCE]
    assert decode_value(kafka.admin.records("retired")[-1])["retired"]["by"] == "ops@bastion"


async def test_state_topic_entry_drops_labels_when_too_large(kafka: Kafka) -> None:
    """An entry is slightly larger than its record, which has the maximum size."""
    overhead = len(record(1, id_="large", labels={"filler": ""}).data) + len(SOURCE) + 101
    large = record(1, id_="large", labels={"filler": "x" * (16_384 - overhead)})
    async with open_sink(kafka, "rich", state_topic="rich.state", max_request_size=16_384, cloudevents="none") as sink:
        await sink.publish([large])
    entry = state_table(kafka, "rich.state")[f"{SOURCE}/shop/large"]["container"]
    assert (entry["labels"], entry["labels_dropped"]) == (None, True)
    assert [each.value for each in kafka.admin.records("rich")] == [large.data]


async def test_state_topic_uses_one_partition_per_source(kafka: Kafka) -> None:
    kafka.admin.create_topic("wide.state", partitions=5, settings={"cleanup.policy": "compact"})
    async with open_sink(kafka, "wide", state_topic="wide.state") as sink:
        await sink.publish([record(number, id_=f"web-{number}") for number in range(1, 50)])
    assert sorted(len(kafka.admin.records("wide.state", number)) for number in range(5)) == [0, 0, 0, 0, 49]
    async with open_sink(kafka, "wide", state_topic="wide.state") as sink:
        await sink.publish([control_record(1, "snapshot_started"), control_record(2, "snapshot_completed")])
    assert sorted(len(kafka.admin.records("wide.state", number)) for number in range(5)) == [0, 0, 0, 0, 99]
