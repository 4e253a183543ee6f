"""Fuzz targets for what consumers read: records in topics and files, keys, acknowledgments and responses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from bridge.cli.commands.tail import RecordFilter
from bridge.cli.record_format import format_record
from bridge.consumer.files import LineSplitter
from bridge.consumer.projection import Projection
from bridge.consumer.record_decoder import REPEATING_TYPES, DecodedRecord, InvalidMessageError, decode
from bridge.core.record_encoder import heartbeat_record, parse_record
from bridge.core.records import Record
from bridge.telemetry.safe_text import printable_json
from sinks import cloudevents
from sinks.http.otlp_responses import read_error, read_success
from sinks.kafka import messages as kafka
from sinks.nats import messages as nats
from sinks.otlp import encode_otlp
from sinks.state_table import StateKey
from tests.fuzz.engine import Target
from tests.fuzz.mutation import Field, encode_fields, mutate_protobuf, mutate_text
from tests.records import RecordFactory
from tests.sample_records import control_record, loss_record, record, retirement

_TOKENS = (
    *rb"""null true false 0 -1 1 1.5 1e999 9223372036854775808 18446744073709551616
    "" "\ud800" "\u0000" "\u202e" [] {} [{}] {"a":1}
    "lost" "heartbeat" "snapshot_started" "snapshot_completed" "exited" "paused" "present" "default"
    "k8s.io" "node-2" "epoch"
    \u001b[31m \x1b \x9b \xff \xed\xa0\x80 \xe2\x80\xae {"version":1, specversion data %FF =FF == _ . / * >""".split(),
    b"\xff",
    b"\xed\xa0\x80",
    b"\xe2\x80\xae",
    b"\xc2\x9b",
    b"[" * 2000,
    b'{"version":1,"type":"sta',
    b"\n",
)


# --- records ---


def _records() -> list[Record]:
    factory = RecordFactory()
    started = factory.started_record()
    return [
        *factory.snapshot_records(),
        started,
        record(4, "paused", labels={"a": "b"}),
        record(5, "exited"),
        control_record(6, "snapshot_started"),
        record(7, "present"),
        control_record(8, "snapshot_completed", failed=["shop"]),
        loss_record(record(12), 9),
        heartbeat_record(started, 1, 1, 60.0),
        retirement(record(12)),
    ]


def _topic_samples() -> Sequence[bytes]:
    records = _records()
    enveloped = [cloudevents.envelope(each, each.data) for each in records]
    documents = [each.data for each in records]
    return [b"\n".join(documents), b"\n".join(enveloped), *documents, b'{"version":1,"type":"sta' + documents[0]]


def _read_topic(data: bytes) -> None:
    records = []
    for message in data.split(b"\n"):
        try:
            decoded, document = decode(message)
        except InvalidMessageError:
            continue
        assert decode(document) == (decoded, document)
        _check_display(decoded, document)
        records.append(decoded)
    _check_projection(records)


def _check_display(decoded: DecodedRecord, document: bytes) -> None:
    assert format_record(decoded, colored=False).isprintable()
    RecordFilter(namespaces=["sh*"], types=["*ed"])(decoded)
    text = document.decode(errors="backslashreplace").replace("\n", " ")  # as `tail --json` writes it to a terminal
    shown = printable_json(text)
    assert shown.isprintable()
    try:
        assert json.loads(shown) == json.loads(text)
    except (ValueError, RecursionError):
        assert shown == text or not text.isprintable()


def _check_projection(records: Sequence[DecodedRecord]) -> None:
    """Check that repeated records have no effect."""
    projection = Projection()
    for each in records:
        projection.apply(each)
    before = {source: dict(state.running) for source, state in projection.sources.items()}
    for each in records:
        assert not projection.apply(each) or each.type in REPEATING_TYPES, f"accepted twice: {each.position}"
    assert before == {source: dict(state.running) for source, state in projection.sources.items()}


# --- files ---


def _file_samples() -> Sequence[bytes]:
    lines = b"".join(each.data[:60] + b"\n" for each in _records())
    return [lines, b"\n\n \r\n" + lines, lines[:-1], b""]


def _read_file(data: bytes) -> None:
    cut = len(data) // 3
    whole, parts = LineSplitter("file"), LineSplitter("file")
    messages = [*whole.split(data), *whole.finish()]
    assert messages == [*parts.split(data[:cut]), *parts.split(data[cut:]), *parts.finish()]
    assert [each.data for each in messages] == [line for line in data.split(b"\n") if line.strip()]
    assert [each.number for each in messages] == list(range(1, len(messages) + 1))
    within = LineSplitter("file", within_line=True)
    after = [*within.split(data), *within.finish()]
    assert [each.data for each in after] == [line for line in data.split(b"\n")[1:] if line.strip()]


# --- what brokers return ---


def _broker_samples() -> Sequence[bytes]:
    key = StateKey("node-1", "c79d", "k8s.io", "web/1")
    return [
        b'{"stream":"S","seq":17,"duplicate":true}',
        b'{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"}}',
        kafka.encode_key(key),
        kafka.encode_key(StateKey("n\xf6de", "")),
        nats.encode_token("web/\xff.1").encode(),
        nats.encode_token("x" * 500).encode(),
        *(each.data for each in _records()[:1]),
    ]


def _read_from_broker(data: bytes) -> None:
    nats.decode_ack(SimpleNamespace(data=data, headers=None))  # type: ignore[arg-type] # has only what it reads
    if (key := kafka.decode_key(data)) is not None:
        assert kafka.decode_key(kafka.encode_key(key)) == key
    text = data.decode("utf-8", "replace")
    token = nats.decode_token(text)
    assert len(nats.encode_token(token)) <= nats.MAX_TOKEN_LENGTH
    try:
        parsed = parse_record(data)
    except ValueError:
        return
    assert parse_record(parsed.data) == parsed


# --- OpenTelemetry's log records ---


def _otlp_samples() -> Sequence[bytes]:
    messages = [encode_otlp(each) for each in _records()]
    return [*messages, messages[0] + messages[1]]


def _read_otlp(data: bytes) -> None:
    try:
        decoded, document = decode(data)
    except InvalidMessageError:
        return
    assert decode(document) == (decoded, document)
    _check_display(decoded, document)


def _otlp_response_samples() -> Sequence[bytes]:
    partial: list[Field] = [(1, 7), (2, "too \xf6ld".encode())]
    return [encode_fields([(1, encode_fields(partial))]), encode_fields([(1, 3), (2, b"invalid")]), b""]


def _read_otlp_response(data: bytes) -> None:
    """Compare with OpenTelemetry's own message, which is unreadable if its text is not UTF-8."""
    text, rejected = read_success(data)
    text.encode()
    read_error(data).encode()
    try:
        partial = ExportLogsServiceResponse.FromString(data).partial_success
    except DecodeError:
        return
    assert (text, rejected) == (partial.error_message, max(0, partial.rejected_log_records))


TARGETS = {
    "topic": Target(_read_topic, _topic_samples, _TOKENS, mutate_text),
    "otlp": Target(_read_otlp, _otlp_samples, _TOKENS, mutate_protobuf),
    "otlp-responses": Target(_read_otlp_response, _otlp_response_samples, _TOKENS, mutate_protobuf),
    "file": Target(_read_file, _file_samples, _TOKENS),
    "broker-replies": Target(_read_from_broker, _broker_samples, _TOKENS, mutate_text),
}
