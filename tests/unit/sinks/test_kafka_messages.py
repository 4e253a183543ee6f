from __future__ import annotations

import msgspec
import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from sinks.kafka.messages import (
    Message,
    build_batches,
    choose_partition,
    decode_key,
    encode_key,
    event_messages,
    find_oversized,
    state_messages,
)
from sinks.otlp import encode_otlp
from sinks.state_table import StateChange, StateKey
from tests.sample_records import control_record, record, records

PARTS = st.text(st.characters(exclude_categories=()), min_size=1)
SOURCE = StateKey("node-1", "engine")


@given(PARTS, st.text(), PARTS, PARTS)
def test_kafka_key_round_trips(host: str, engine: str, namespace: str, id_: str) -> None:
    for state_key in (StateKey(host, engine), StateKey(host, engine, namespace, id_)):
        key = encode_key(state_key)
        assert decode_key(key) == state_key
        assert key.isascii()
        assert key.count(b"/") == (3 if state_key.id else 1)


def test_kafka_key_is_plain_for_plain_names() -> None:
    assert encode_key(StateKey("node-1", "c79d", "k8s.io", "web_1")) == b"node-1/c79d/k8s.io/web_1"


@pytest.mark.parametrize("key", [b"", b"a", b"a/b/c", b"a/b/c/d/e", b"a/%FF", b"a/b/%C3/d"])
def test_kafka_key_of_other_format_is_ignored(key: bytes) -> None:
    assert decode_key(key) is None


@given(st.binary(), st.binary(), st.lists(st.tuples(st.text(), st.binary()), max_size=20))
def test_kafka_message_size_is_at_least_sent_size(key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> None:
    headers = [(name.encode("ascii", "ignore").decode(), text) for name, text in headers]
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, 0, 1 << 30)
    builder.append(0, 1, key, value, headers)
    assert len(builder.build()) <= Message((1, 1), key, value, headers).size


@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=60))
def test_kafka_batches_keep_order_and_size_limit(sizes: list[int]) -> None:
    messages = [Message((1, number), b"k", b"x" * size, []) for number, size in enumerate(sizes)]
    batches = list(build_batches(messages, 1, lambda: BatchBuilder(16_384, 0)))
    assert [message for _, batch in batches for message in batch] == messages
    for builder, batch in batches:
        assert isinstance(builder, BatchBuilder)
        assert builder.record_count() == len(batch)
        assert builder.size() <= 16_384 or len(batch) == 1


def test_oversized_kafka_messages_are_identified() -> None:
    batch = [record(1), record(2, size=20_000), record(3, size=15_000)]
    messages = event_messages(SOURCE, batch, "json", "binary")
    assert list(find_oversized(messages, 16_384)) == [(batch[1].epoch, 2)]
    assert messages[2].size <= 16_384


def test_kafka_messages_follow_mode_and_encoding() -> None:
    batch = [control_record(1, "snapshot_started"), record(2)]
    assert [message.value for message in event_messages(SOURCE, batch, "json", "none")] == [item.data for item in batch]
    assert [message.headers for message in event_messages(SOURCE, batch, "json", "none")] == [[], []]
    (structured, _) = event_messages(SOURCE, batch, "json", "structured")
    assert structured.value
    assert structured.value.startswith(b'{"specversion":"1.0"')
    assert msgspec.json.decode(structured.value)["partitionkey"] == structured.key.decode()
    for message in event_messages(SOURCE, batch, "json", "binary"):
        assert dict(message.headers)["ce_partitionkey"] == message.key
    assert [message.position for message in event_messages(SOURCE, batch, "whalewatcher", "binary")] == [
        (batch[1].epoch, 2)
    ]


def test_kafka_message_of_otlp_has_protobuf_headers() -> None:
    batch = [control_record(1, "snapshot_started"), record(2)]
    messages = event_messages(SOURCE, batch, "otlp", "binary")
    assert [message.value for message in messages] == [encode_otlp(each) for each in batch]
    for message in messages:
        headers = dict(message.headers)
        assert headers["content-type"] == b"application/x-protobuf"
        assert headers["ce_dataschema"] == b"urn:whalebridge:otlp:1"
    assert [message.headers for message in event_messages(SOURCE, batch, "otlp", "none")] == [[], []]


def test_removed_state_entry_becomes_kafka_tombstone() -> None:
    (message,) = state_messages([StateChange(StateKey("h", "e", "n", "i"), None, (1, 2))], 100)
    assert message == Message((1, 2), b"h/e/n/i", None, [])


def test_kafka_partitions_are_evenly_distributed_and_stable() -> None:
    partitions = [choose_partition(StateKey(f"node-{number}", "e"), range(10)) for number in range(1000)]
    assert set(partitions) == set(range(10))
    assert partitions == [choose_partition(StateKey(f"node-{number}", "e"), range(10)) for number in range(1000)]
    assert {choose_partition(StateKey(f"node-{number}", "e"), [0]) for number in range(10)} == {0}
    assert len(records(3)) == 3
