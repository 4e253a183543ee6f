"""Test the requests of the HTTP sink, also against the `cloudevents` package."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from config.sinks.http import HttpSinkSettings
from sinks.cloudevents import encode_attribute, source_uri
from sinks.http.messages import Message, MessageEncoder, Request, idempotency_key, split_batch
from tests.sample_records import EPOCH, control_record, record, records

URL = "http://receiver.example/events"
NAMES = st.text(st.characters(exclude_categories=()), min_size=1)


def encoder(**settings: Any) -> MessageEncoder:
    return MessageEncoder(HttpSinkSettings.model_validate({"url": URL, **settings}))


def encoded(count: int, **settings: Any) -> tuple[MessageEncoder, list[Message]]:
    used = encoder(**settings)
    return used, [message for each in records(count) if (message := used.encode(each))]


def request(count: int, **settings: Any) -> Request:
    used, messages = encoded(count, **settings)
    return used.build_request(messages)


def test_newline_delimited_body_has_a_line_per_record() -> None:
    sent = request(3, cloudevents="none")
    assert sent.headers["Content-Type"] == "application/x-ndjson"
    assert sent.body == b"".join(each.data + b"\n" for each in records(3))


def test_binary_request_is_one_record_with_attributes_in_headers() -> None:
    sent = request(1, cloudevents="binary")
    assert sent.body == record(1, id_="web-0").data
    assert sent.headers["Content-Type"] == "application/json"
    assert sent.headers["ce-id"] == f"{EPOCH}-1"
    assert "ce-datacontenttype" not in sent.headers


@pytest.mark.parametrize("mode", ["binary", "structured"])
@given(name=NAMES)
def test_single_request_is_parsed_by_cloudevents_package(mode: str, name: str) -> None:
    published = msgspec.structs.replace(record(1, attributes={"cluster": "é%"}), subject=name)
    used = encoder(cloudevents=mode)
    message = used.encode(published)
    assert message
    sent = used.build_request([message])
    assert all(value.isascii() and value.isprintable() for value in sent.headers.values())
    event = from_http(HTTPMessage(headers=sent.headers, body=sent.body), JSONFormat())
    assert (event.get_id(), event.get_source()) == (published.id, source_uri(published.host, published.engine))
    assert event.get_subject() == encode_attribute(name)
    assert event.get_extension("cluster") == "é%"
    assert event.get_data() == msgspec.json.decode(published.data)


def test_batch_is_an_array_of_structured_events() -> None:
    sent = request(3, cloudevents="batched")
    assert sent.headers["Content-Type"] == "application/cloudevents-batch+json"
    _, messages = encoded(3, cloudevents="structured")
    assert msgspec.json.decode(sent.body) == [msgspec.json.decode(message.body) for message in messages]


def test_otlp_body_is_one_request_with_all_records() -> None:
    sent = request(3, encoding="otlp", cloudevents="none")
    assert sent.headers["Content-Type"] == "application/x-protobuf"
    logs = [
        log
        for resource_logs in ExportLogsServiceRequest.FromString(sent.body).resource_logs
        for scope_logs in resource_logs.scope_logs
        for log in scope_logs.log_records
    ]
    assert [log.body.string_value.encode() for log in logs] == [each.data for each in records(3)]


def test_whalewatcher_encoding_leaves_out_control_records() -> None:
    used = encoder(encoding="whalewatcher", cloudevents="none")
    assert used.encode(control_record(1, "snapshot_started")) is None
    message = used.encode(record(2))
    assert message
    assert msgspec.json.decode(message.body)["ID"] == "shop/web-1"


@pytest.mark.parametrize("mode", ["none", "binary", "structured", "batched"])
def test_idempotency_key_is_that_of_the_records(mode: str) -> None:
    used, messages = encoded(1, cloudevents=mode)
    key = used.build_request(messages).headers["Idempotency-Key"]
    assert key == request(1, cloudevents=mode).headers["Idempotency-Key"]
    assert key == f'"{idempotency_key(messages)}"'
    others = [record(2), record(1, host="node-2"), record(1, epoch=EPOCH + 1)]
    keys = [idempotency_key([message]) for each in others if (message := used.encode(each))]
    assert len({*keys, idempotency_key(messages)}) == 4


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 5), st.integers(1, 100))
def test_batches_keep_order_and_limits(sizes: list[int], max_records: int, max_bytes: int) -> None:
    messages = [Message(("s", str(number)), (1, number), b"x" * size, {}) for number, size in enumerate(sizes)]
    batches = list(split_batch(messages, max_records, lambda: max_bytes))
    assert [message for batch in batches for message in batch] == messages
    for batch in batches:
        assert 1 <= len(batch) <= max_records
        assert len(batch) == 1 or sum(len(message.body) + 1 for message in batch) <= max_bytes
    for batch, following in pairwise(batches):  # no smaller than necessary
        filled = sum(len(message.body) + 1 for message in [*batch, following[0]]) > max_bytes
        assert filled or len(batch) == max_records
