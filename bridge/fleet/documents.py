"""A record as a consumer reads it: leniently, for within a major version the contract only grows. Pure.

Whatever may get new values (types, reasons, kinds) is text here, fields that are not known are passed over, and one
that this reader can do without may be missing. ``bridge.core.events`` has the records as they are published.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

Position: TypeAlias = tuple[int, int]
"""Epoch and sequence: what orders the records of a source."""

LIVING = frozenset({"started", "paused", "unpaused", "present"})
"""The types after which a container lives; after ``exited`` it does not."""

_SHOWN = 100  # characters of what a decoder complains of


class Pod(Struct, frozen=True):
    """The Kubernetes pod of a container."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    container: str = ""
    labels: dict[str, str] | None = None


class Container(Struct, frozen=True):
    """A container as it was known when the record was made."""

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


class Exit(Struct, frozen=True):
    """How a life ended; None is what is not known."""

    status: int | None = None
    at: str | None = None
    oom: bool | None = None


class Previous(Struct, frozen=True):
    """The last position of a source before an epoch."""

    epoch: int
    sequence: int


class Snapshot(Struct, frozen=True):
    """What a snapshot covers."""

    id: str
    reason: str = ""
    since: str | None = None
    until: str | None = None
    namespaces: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    partial: bool = False
    containers: int = 0
    previous: Previous | None = None


class Lost(Struct, frozen=True):
    """The sequences that a ``lost`` record stands for."""

    epoch: int
    first: int
    last: int
    reason: str = ""


class Engine(Struct, frozen=True):
    """The containerd that a record comes from."""

    id: str
    type: str = ""
    version: str = ""
    api: str = ""
    pid: int = 0


class Source(NamedTuple):
    """One containerd on one host."""

    host: str
    engine: str


class Document(Struct, frozen=True):
    """A record, or a frame."""

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

    @property
    def source(self) -> Source:
        """Where it comes from."""
        return Source(self.host, self.engine.id)

    @property
    def position(self) -> Position:
        """Its place in the order of its source."""
        return self.epoch, self.sequence


class ForeignError(ValueError):
    """Something that is no record of whalebridge, or one of another major version; the text says why."""


class _Envelope(Struct):
    """A CloudEvent in structured mode."""

    specversion: str
    data: msgspec.Raw


_DOCUMENT = msgspec.json.Decoder(Document)
_ENVELOPE = msgspec.json.Decoder(_Envelope)
_BEGINNING = b'{"version":1,'
_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode(data: bytes) -> tuple[Document, bytes]:
    """Read a message: the record, and its JSON without what it may be wrapped in, or what stands before it.

    Raises:
        ForeignError: It holds no record.
    """
    try:
        return _DOCUMENT.decode(data), data
    except _ERRORS as error:
        reason = _reason(error)
    for inner in _within(data):
        try:
            return _DOCUMENT.decode(inner), inner
        except _ERRORS as error:
            reason = _reason(error)
    raise ForeignError(reason)


def _within(data: bytes) -> Iterator[bytes]:
    """Look into a CloudEvents envelope, and behind half a line that a killed process has left."""
    try:
        yield bytes(_ENVELOPE.decode(data).data)
    except _ERRORS:
        if (at := data.rfind(_BEGINNING)) > 0:
            yield data[at:]


def _reason(error: Exception) -> str:
    if isinstance(error, msgspec.ValidationError):
        return f"no record of major version 1: {str(error)[:_SHOWN]}"
    return "no JSON"
