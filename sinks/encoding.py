"""Encodings of records: the document that a sink publishes for a record. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from sinks import whalewatcher_encoding
from sinks.cloudevents import SCHEMA, WHALEWATCHER_SCHEMA

if TYPE_CHECKING:
    from bridge.core.records import Record

EncodingName: TypeAlias = Literal["json", "whalewatcher"]
EncodeFunction: TypeAlias = "Callable[[Record], bytes | None]"


class Encoding(NamedTuple):
    """An encoding: its function, which returns None for record types that it does not cover, and its schema."""

    encode: EncodeFunction
    schema: str


def get_encoding(name: EncodingName) -> Encoding:
    """Return the encoding with this name."""
    return _ENCODINGS[name]


def _encode_json(record: Record) -> bytes:
    return record.data


_ENCODINGS: dict[EncodingName, Encoding] = {
    "json": Encoding(_encode_json, SCHEMA),
    "whalewatcher": Encoding(whalewatcher_encoding.encode, WHALEWATCHER_SCHEMA),
}
