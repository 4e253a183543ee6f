from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.core.records import Record
from config.sinks.nats import NatsSettings
from sinks.nats.connection import parse_address
from sinks.nats.messages import (
    MAX_TOKEN_LENGTH,
    MessageEncoder,
    SubjectBuilder,
    decode_token,
    encode_token,
    is_subset,
    message_id,
    overlaps,
    state_key,
)
from sinks.otlp import encode_otlp
from tests.sample_records import record

RECORD = Record(7, 42, "started", "2026-11-23T15:21:08Z", "node-1", "c79d", "shop", "shop/web", "p", b'{"x":1}')
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HEADER = re.compile(r"[!-~]*")  # printable ASCII without blanks: no line breaks, and no blanks that a parser trims


def messages(**settings: Any) -> MessageEncoder:
    return MessageEncoder(NatsSettings.model_validate({"servers": ["n1"], "subject_prefix": "events", **settings}))


def test_nats_message_has_id_subject_data_and_headers() -> None:
    item = messages().encode(RECORD)
    assert item
    assert item.id == "//node-1/containerd.io/c79d/7-42"
    assert item.position == (7, 42)
    assert item.subject == "events.node-1.shop.started"
    assert item.data == RECORD.data
    assert item.headers == {
        "Nats-Msg-Id": item.id,
        "ce-specversion": "1.0",
        "ce-id": "7-42",
        "ce-source": "//node-1/containerd.io/c79d",
        "ce-type": "io.whalebridge.container.started",
        "ce-time": "2026-11-23T15:21:08Z",
        "ce-dataschema": "urn:whalebridge:event:1",
        "ce-sequence": "7-00000000000000000042",
        "ce-subject": "shop/web",
        "ce-datacontenttype": "application/json",
    }


def test_nats_header_size_covers_wire_size_and_batch_headers() -> None:
    item = messages().encode(RECORD)
    assert item
    wire = b"NATS/1.0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in item.headers.items()) + b"\r\n"
    batch = {"Nats-Batch-Id": "x" * 32, "Nats-Batch-Sequence": "1000", "Nats-Batch-Commit": "1"}
    batch_size = sum(len(name) + len(value) + 4 for name, value in batch.items())
    assert len(wire) + batch_size <= item.header_size < len(wire) + batch_size + 60


def test_nats_message_in_structured_mode_has_envelope() -> None:
    item = messages(cloudevents="structured").encode(RECORD)
    assert item
    assert item.headers == {"Nats-Msg-Id": item.id, "Content-Type": "application/cloudevents+json"}
    assert json.loads(item.data)["data"] == {"x": 1}


def test_nats_message_without_cloudevents_has_only_id_header() -> None:
    item = messages(cloudevents="none").encode(RECORD)
    assert item
    assert item.headers == {"Nats-Msg-Id": item.id}


@pytest.mark.parametrize("mode", ["binary", "structured", "none"])
def test_nats_message_of_same_record_is_identical(mode: str) -> None:
    assert messages(cloudevents=mode).encode(RECORD) == messages(cloudevents=mode).encode(RECORD)


def test_nats_heartbeat_ids_are_unique() -> None:
    heartbeats = [msgspec.structs.replace(RECORD, type="heartbeat", heartbeat_number=number) for number in (1, 2)]
    items = [messages(cloudevents="none").encode(item) for item in (RECORD, *heartbeats)]
    ids = [item.id for item in items if item]
    assert len(set(ids)) == 3
    assert ids[2].endswith(f"/{RECORD.epoch}-{RECORD.sequence}-heartbeat-2")


def test_nats_message_of_otlp_has_protobuf_headers() -> None:
    item = messages(encoding="otlp").encode(record(1))
    assert item
    assert item.data == encode_otlp(record(1))
    assert item.headers["ce-datacontenttype"] == "application/x-protobuf"
    assert item.headers["ce-dataschema"] == "urn:whalebridge:otlp:1"


def test_nats_message_is_none_when_encoding_omits_record() -> None:
    assert messages(encoding="whalewatcher").encode(msgspec.structs.replace(RECORD, type="snapshot_started")) is None


@pytest.mark.parametrize("field", ["host", "engine"])
def test_nats_message_ids_differ_between_sources(field: str) -> None:
    variants = [msgspec.structs.replace(RECORD, **{field: value}) for value in ("a", "b", "a/b", "ä")]
    assert len({message_id(variant) for variant in variants}) == len(variants)


@given(TEXT, TEXT, TEXT, TEXT)
def test_nats_headers_and_subjects_are_safe_for_any_names(
    host: str, namespace: str, subject: str, project: str
) -> None:
    hostile = msgspec.structs.replace(RECORD, host=host, namespace=namespace, subject=subject, project=project)
    item = messages(subject_template="{host}.{namespace}.{project}.{type}").encode(hostile)
    assert item
    assert all(HEADER.fullmatch(value) for value in item.headers.values())
    assert re.fullmatch(r"events(\.[A-Za-z0-9_=-]+){4}", item.subject)


ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
SAFE = re.compile(r"[A-Za-z0-9_=-]+")


