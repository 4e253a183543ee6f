"""NATS messages for records. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from sinks import cloudevents
from sinks.encoding import get_encoding
from sinks.nats.subjects import SubjectBuilder

if TYPE_CHECKING:
    from bridge.core.records import Record
    from config.sinks.nats import NatsSettings

MESSAGE_ID = "Nats-Msg-Id"
_BATCH_HEADER_BYTES = 160  # bytes: maximum that an atomic batch adds to a message's headers


class OutgoingMessage(NamedTuple):
    """A message for a record; the server recognizes duplicates by ``id``."""

    id: str
    position: tuple[int, int]
    subject: str
    data: bytes
    headers: dict[str, str]

    @property
    def header_size(self) -> int:
        """The maximum size of the headers on the wire, in bytes."""
        return (
            len("".join(self.headers))
            + len("".join(self.headers.values()))
            + 4 * len(self.headers)
            + _BATCH_HEADER_BYTES
        )


class MessageEncoder:
    """Encodes records as messages, according to the settings."""

    def __init__(self, settings: NatsSettings) -> None:
        self.subjects = SubjectBuilder(settings.subject_prefix, settings.subject_template)
        self._encode, self._schema = get_encoding(settings.encoding)
        self._cloudevents = settings.cloudevents

    def encode(self, record: Record) -> OutgoingMessage | None:
        """Return the message for ``record``; None if the encoding does not cover its type."""
        document = self._encode(record)
        if document is None:
            return None
        id_ = message_id(record)
        headers = {MESSAGE_ID: id_}
        if self._cloudevents == "binary":
            headers |= cloudevents.nats_headers(record, self._schema)
        elif self._cloudevents == "structured":
            headers |= cloudevents.nats_envelope_headers()
            document = cloudevents.envelope(record, document, self._schema)
        position = (record.epoch, record.sequence)
        return OutgoingMessage(id_, position, self.subjects.build(record), document, headers)


def message_id(record: Record) -> str:
    """Return the message id of a record for JetStream: its source and its id, in printable ASCII."""
    return f"{_source_id(record.host, record.engine)}/{record.id}"


@lru_cache(maxsize=64)
def _source_id(host: str, engine: str) -> str:
    return cloudevents.encode_nats_value(cloudevents.source_uri(host, engine))
