"""Test CloudEvents 1.0 attributes, headers and envelopes against the `cloudevents` package."""

from __future__ import annotations

import re
import string
from urllib.parse import unquote, urlsplit

import msgspec
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.records import EngineInfo, Record, RecordType
from sinks import cloudevents
from sinks.cloudevents import (
    attributes,
    encode_attribute,
    encode_nats_value,
    envelope,
    kafka_headers,
    nats_headers,
    source_uri,
)
from tests.sample_records import EPOCH, TIME, control_record, loss_record, record

FORBIDDEN = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0))}
NAMES = st.text(st.characters(exclude_categories=()), min_size=1)
HOSTS = st.text(min_size=1).filter(lambda text: text.isprintable() and not set(text) & set(' /"%'))


VALUES = st.text(min_size=1).filter(str.isprintable)


def record_of(name: str, **attributes: str) -> Record:
    return msgspec.structs.replace(record(1, attributes=attributes), subject=name)


# --- attributes ---


def test_cloudevents_attributes_of_record_are_complete() -> None:
    assert dict(attributes(record(42))) == {
        "specversion": "1.0",
        "id": f"{EPOCH}-42",
        "source": "//node-1/containerd.io/c79d280c-f53d-4d5e",
        "type": "io.whalebridge.container.started",
        "time": TIME,
        "dataschema": "urn:whalebridge:event:1",
        "sequence": f"{EPOCH}-00000000000000000042",
        "subject": "shop/web-1",
    }


@pytest.mark.parametrize(
    ("type_", "suffix"),
    [
        ("started", "container.started"),
        ("present", "container.present"),
        ("oom", "container.oom"),
        ("renamed", "container.renamed"),
        ("snapshot_started", "snapshot.started"),
        ("snapshot_completed", "snapshot.completed"),
        ("lost", "lost"),
        ("heartbeat", "heartbeat"),
        ("source_retired", "source.retired"),
    ],
)
def test_cloudevents_type_maps_record_type(type_: RecordType, suffix: str) -> None:
    assert cloudevents.event_type(type_) == f"io.whalebridge.{suffix}"


def test_control_record_has_no_subject_and_loss_record_unique_id() -> None:
    assert "subject" not in dict(attributes(control_record(1, "snapshot_started")))
    last = record(9)
    assert dict(attributes(loss_record(last, 3)))["id"] == f"{EPOCH}-9-lost"
    assert dict(attributes(loss_record(last, 3)))["sequence"] == dict(attributes(last))["sequence"]


@given(st.lists(st.integers(1, 2**63 - 1), min_size=2, max_size=2), st.sampled_from([1, 1_795_447_267_123]))
def test_cloudevents_sequence_sorts_as_text(numbers: list[int], epoch: int) -> None:
    low, high = sorted(numbers)
    texts = [dict(attributes(record(number, epoch=epoch)))["sequence"] for number in (low, high)]
    assert texts == sorted(texts)
    assert (low == high) == (texts[0] == texts[1])


@given(NAMES)
def test_cloudevents_subject_has_allowed_characters_and_decodes(name: str) -> None:
    subject = encode_attribute(name)
    assert subject
    assert not set(subject) & FORBIDDEN
    assert not any(0xD800 <= ord(char) <= 0xDFFF or ord(char) & 0xFFFE == 0xFFFE for char in subject)
    assert subject == name or unquote(subject, errors="surrogatepass") == name


@given(HOSTS, NAMES)
def test_cloudevents_source_is_uri_reference(host: str, engine: str) -> None:
    text = source_uri(host, engine)
    assert set(text) <= set(string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@/%")
    assert not re.search(r"%(?![0-9A-F]{2})", text)
    parts = urlsplit(text)
    assert unquote(parts.netloc) == host
    assert unquote(parts.path, errors="surrogatepass") == f"/containerd.io/{engine}"
    assert not parts.query + parts.fragment


# --- Kafka ---


@given(NAMES, HOSTS, VALUES)
def test_kafka_headers_are_parsed_by_cloudevents_package(name: str, host: str, cluster: str) -> None:
    sent = msgspec.structs.replace(record_of(name, cluster=cluster), host=host)
    headers = kafka_headers(sent, b"node-1/e")
    assert len(dict(headers)) == len(headers)
    event = from_binary(KafkaMessage(headers=dict(headers), key=None, value=sent.data), JSONFormat())
    assert event.get_subject() == encode_attribute(name)
    assert event.get_source() == source_uri(host, sent.engine)
    assert event.get_extension("cluster") == cluster
    assert (event.get_id(), event.get_type()) == (sent.id, "io.whalebridge.container.started")
    assert event.get_data() == msgspec.json.decode(sent.data)


def test_kafka_headers_equal_cloudevents_attributes() -> None:
    for event_record in (
        record(1),
        control_record(2, "snapshot_completed"),
        record(3, engine=EngineInfo("", "containerd.io", "", "", 0)),
        record_of("web", cluster="prod-1", region="é"),
    ):
        headers = dict(kafka_headers(event_record, b"node-1/e"))
        assert headers.pop("ce_partitionkey") == b"node-1/e"
        assert headers.pop("content-type") == b"application/json"
        assert headers == {f"ce_{name}": value.encode() for name, value in attributes(event_record)}


# --- NATS ---


@given(NAMES, HOSTS, VALUES)
def test_nats_headers_are_printable_ascii_and_equal_attributes(name: str, host: str, cluster: str) -> None:
    sent = msgspec.structs.replace(record_of(name, cluster=cluster), host=host)
    headers = nats_headers(sent)
    assert headers.pop("ce-datacontenttype") == "application/json"
    for value in headers.values():
        assert all("!" <= char <= "~" and char != '"' for char in value)
        assert not re.search(r"%(?![0-9A-F]{2})", value)
    assert {key[3:]: unquote(value) for key, value in headers.items()} == dict(attributes(sent))


@pytest.mark.parametrize(
    ("value", "encoded"),
    [("a b", "a%20b"), ('"', "%22"), ("%", "%25"), ("ü", "%C3%BC"), ("\r\n", "%0D%0A"), ("~!/", "~!/")],
)
def test_nats_header_value_is_percent_encoded(value: str, encoded: str) -> None:
    assert encode_nats_value(value) == encoded


# --- structured mode ---


@given(NAMES, VALUES)
def test_cloudevents_envelope_contains_document_unchanged(name: str, cluster: str) -> None:
    sent = record_of(name, cluster=cluster)
    text = envelope(sent, sent.data)
    assert text.endswith(b'"data":' + sent.data + b"}")
    event = JSONFormat().read(None, text)
    assert event.get_extension("cluster") == cluster
    assert event.get_data() == msgspec.json.decode(sent.data)
    decoded = {**msgspec.json.decode(text)}
    del decoded["data"]
    assert decoded.pop("datacontenttype") == "application/json"
    assert decoded == dict(attributes(sent))


def test_structured_mode_content_types_are_correct() -> None:
    assert cloudevents.kafka_envelope_headers() == [("content-type", b"application/cloudevents+json; charset=UTF-8")]
    assert cloudevents.nats_envelope_headers() == {"Content-Type": "application/cloudevents+json"}
