from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.records import Record
from config.sinks.nats import NatsSettings
from sinks.nats.messages import MessageEncoder, message_id

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
