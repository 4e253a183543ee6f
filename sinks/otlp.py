"""The encoding ``otlp``: a record as a log record of OpenTelemetry's protocol (OTLP). Pure.

A message is a serialized ``LogsData`` with one log record, which is also an ``ExportLogsServiceRequest``. Both have one
repeated field only, so the concatenation of messages is again a message, with the log records of all of them.

Invariants:
- The body of the log record is the JSON of the record, unchanged. The attributes repeat what people filter and group
  by, under the names of OpenTelemetry's semantic conventions, and others with the prefix ``whalebridge.``.
- All values come from the record, so a record that is published again has the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from google.protobuf.message import DecodeError
from msgspec import Struct

from bridge.core.record_encoder import parse_rfc3339
from bridge.core.records import Origin, Record, RecordType
from sinks.cloudevents import event_type, source_uri
from sinks.protos.logs_pb2 import (
    SEVERITY_NUMBER_DEBUG,
    SEVERITY_NUMBER_INFO,
    SEVERITY_NUMBER_WARN,
    LogsData,
    Resource,
    SeverityNumber,
)

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

    from sinks.protos.logs_pb2 import KeyValue

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the semantic conventions."""

_SERVICE = "whalebridge"
_RUNTIME = "containerd"
_SEVERITIES: dict[RecordType, SeverityNumber] = {
    "heartbeat": SEVERITY_NUMBER_DEBUG,
    "lost": SEVERITY_NUMBER_WARN,
    "oom": SEVERITY_NUMBER_WARN,
}
_IMAGE_ID_PREFIX = "sha256:"
_MAX_TIME = 2**64 - 1  # nanoseconds
_CACHE_SIZE = 64

_Value: TypeAlias = str | int | bool | list[str] | None


class _Pod(Struct, frozen=True):
    name: str
    namespace: str
    uid: str
    container: str


class _Container(Struct, frozen=True):
    id: str
    namespace: str
    name: str
    project: str
    service: str
    pid: int
    incarnation: str
    image: str
    pod: _Pod | None
    image_digest: str | None = None


class _Start(Struct, frozen=True):
    at: str | None


class _Exit(Struct, frozen=True):
    at: str | None
    status: int | None
    oom: bool | None


class _Snapshot(Struct, frozen=True):
    reason: str


class _Engine(Struct, frozen=True):
    version: str


class _Fields(Struct, frozen=True):
    """The fields of a record that become fields or attributes of the log record."""

    origin: Origin
    engine: _Engine
    container: _Container | None
    exit: _Exit | None
    snapshot: _Snapshot | None
    start: _Start | None = None


_DECODER = msgspec.json.Decoder(_Fields)


def encode_otlp(record: Record) -> bytes:
    """Return the message for a record."""
    fields = _DECODER.decode(record.data)
    data = LogsData()
    resource_logs = data.resource_logs.add(schema_url=SCHEMA_URL)
    resource_logs.resource.CopyFrom(_resource(record.host, record.engine, record.attributes))
    scope_logs = resource_logs.scope_logs.add(schema_url=SCHEMA_URL)
    scope_logs.scope.name = _SERVICE
    log = scope_logs.log_records.add(
        time_unix_nano=_unix_nano(_happened_at(fields) or record.time),
        observed_time_unix_nano=_unix_nano(record.time),
        severity_number=_SEVERITIES.get(record.type, SEVERITY_NUMBER_INFO),
        event_name=event_type(record.type),
    )
    log.body.string_value = record.data.decode()
    _add(log.attributes, _attributes(record, fields))
    return data.SerializeToString()


def decode_bodies(message: bytes) -> list[bytes]:
    """Return the text bodies of a message's log records; none if it is not such a message."""
    try:
        data = LogsData.FromString(message)
    except DecodeError:
        return []
    return [
        log.body.string_value.encode()
        for resource_logs in data.resource_logs
        for scope_logs in resource_logs.scope_logs
        for log in scope_logs.log_records
    ]


def _happened_at(fields: _Fields) -> str | None:
    if fields.exit is not None:
        return fields.exit.at
    return fields.start.at if fields.start is not None else None


def _unix_nano(text: str) -> int:
    """Return a time in nanoseconds; 0, which stands for unknown, if it is too late for the 64 bits."""
    nanoseconds = parse_rfc3339(text)
    return nanoseconds if nanoseconds <= _MAX_TIME else 0


@lru_cache(_CACHE_SIZE)
def _resource(host: str, engine: str, attributes: tuple[tuple[str, str], ...]) -> Resource:
    resource = Resource()
    own: dict[str, _Value] = {"service.name": _SERVICE, "host.name": host, "whalebridge.engine.id": engine}
    _add(resource.attributes, {**own, **dict(attributes)})
    return resource


def _attributes(record: Record, fields: _Fields) -> dict[str, _Value]:
    result: dict[str, _Value] = {
        "log.record.uid": f"{source_uri(record.host, record.engine)}/{record.id}",
        "whalebridge.origin": fields.origin,
        "whalebridge.epoch": record.epoch,
        "whalebridge.sequence": record.sequence,
    }
    if fields.container is not None:
        result |= _container_attributes(fields.container)
        result["container.runtime.name"] = _RUNTIME
        result["container.runtime.version"] = fields.engine.version
        if fields.container.pod is not None:
            result |= _pod_attributes(fields.container.pod)
            result["k8s.node.name"] = record.host
    if fields.exit is not None:
        result["process.exit.code"] = fields.exit.status
        result["whalebridge.exit.oom"] = fields.exit.oom
    if fields.snapshot is not None:
        result["whalebridge.snapshot.reason"] = fields.snapshot.reason
    return result


def _container_attributes(container: _Container) -> dict[str, _Value]:
    return {
        "container.id": container.id,
        "container.name": container.name,
        **_image_attributes(container.image, container.image_digest),
        "process.pid": container.pid or None,
        "whalebridge.namespace": container.namespace,
        "whalebridge.incarnation": container.incarnation,
        "whalebridge.project": container.project,
        "whalebridge.service": container.service,
    }


def _image_attributes(image: str, digest: str | None) -> dict[str, _Value]:
    """Split the name of an image, which may have a tag and a digest. CRI may have an image's id only."""
    if image.startswith(_IMAGE_ID_PREFIX):
        return {"container.image.id": image}
    tagged, _, pinned = image.partition("@")
    digest = digest or pinned
    name, _, tag = tagged.rpartition(":")
    if not name or "/" in tag:  # no tag; the colon is that of the registry's port
        name, tag = tagged, ""
    return {
        "container.image.name": name,
        "container.image.tags": [tag] if tag else None,
        "container.image.repo_digests": [f"{name}@{digest}"] if name and digest else None,
    }


def _pod_attributes(pod: _Pod) -> dict[str, _Value]:
    return {
        "k8s.namespace.name": pod.namespace,
        "k8s.pod.name": pod.name,
        "k8s.pod.uid": pod.uid,
        "k8s.container.name": pod.container,
    }


def _add(attributes: RepeatedCompositeFieldContainer[KeyValue], values: Mapping[str, _Value]) -> None:
    """Add attributes; leave out those without a value."""
    for key, value in values.items():
        if value is None or value == "":
            continue
        item = attributes.add()
        item.key = key
        if isinstance(value, str):
            item.value.string_value = value
        elif isinstance(value, bool):
            item.value.bool_value = value
        elif isinstance(value, int):
            item.value.int_value = value
        else:
            for each in value:
                item.value.array_value.values.add().string_value = each
