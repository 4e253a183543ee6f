"""CloudEvents 1.0: the attributes of a record in Kafka headers, in NATS headers, and in a JSON envelope. Pure.

All attribute values come from the record, so a record that is published again has the same bytes.

Invariants:
- Every attribute is a non-empty string without control characters, for any name of a container or namespace:
  characters that an attribute must not contain are percent-encoded before the protocol binding applies.
- Kafka: values are UTF-8. NATS: values are printable ASCII without space, double quote and percent sign; all other
  characters are percent-encoded once more, as the protocol binding requires, and decoded by its readers.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TypeAlias
from urllib.parse import quote

import msgspec

from bridge.core.events import VERSION, Record

Attributes: TypeAlias = list[tuple[str, str]]
KafkaHeaders: TypeAlias = list[tuple[str, bytes]]

JSON = "application/json"
ENVELOPE_KAFKA = "application/cloudevents+json; charset=UTF-8"
ENVELOPE_NATS = "application/cloudevents+json"
SCHEMA = f"urn:whalebridge:event:{VERSION}"  # names the major version
SCHEMA_WHALEWATCHER = "urn:whalebridge:whalewatcher:1"

_TYPES = {
    "snapshot_started": "io.whalebridge.snapshot.started",
    "snapshot_completed": "io.whalebridge.snapshot.completed",
    "lost": "io.whalebridge.lost",
    "heartbeat": "io.whalebridge.heartbeat",
}
_NONCHARACTERS = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_FORBIDDEN = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NONCHARACTERS}]")
_HEADER_SAFE = re.compile(r"[!#-$&-~]*")  # U+0021 to U+007E without the double quote and the percent sign
_HEADER_SAFE_CHARACTERS = "!#$&'()*+,/:;<=>?@[\\]^`{|}"  # besides those that quote() never encodes
_PATH_SAFE = "!$&'()*+,;=:@"  # allowed in a path segment (RFC 3986), besides the unreserved characters
_NAME_SAFE = "!$&'()*+,;="  # the same for the host of an authority
_LIMIT = 64
_DIGITS = 20  # zero-padded, so that sequences sort as text
_SUBJECTS = 1024  # larger: the records of a container share its subject
_ENCODER = msgspec.json.Encoder()


def attributes(record: Record, schema: str = SCHEMA) -> Attributes:
    """Return a record's attributes without ``datacontenttype``; control records have no ``subject``."""
    found = [
        ("specversion", "1.0"),
        ("id", record.id),
        ("source", source(record.host, record.engine)),
        ("type", event_type(record.type)),
        ("time", record.time),
        ("dataschema", schema),
        ("sequence", sequence(record)),
    ]
    if record.subject:
        found.append(("subject", allowed(record.subject)))
    return found


def kafka_headers(record: Record, schema: str = SCHEMA) -> KafkaHeaders:
    """Return the headers of binary mode on Kafka."""
    headers = [
        *_kafka_fixed(record.host, record.engine, record.type, schema),
        ("ce_id", record.id.encode()),
        ("ce_time", record.time.encode()),
        ("ce_sequence", _kafka_epoch(record.epoch) + str(record.sequence).zfill(_DIGITS).encode()),
    ]
    if record.subject:
        headers.append(_kafka_subject(record.subject))
    return headers


def kafka_envelope_headers() -> KafkaHeaders:
    """Return the headers of structured mode on Kafka."""
    return [("content-type", ENVELOPE_KAFKA.encode())]


def nats_headers(record: Record, schema: str = SCHEMA) -> dict[str, str]:
    """Return the headers of binary mode on NATS."""
    headers = {
        **_nats_fixed(record.host, record.engine, record.type, schema),
        "ce-id": record.id,
        "ce-time": record.time,
        "ce-sequence": sequence(record),
    }
    if record.subject:
        headers["ce-subject"] = nats_value(allowed(record.subject))
    return headers


def nats_envelope_headers() -> dict[str, str]:
    """Return the headers of structured mode on NATS."""
    return {"Content-Type": ENVELOPE_NATS}


def envelope(record: Record, document: bytes, schema: str = SCHEMA) -> bytes:
    """Return the JSON of structured mode, with ``document`` unchanged as its data."""
    return _ENCODER.encode({**dict(attributes(record, schema)), "datacontenttype": JSON, "data": msgspec.Raw(document)})


def nats_value(value: str) -> str:
    """Percent-encode as the NATS binding requires: all but U+0021 to U+007E, and double quote and percent sign."""
    return value if _HEADER_SAFE.fullmatch(value) else quote(value, safe=_HEADER_SAFE_CHARACTERS)


@lru_cache(_LIMIT)
def source(host: str, engine: str) -> str:
    """Return a source as a URI reference: one containerd on one host."""
    authority = quote(host, safe=_NAME_SAFE, errors="surrogatepass")
    return f"//{authority}/containerd.io/{quote(engine, safe=_PATH_SAFE, errors='surrogatepass')}"


@lru_cache(_LIMIT)
def event_type(type_: str) -> str:
    """Return a record type as a CloudEvents type."""
    return _TYPES.get(type_, f"io.whalebridge.container.{type_}")


def sequence(record: Record) -> str:
    """Return a string that orders the records of a source lexicographically."""
    return f"{record.epoch}-{record.sequence:0{_DIGITS}}"


def allowed(value: str) -> str:
    """Return a valid attribute value: percent-encoded if ``value`` contains a forbidden character."""
    if (value.isascii() and value.isprintable()) or not _FORBIDDEN.search(value):
        return value
    return quote(value, safe=_HEADER_SAFE_CHARACTERS + ' "', errors="surrogatepass")


@lru_cache(_LIMIT)
def _kafka_fixed(host: str, engine: str, type_: str, schema: str) -> KafkaHeaders:
    return [
        ("content-type", JSON.encode()),
        ("ce_specversion", b"1.0"),
        ("ce_source", source(host, engine).encode()),
        ("ce_type", event_type(type_).encode()),
        ("ce_dataschema", schema.encode()),
    ]


@lru_cache(_LIMIT)
def _kafka_epoch(epoch: int) -> bytes:
    return b"%d-" % epoch


@lru_cache(_SUBJECTS)
def _kafka_subject(subject: str) -> tuple[str, bytes]:
    return "ce_subject", allowed(subject).encode()


@lru_cache(_LIMIT)
def _nats_fixed(host: str, engine: str, type_: str, schema: str) -> dict[str, str]:
    return {
        "ce-specversion": "1.0",
        "ce-source": nats_value(source(host, engine)),
        "ce-type": event_type(type_),
        "ce-dataschema": nats_value(schema),
        "ce-datacontenttype": JSON,
    }
