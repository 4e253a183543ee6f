"""CloudEvents 1.0: the attributes of a record in headers of Kafka, NATS and HTTP, and in a JSON envelope. Pure.

All attribute values come from the record, so a record that is published again has the same bytes.

Invariants:
- Every attribute is a non-empty string without control characters, for any name of a container or namespace:
  characters that an attribute must not contain are percent-encoded before the protocol binding applies.
- Kafka: values are UTF-8; ``partitionkey`` equals the key of the message. NATS, HTTP: values are printable ASCII
  without space, double quote and percent sign; all other characters are percent-encoded once more, as the protocol
  bindings require, and decoded by their readers.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TypeAlias
from urllib.parse import quote

import msgspec

from bridge.core.records import SCHEMA_ID, Record

Attributes: TypeAlias = list[tuple[str, str]]
KafkaHeaders: TypeAlias = list[tuple[str, bytes]]

JSON_CONTENT_TYPE = "application/json"
PROTOBUF_CONTENT_TYPE = "application/x-protobuf"
KAFKA_ENVELOPE_CONTENT_TYPE = "application/cloudevents+json; charset=UTF-8"
NATS_ENVELOPE_CONTENT_TYPE = "application/cloudevents+json"
HTTP_ENVELOPE_CONTENT_TYPE = "application/cloudevents+json"
HTTP_BATCH_CONTENT_TYPE = "application/cloudevents-batch+json"
SCHEMA = SCHEMA_ID
PARTITION_KEY = "partitionkey"
"""CloudEvents' extension attribute from which the Kafka binding takes the key of a message."""
WHALEWATCHER_SCHEMA = "urn:whalebridge:whalewatcher:1"
OTLP_SCHEMA = "urn:whalebridge:otlp:1"

_TYPES = {
    "snapshot_started": "io.whalebridge.snapshot.started",
    "snapshot_completed": "io.whalebridge.snapshot.completed",
    "lost": "io.whalebridge.lost",
    "heartbeat": "io.whalebridge.heartbeat",
    "source_retired": "io.whalebridge.source.retired",
}
_NONCHARACTERS = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_FORBIDDEN_CHARACTERS = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NONCHARACTERS}]")
_HEADER_SAFE = re.compile(r"[!#-$&-~]*")  # U+0021 to U+007E without the double quote and the percent sign
_HEADER_SAFE_CHARACTERS = "!#$&'()*+,/:;<=>?@[\\]^`{|}"  # besides those that quote() never encodes
_PATH_SAFE = "!$&'()*+,;=:@"  # allowed in a path segment (RFC 3986), besides the unreserved characters
_HOST_SAFE = "!$&'()*+,;="  # the same for the host of an authority
_CACHE_SIZE = 64
_SEQUENCE_DIGITS = 20  # zero-padded, so that sequences sort as text
_SUBJECT_CACHE_SIZE = 1024  # larger: the records of a container share its subject
_ENCODER = msgspec.json.Encoder()


def attributes(record: Record, schema: str = SCHEMA) -> Attributes:
    """Return a record's attributes without ``datacontenttype``; control records have no ``subject``."""
    result = [
        ("specversion", "1.0"),
        ("id", record.id),
        ("source", source_uri(record.host, record.engine)),
        ("type", event_type(record.type)),
        ("time", record.time),
        ("dataschema", schema),
        ("sequence", format_sequence(record)),
    ]
    if record.subject:
        result.append(("subject", encode_attribute(record.subject)))
    result += [(name, encode_attribute(value)) for name, value in record.attributes]
    return result


def kafka_headers(
    record: Record, key: bytes, schema: str = SCHEMA, content_type: str = JSON_CONTENT_TYPE
) -> KafkaHeaders:
    """Return the headers of binary mode on Kafka, for a message with this ``key``."""
    headers = [
        *_kafka_source_headers(record.host, record.engine, record.type, schema, content_type, record.attributes, key),
        ("ce_id", record.id.encode()),
        ("ce_time", record.time.encode()),
        ("ce_sequence", b"%d-%020d" % (record.epoch, record.sequence)),
    ]
    if record.subject:
        headers.append(_kafka_subject_header(record.subject))
    return headers


def kafka_envelope_headers() -> KafkaHeaders:
    """Return the headers of structured mode on Kafka."""
    return [("content-type", KAFKA_ENVELOPE_CONTENT_TYPE.encode())]


