"""Records as a consumer decodes them: leniently, because the contract only grows within a major version. Pure.

Fields that may get new values (types, reasons, kinds) are text, unknown fields are ignored, and fields that a consumer
does not need may be missing. ``bridge.core.records`` defines the published records.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from bridge.core.records import SourcePosition

Position: TypeAlias = tuple[int, int]
"""Epoch and sequence, which order the records of a source."""

RUNNING_TYPES = frozenset({"started", "paused", "unpaused", "present"})
"""The types of records after which a container is running."""

REPEATING_TYPES = frozenset({"heartbeat", "source_retired"})
"""The types of records that take no position of their own, but have that of the last record before them."""

_MAX_REASON_LENGTH = 100  # characters of a decoder's error message


class Pod(Struct, frozen=True, gc=False):
    """The Kubernetes pod of a container."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    container: str = ""
    labels: dict[str, str] | None = None


class Container(Struct, frozen=True, gc=False):  # there are many, and none refers to itself
    """A container as known at the time of the record."""

    id: str
    namespace: str
    name: str
    project: str = ""
    service: str = ""
    pid: int = 0
    incarnation: str = ""
    paused: bool = False
    kind: str = "container"
    image: str = ""
    runtime: str = ""
    created_at: str | None = None
    labels: dict[str, str] | None = None
    labels_dropped: bool = False
    pod: Pod | None = None
    image_digest: str | None = None


class Start(Struct, frozen=True):
    """When a container started; None if unknown."""

    at: str | None = None


class Exit(Struct, frozen=True):
    """How a container exited; None for unknown values."""

    status: int | None = None
    at: str | None = None
    oom: bool | None = None


class Snapshot(Struct, frozen=True):
    """The identity and coverage of a snapshot."""

    id: str
    reason: str = ""
    since: str | None = None
    until: str | None = None
    namespaces: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    partial: bool = False
    containers: int = 0
    previous: SourcePosition | None = None


class Lost(Struct, frozen=True):
    """The range of sequences that a ``lost`` record replaces."""

    epoch: int
    first: int
    last: int
    reason: str = ""


class Heartbeat(Struct, frozen=True):
    """When to expect the next heartbeat of a source, in seconds."""

    interval: float


class Retired(Struct, frozen=True):
    """Why a source has ended for good, and who said so."""

    reason: str = ""
    by: str = ""


class Engine(Struct, frozen=True):
    """The containerd instance that a record describes."""

    id: str
    type: str = ""
    version: str = ""
    api: str = ""
    pid: int = 0


class Source(NamedTuple):
    """The origin of records: one containerd on one host."""

    host: str
    engine: str


class DecodedRecord(Struct, frozen=True):
    """A record of any type."""

    version: Literal[1]
    type: str
    timestamp: str
    engine: Engine
    host: str
    epoch: int
    sequence: int
    id: str | None = None
    project: str | None = None
    origin: str = ""
    container: Container | None = None
    exit: Exit | None = None
    snapshot: Snapshot | None = None
    lost: Lost | None = None
    start: Start | None = None
    heartbeat: Heartbeat | None = None
    retired: Retired | None = None
    attributes: dict[str, str] = {}
    snapshot_id: str | msgspec.UnsetType | None = msgspec.UNSET
    """Only the entries of a state topic or bucket have it, which repeat single records."""

    @property
    def is_table_entry(self) -> bool:
        """Whether this is an entry of a state topic or bucket."""
        return self.snapshot_id is not msgspec.UNSET

    @property
    def source(self) -> Source:
        """The record's source."""
        return Source(self.host, self.engine.id)

    @property
    def position(self) -> Position:
        """The record's position in the order of its source."""
        return self.epoch, self.sequence


class InvalidMessageError(ValueError):
    """A message is not a record of whalebridge, or has another major version; the text says why."""


class _CloudEvent(Struct):
    """A CloudEvent in structured mode."""

    specversion: str
    data: msgspec.Raw


_RECORD_DECODER = msgspec.json.Decoder(DecodedRecord)
_CLOUD_EVENT_DECODER = msgspec.json.Decoder(_CloudEvent)
_RECORD_PREFIX = b'{"version":1,'
_OTLP_PREFIX = b"\n"  # the tag of the only field of LogsData
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode(data: bytes) -> tuple[DecodedRecord, bytes]:
    """Decode a message; return the record and its JSON, without an envelope or a preceding partial line.

    Raises:
        InvalidMessageError: The message does not contain a record.
    """
    try:
        return _RECORD_DECODER.decode(data), data
    except _DECODE_ERRORS as error:
        reason = _error_reason(error)
    for inner in _find_embedded(data):
        try:
            return _RECORD_DECODER.decode(inner), inner
        except _DECODE_ERRORS as error:
            reason = _error_reason(error)
    raise InvalidMessageError(reason)


def is_otlp(data: bytes) -> bool:
    """Return whether a message that contains a record is an OpenTelemetry log record."""
    return data.startswith(_OTLP_PREFIX)


def _find_embedded(data: bytes) -> Iterator[bytes]:
    """Yield what may be a record.

    That is the body of an OpenTelemetry log record, the data of a CloudEvent, or the text after the partial line of a
    killed process.
    """
    if is_otlp(data):
        yield from _find_otlp_body(data)
    try:
        yield bytes(_CLOUD_EVENT_DECODER.decode(data).data)
    except _DECODE_ERRORS:
        if (at := data.rfind(_RECORD_PREFIX)) > 0:
            yield data[at:]


def _find_otlp_body(data: bytes) -> Iterator[bytes]:
    from sinks.otlp import decode_bodies  # noqa: PLC0415 (imported only for such messages)

    bodies = decode_bodies(data)
    if len(bodies) > 1:
        raise InvalidMessageError(f"{len(bodies)} OpenTelemetry log records in one message; whalebridge publishes one")
    yield from bodies


def _error_reason(error: Exception) -> str:
    if isinstance(error, msgspec.ValidationError):
        return f"not a record of major version 1: {str(error)[:_MAX_REASON_LENGTH]}"
    return "not JSON"
