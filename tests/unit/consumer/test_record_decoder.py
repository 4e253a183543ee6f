from __future__ import annotations

import msgspec
import pytest
from msgspec import Struct

from bridge.consumer import record_decoder
from bridge.consumer.record_decoder import InvalidMessageError, decode
from bridge.core import records
from bridge.core.record_encoder import heartbeat_record
from sinks.cloudevents import envelope
from sinks.otlp import encode_otlp
from tests.golden import Golden
from tests.sample_records import ENGINE, control_record, loss_record, record, retirement

BEFORE = b'{"version":1,"type":"sta'


@pytest.mark.parametrize(
    ("published", "read"),
    [
        (records.EventRecord, record_decoder.DecodedRecord),
        (records.Container, record_decoder.Container),
        (records.Snapshot, record_decoder.Snapshot),
        (records.Lost, record_decoder.Lost),
        (records.Exit, record_decoder.Exit),
        (records.Start, record_decoder.Start),
        (records.Pod, record_decoder.Pod),
        (records.EngineInfo, record_decoder.Engine),
    ],
)
def test_consumer_schema_has_every_published_field(published: type[Struct], read: type[Struct]) -> None:
    assert set(published.__struct_fields__) <= set(read.__struct_fields__)


@pytest.mark.parametrize(
    "published",
    [
        record(4, "paused"),
        record(5, attributes={"cluster": "prod-1"}),
        control_record(1, "snapshot_started"),
        loss_record(record(7), 5),
        heartbeat_record(record(7), 0, 1, 60.0),
        retirement(record(7)),
    ],
)
def test_consumer_schema_round_trips_published_records(published: records.Record) -> None:
    document, data = decode(published.data)
    assert data == published.data
    absent: dict[str, object] = {"start": None, "heartbeat": None, "retired": None, "attributes": {}}
    expected = absent | msgspec.json.decode(published.data)
    assert msgspec.json.decode(msgspec.json.encode(document)) == expected
    assert document.source == (published.host, ENGINE.id)
    assert document.position == (published.epoch, published.sequence)


def test_consumer_schema_accepts_unknown_types_fields_and_values() -> None:
    plain = msgspec.json.decode(control_record(1, "snapshot_started").data)
    plain |= {"type": "sparkled", "color": [1], "origin": "unknown"}
    plain["snapshot"] |= {"reason": "other", "unknown": None}
    document, _ = decode(msgspec.json.encode(plain))
    assert (document.type, document.origin) == ("sparkled", "unknown")
    assert document.snapshot
    assert document.snapshot.reason == "other"


def test_cloudevents_envelope_is_unwrapped() -> None:
    published = record(3)
    wrapped = envelope(published, published.data)
    assert decode(wrapped)[1] == published.data
    assert decode(msgspec.json.format(wrapped, indent=2))[0] == decode(published.data)[0]


def test_body_of_opentelemetry_log_record_is_unwrapped() -> None:
    published = record(3)
    assert decode(encode_otlp(published)) == decode(published.data)


@pytest.mark.parametrize("before", [BEFORE, b'{"', b"\0\0"])
def test_partial_line_before_record_is_skipped(before: bytes) -> None:
    published = record(3)
    assert decode(before + published.data)[1] == published.data


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "JSON"),
        (b"rubbish", "JSON"),
        (b'{"version":1,"type":"\xff"}', "JSON"),
        (BEFORE, "JSON"),
        (b"[]", "`object`"),
        (b"[" * 100_000, "`object`"),
        (b'{"a":' + b"[" * 100_000, "JSON"),
        (b'{"specversion":"1.0","data":{"version":1}}', "missing required field"),
        (record(1).data.replace(b'"version":1', b'"version":2'), "value 2"),
    ],
)
def test_invalid_record_is_rejected_with_reason(data: bytes, named: str, golden: Golden) -> None:
    with pytest.raises(InvalidMessageError) as caught:
        decode(data)
    assert named in str(caught.value)
    golden.entry("tail_errors", f"no record, {data[:60]!r}", str(caught.value))
    assert len(str(caught.value)) < 200


OTLP = encode_otlp(record(1))


@pytest.mark.parametrize(
    ("case", "data", "named"),
    [
        ("of another major version", OTLP.replace(b'"version":1', b'"version":2'), "value 2"),
        ("of two records", OTLP * 2, "2 OpenTelemetry log records"),
        ("that is truncated", OTLP[:-1], "JSON"),
    ],
)
def test_invalid_opentelemetry_log_record_is_rejected(case: str, data: bytes, named: str, golden: Golden) -> None:
    with pytest.raises(InvalidMessageError) as caught:
        decode(data)
    assert named in str(caught.value)
    golden.entry("tail_errors", f"no record, OpenTelemetry message {case}", str(caught.value))