def nats_headers(record: Record, schema: str = SCHEMA, content_type: str = JSON_CONTENT_TYPE) -> dict[str, str]:
    """Return the headers of binary mode on NATS."""
    headers = {
        **_nats_source_headers(record.host, record.engine, record.type, schema, content_type, record.attributes),
        "ce-id": record.id,
        "ce-time": record.time,
        "ce-sequence": format_sequence(record),
    }
    if record.subject:
        headers["ce-subject"] = encode_nats_value(encode_attribute(record.subject))
    return headers


def http_headers(record: Record, schema: str = SCHEMA) -> dict[str, str]:
    """Return the headers of binary mode over HTTP, whose rules for values the NATS binding has adopted."""
    headers = nats_headers(record, schema)
    return {"Content-Type": headers.pop("ce-datacontenttype"), **headers}


def nats_envelope_headers() -> dict[str, str]:
    """Return the headers of structured mode on NATS."""
    return {"Content-Type": NATS_ENVELOPE_CONTENT_TYPE}


def envelope(record: Record, document: bytes, schema: str = SCHEMA, *, key: bytes | None = None) -> bytes:
    """Return the JSON of structured mode, with ``document`` unchanged as its data.

    A Kafka message has a ``key``, which is also its attribute ``partitionkey``.
    """
    members: dict[str, str | msgspec.Raw] = dict(attributes(record, schema))
    if key is not None:
        members[PARTITION_KEY] = key.decode()
    return _ENCODER.encode({**members, "datacontenttype": JSON_CONTENT_TYPE, "data": msgspec.Raw(document)})


def encode_nats_value(value: str) -> str:
    """Percent-encode as the NATS binding requires: all but U+0021 to U+007E, and double quote and percent sign."""
    return value if _HEADER_SAFE.fullmatch(value) else quote(value, safe=_HEADER_SAFE_CHARACTERS)


@lru_cache(_CACHE_SIZE)
def source_uri(host: str, engine: str) -> str:
    """Return a source as a URI reference: one containerd on one host."""
    authority = quote(host, safe=_HOST_SAFE, errors="surrogatepass")
    return f"//{authority}/containerd.io/{quote(engine, safe=_PATH_SAFE, errors='surrogatepass')}"


@lru_cache(_CACHE_SIZE)
def event_type(type_: str) -> str:
    """Return a record type as a CloudEvents type."""
    return _TYPES.get(type_, f"io.whalebridge.container.{type_}")


def format_sequence(record: Record) -> str:
    """Return a string that orders the records of a source lexicographically."""
    return f"{record.epoch}-{record.sequence:0{_SEQUENCE_DIGITS}}"


def encode_attribute(value: str) -> str:
    """Return a valid attribute value: percent-encoded if ``value`` contains a forbidden character."""
    if (value.isascii() and value.isprintable()) or not _FORBIDDEN_CHARACTERS.search(value):
        return value
    return quote(value, safe=_HEADER_SAFE_CHARACTERS + ' "', errors="surrogatepass")


@lru_cache(_CACHE_SIZE)
def _kafka_source_headers(
    host: str,
    engine: str,
    type_: str,
    schema: str,
    content_type: str,
    extensions: tuple[tuple[str, str], ...],
    key: bytes,
) -> KafkaHeaders:
    return [
        ("content-type", content_type.encode()),
        ("ce_specversion", b"1.0"),
        ("ce_source", source_uri(host, engine).encode()),
        ("ce_type", event_type(type_).encode()),
        ("ce_dataschema", schema.encode()),
        (f"ce_{PARTITION_KEY}", key),
        *((f"ce_{name}", encode_attribute(value).encode()) for name, value in extensions),
    ]


@lru_cache(_SUBJECT_CACHE_SIZE)
def _kafka_subject_header(subject: str) -> tuple[str, bytes]:
    return "ce_subject", encode_attribute(subject).encode()


@lru_cache(_CACHE_SIZE)
def _nats_source_headers(
    host: str, engine: str, type_: str, schema: str, content_type: str, extensions: tuple[tuple[str, str], ...]
) -> dict[str, str]:
    return {
        "ce-specversion": "1.0",
        "ce-source": encode_nats_value(source_uri(host, engine)),
        "ce-type": event_type(type_),
        "ce-dataschema": encode_nats_value(schema),
        "ce-datacontenttype": content_type,
        **{f"ce-{name}": encode_nats_value(encode_attribute(value)) for name, value in extensions},
    }
