"""Requests for records: bodies and headers of each content mode, within the limits of size. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from sinks import cloudevents
from sinks.encoding import get_encoding

if TYPE_CHECKING:
    from bridge.core.records import Record
    from config.sinks.http import HttpSinkSettings

NDJSON_CONTENT_TYPE = "application/x-ndjson"
_KEY_LENGTH = 32  # characters: 128 bits
_SEPARATOR_BYTES = 1  # at most, between the records of a body

RecordId: TypeAlias = tuple[str, str]
"""CloudEvents' source and id, which are unique together."""


class Message(NamedTuple):
    """A record's part of a request; ``position`` is its (epoch, sequence)."""

    id: RecordId
    position: tuple[int, int]
    body: bytes
    headers: Mapping[str, str]


class Request(NamedTuple):
    """The body of a request, and its headers as far as they depend on the body."""

    headers: dict[str, str]
    body: bytes


class MessageEncoder:
    """Encodes records according to the settings."""

    def __init__(self, settings: HttpSinkSettings) -> None:
        self._encode, self._schema, _ = get_encoding(settings.encoding)
        self._is_otlp = settings.encoding == "otlp"
        self._mode = settings.cloudevents

    def encode(self, record: Record) -> Message | None:
        """Return the message for ``record``; None if the encoding does not cover its type."""
        document = self._encode(record)
        if document is None:
            return None
        headers: Mapping[str, str]
        match self._mode:
            case "none":
                headers = {"Content-Type": cloudevents.PROTOBUF_CONTENT_TYPE if self._is_otlp else NDJSON_CONTENT_TYPE}
            case "binary":
                headers = cloudevents.http_headers(record, self._schema)
            case "structured" | "batched":
                headers = {"Content-Type": cloudevents.HTTP_ENVELOPE_CONTENT_TYPE}
                document = cloudevents.envelope(record, document, self._schema)
        id_ = (cloudevents.source_uri(record.host, record.engine), record.id)
        return Message(id_, (record.epoch, record.sequence), document, headers)

    def build_request(self, messages: Sequence[Message]) -> Request:
        """Return the request for messages: for a single one unless the mode has batches."""
        headers = dict(messages[0].headers)
        match self._mode:
            case "none":
                end = b"" if self._is_otlp else b"\n"  # joined messages of OTLP are one (sinks/otlp.py)
                body = b"".join(message.body + end for message in messages)
            case "batched":
                headers["Content-Type"] = cloudevents.HTTP_BATCH_CONTENT_TYPE
                body = b"[" + b",".join(message.body for message in messages) + b"]"
            case _:
                (message,) = messages
                body = message.body
        return Request({**headers, "Idempotency-Key": f'"{idempotency_key(messages)}"'}, body)


def idempotency_key(messages: Sequence[Message]) -> str:
    """Return a key that is the same for the same records, and only for them."""
    return sha256("\n".join("/".join(message.id) for message in messages).encode()).hexdigest()[:_KEY_LENGTH]


def split_batch(
    messages: Sequence[Message], max_records: int, max_bytes: Callable[[], int]
) -> Iterator[Sequence[Message]]:
    """Split messages into requests, in order, each with as many as allowed, and at least one.

    ``max_bytes`` returns the current limit, which each response may change.
    """
    start = 0
    while start < len(messages):
        end, size, limit = start, 0, max_bytes()
        while end < min(len(messages), start + max_records):
            size += len(messages[end].body) + _SEPARATOR_BYTES
            if size > limit and end > start:
                break
            end += 1
        yield messages[start:end]
        start = end