def named_record(host: str = "h", namespace: str = "n", project: str = "p") -> Record:
    return Record(1, 2, "started", "t", host, "e", namespace, f"{namespace}/id", project, b"{}")


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("web-1_A", "web-1_A"),
        ("", "_"),
        ("_", "_"),
        ("a.b", "a=2Eb"),
        ("*", "=2A"),
        (">", "=3E"),
        (" ", "=20"),
        ("\r\n", "=0D=0A"),
        ("=41", "=3D41"),
        ("ö", "=C3=B6"),
        ("容", "=E5=AE=B9"),
        ("\x00", "=00"),
    ],
)
def test_subject_token_encodes_special_characters(value: str, token: str) -> None:
    assert encode_token(value) == token


@given(ANY_TEXT)
@example("." * 5000)
@example("a" * 197 + "é")
def test_subject_token_is_safe_and_bounded(value: str) -> None:
    assert SAFE.fullmatch(encode_token(value))
    assert len(encode_token(value)) <= MAX_TOKEN_LENGTH


@given(ANY_TEXT)
def test_subject_token_can_be_decoded(value: str) -> None:
    if len(encode_token(value)) < MAX_TOKEN_LENGTH - 3:
        assert decode_token(encode_token(value)) == ("" if value == "_" else value)


@pytest.mark.parametrize("token", ["web=FF", encode_token("aaa" + "é" * 300)])
def test_token_that_is_not_utf8_is_decoded_with_replacements(token: str) -> None:
    assert "\ufffd" in decode_token(token)


@given(st.text(min_size=1), st.text(min_size=1))
def test_subject_tokens_of_different_values_differ(first: str, second: str) -> None:
    if first != second:
        assert encode_token(first) != encode_token(second)


@given(st.text(min_size=100, max_size=400), st.text(max_size=3))
def test_truncated_subject_token_ends_with_digest(value: str, suffix: str) -> None:
    for token in {encode_token(value), encode_token(value + suffix)}:
        prefix, _, digest = token.partition("==")
        assert re.fullmatch(r"(?:=[0-9A-F]{2}|[A-Za-z0-9_-])*", prefix)
        assert re.fullmatch(r"[0-9a-f]{16}", digest) or not digest
    if suffix:
        assert encode_token(value) != encode_token(value + suffix)


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_nats_subject_always_matches_pattern(host: str, namespace: str, project: str) -> None:
    subjects = SubjectBuilder("pre.fix", "{host}.x.{namespace}.{type}.{project}")
    subject = subjects.build(named_record(host, namespace, project))
    assert is_subset(subject, [subjects.pattern])
    assert len(subject.split(".")) == 7
    assert len(subject) < 2048


def test_default_nats_subject_has_host_namespace_and_type() -> None:
    subjects = SubjectBuilder("whalebridge", "{host}.{namespace}.{type}")
    assert subjects.build(named_record("node-1.lan", "k8s.io")) == "whalebridge.node-1=2Elan.k8s=2Eio.started"
    assert subjects.build(named_record(namespace="")) == "whalebridge.h._.started"
    assert subjects.pattern == "whalebridge.*.*.*"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a.>", "a.*.*", True),
        ("a.b.>", "a.*.*", True),
        (">", "a.*", True),
        ("a", "a", True),
        ("a.*", "a.*.*", False),
        ("b.>", "a.*.*", False),
        ("a.b.c.d", "a.*.*", False),
        ("a.>", "a", False),
        ("*.b", "a.*", True),
    ],
)
def test_nats_subject_overlaps_detects_overlapping_patterns(first: str, second: str, expected: bool) -> None:
    assert overlaps(first, second) is expected
    assert overlaps(second, first) is expected


@pytest.mark.parametrize(
    ("pattern", "others", "expected"),
    [
        ("a.*.*", ["a.>"], True),
        ("a.*.*", ["a.*.*"], True),
        ("a.*.*", ["b.>", ">"], True),
        ("a.*.*", ["a.b.>"], False),
        ("a.*.*", ["a.*"], False),
        ("a.*.*", [], False),
        ("a", ["a.>"], False),
        ("$KV.x.>", ["$KV.x.>"], True),
        ("$KV.x.>", ["$KV.x.*"], False),
    ],
)
def test_nats_subject_is_subset_detects_included_pattern(pattern: str, others: list[str], expected: bool) -> None:
    assert is_subset(pattern, others) is expected


def test_nats_kv_key_has_only_allowed_characters() -> None:
    assert state_key("node-1", "c79d-1") == "node-1.c79d-1"
    assert state_key("node-1.lan", "", "k8s.io", "a/b c") == "node-1=2Elan._.k8s=2Eio.a=2Fb=20c"
    # The characters that a bucket allows in keys.
    assert re.fullmatch(r"[-/_=\.a-zA-Z0-9]+", state_key("größe", "*", ">", "\x00"))


@pytest.mark.parametrize(
    ("server", "address", "name"),
    [
        ("n1", "n1:4222", "n1"),
        ("n1:1", "n1:1", "n1"),
        ("10.0.0.1:1", "10.0.0.1:1", "10.0.0.1"),
        ("[::1]:1", "[::1]:1", "::1"),
        ("[::1]", "[::1]:4222", "::1"),
    ],
)
def test_nats_server_is_split_into_address_and_hostname(server: str, address: str, name: str) -> None:
    assert parse_address(server) == (address, name)
