"""Encodings of records: the document that a sink publishes for a record. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from sinks import whalewatcher
from sinks.cloudevents import SCHEMA, SCHEMA_WHALEWATCHER

if TYPE_CHECKING:
    from bridge.core.events import Record

Encoding: TypeAlias = Literal["json", "whalewatcher"]
Encode: TypeAlias = "Callable[[Record], bytes | None]"


class Format(NamedTuple):
    """An encoding: its function, which returns None for record types that it does not cover, and its schema."""

    encode: Encode
    schema: str


def format_of(encoding: Encoding) -> Format:
    """Return the encoding with this name."""
    return _FORMATS[encoding]


def _as_it_is(record: Record) -> bytes:
    return record.data


_FORMATS: dict[Encoding, Format] = {
    "json": Format(_as_it_is, SCHEMA),
    "whalewatcher": Format(whalewatcher.encode, SCHEMA_WHALEWATCHER),
}
