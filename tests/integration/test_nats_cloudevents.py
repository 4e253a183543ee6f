"""Records on NATS are valid CloudEvents 1.0, as read by the `cloudevents` package.

The package has no binding for NATS. These tests parse binary mode by the rules of the binding, and the package
validates the attributes; the package reads structured mode directly.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from bridge.core.records import Record
from tests.integration.nats_reading import StoredMessage, StreamReader, start_sink
from tests.sample_records import ENGINE, EPOCH, control_record, record
from tests.testbed.nats import Nats

BATCH = [
    control_record(1, "snapshot_started"),
    record(2, "present"),
    control_record(3, "snapshot_completed"),
    record(4, "exited", namespace="default", id_="größe % \" ' 容器"),
    record(5, "paused", host="knoten-größe"),
]
TYPES = ["snapshot.started", "container.present", "snapshot.completed", "container.exited", "container.paused"]


def parse_binary(stored: StoredMessage) -> CloudEvent:
    """Parse a message by the rules of the binding: case-insensitive names, percent-encoded ASCII values."""
    headers = {name.lower(): value for name, value in stored.headers.items()}
    values = {name.removeprefix("ce-"): unquote(value) for name, value in headers.items() if name.startswith("ce-")}
    attributes: dict[str, Any] = dict(values)
    attributes["time"] = datetime.fromisoformat(values["time"].replace("Z", "+00:00")[:26] + "+00:00")
    return CloudEvent(attributes=attributes, data=json.loads(stored.data))


async def publish_and_read(nats: Nats, mode: str) -> list[StoredMessage]:
    sink = await start_sink(nats, f"ce_{mode}", cloudevents=mode)
    await sink.publish(BATCH)
    await sink.close()
    async with StreamReader(nats) as reader:
        return await reader.read_stored(f"WHALEBRIDGE_CE_{mode.upper()}")


def check_event(event: Any, record_: Record, type_: str) -> None:
    host = "knoten-gr%C3%B6%C3%9Fe" if "größe" in record_.host else record_.host
    assert event.get_id() == f"{EPOCH}-{record_.sequence}"
    assert event.get_source() == f"//{host}/containerd.io/{ENGINE.id}"
    assert event.get_type() == f"io.whalebridge.{type_}"
    assert event.get_specversion() == "1.0"
    assert event.get_subject() == (record_.subject or None)
    assert event.get_datacontenttype() == "application/json"
    assert event.get_dataschema() == "urn:whalebridge:event:1"
    assert event.get_extension("sequence") == f"{EPOCH}-{record_.sequence:020}"
    assert event.get_time().replace(tzinfo=UTC).isoformat().startswith("2026-11-23T15:21:08.256344")
    assert event.get_data() == json.loads(record_.data)


async def test_nats_messages_are_valid_binary_cloudevents(nats: Nats) -> None:
    for stored, record_, type_ in zip(await publish_and_read(nats, "binary"), BATCH, TYPES, strict=True):
        assert all(0x21 <= ord(character) <= 0x7E for value in stored.headers.values() for character in value)
        assert stored.data == record_.data
        check_event(parse_binary(stored), record_, type_)


async def test_nats_messages_are_valid_structured_cloudevents(nats: Nats) -> None:
    for stored, record_, type_ in zip(await publish_and_read(nats, "structured"), BATCH, TYPES, strict=True):
        assert stored.headers["Content-Type"] == "application/cloudevents+json"
        assert not [name for name in stored.headers if name.lower().startswith("ce-")]
        check_event(JSONFormat().read(None, stored.data), record_, type_)
