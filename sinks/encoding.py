"""Encodings of records: the document that a sink publishes for a record. Pure.

``json`` is the record as it is, ``otlp`` a log record of OpenTelemetry (``sinks/otlp.py``).

``whalewatcher`` is for readers whose Go structs ``encoding/json`` fills. One document fits both
``engineclient.ContainerEvent`` (Timestamp, Type, ID, Project) and ``watcher.ContainerEvent`` (Type, Container): each
takes the keys it knows. Only lifecycle records are encoded, and snapshot records as started; there are no control
records, so readers cannot detect gaps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from bridge.core.container_metadata import display_id
from bridge.core.containerd_model import ContainerKey, Labels
from bridge.core.records import Record, RecordType
from sinks.cloudevents import (
    JSON_CONTENT_TYPE,
    OTLP_SCHEMA,
    PROTOBUF_CONTENT_TYPE,
    SCHEMA,
    WHALEWATCHER_SCHEMA,
)

EncodingName: TypeAlias = Literal["json", "whalewatcher", "otlp"]
EncodeFunction: TypeAlias = Callable[[Record], bytes | None]


class Encoding(NamedTuple):
    """An encoding: its function, which returns None for record types that it does not cover, and what it returns."""

    encode: EncodeFunction
    schema: str
    content_type: str


def get_encoding(name: EncodingName) -> Encoding:
    """Return the encoding with this name."""
    if name == "otlp":
        from sinks.otlp import encode_otlp  # noqa: PLC0415 (imported only if it is configured)

        return Encoding(encode_otlp, OTLP_SCHEMA, PROTOBUF_CONTENT_TYPE)
    return _ENCODINGS[name]


def _encode_json(record: Record) -> bytes:
    return record.data


EVENT_TYPES: dict[RecordType, int] = {"started": 0, "present": 0, "exited": 1, "paused": 2, "unpaused": 3}
"""The ``engineclient.ContainerEventType`` of each record type that has one."""


class _ContainerFields(Struct, frozen=True):
    """The fields of a record's container that are encoded."""

    id: str
    namespace: str
    name: str
    project: str
    pid: int
    paused: bool
    labels: Labels | None


class _RecordFields(Struct, frozen=True):
    container: _ContainerFields


class _Container(Struct, frozen=True):
    """``whalewatcher.Container``: ID and Name are prefixed with the namespace, unless it is ``default``."""

    ID: str
    Name: str
    Labels: Labels
    PID: int
    Project: str
    Paused: bool


_DECODER = msgspec.json.Decoder(_RecordFields)
_ENCODER = msgspec.json.Encoder()


def encode_whalewatcher(record: Record) -> bytes | None:
    """Return a record's document; None if whalewatcher has no such event type."""
    type_ = EVENT_TYPES.get(record.type)
    if type_ is None:
        return None
    decoded = _DECODER.decode(record.data).container
    name = display_id(ContainerKey(decoded.namespace, decoded.name))
    container = _Container(record.subject, name, decoded.labels or {}, decoded.pid, decoded.project, decoded.paused)
    return _ENCODER.encode(
        {
            "Timestamp": record.time,
            "Type": type_,
            "ID": record.subject,
            "Project": record.project,
            "Container": container,
        }
    )


_ENCODINGS: dict[EncodingName, Encoding] = {
    "json": Encoding(_encode_json, SCHEMA, JSON_CONTENT_TYPE),
    "whalewatcher": Encoding(encode_whalewatcher, WHALEWATCHER_SCHEMA, JSON_CONTENT_TYPE),
}
