"""Kafka messages for records: key, value, headers, and batches within the size limits. Pure.

A message's timestamp is the time of sending, not of the event (which is in ``ce_time``): brokers reject timestamps that
are too old or too new, and use timestamps for retention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias
from urllib.parse import quote, unquote

from aiokafka.partitioner import DefaultPartitioner

from sinks import cloudevents, current
from sinks.cloudevents import KafkaHeaders
from sinks.current import Change, Row
from sinks.documents import Encoding, format_of

if TYPE_CHECKING:
    from bridge.core.events import Record

Position: TypeAlias = tuple[int, int]
Mode: TypeAlias = Literal["none", "binary", "structured"]

_SAFE = "!$&'()*+,;=:@"  # in a part of a key: all but the separator and the escape character
_OVERHEAD = 101  # bytes: 61 of a batch, and at most 40 of its only record
_HEADER_OVERHEAD = 10  # bytes: two lengths
_KEY_PARTS = 4
MOST = 100_000  # messages per batch


class Message(NamedTuple):
    """A Kafka message; ``position`` is the (epoch, sequence) of its record."""

    position: Position
    key: bytes
    value: bytes | None
    headers: KafkaHeaders

    @property
    def size(self) -> int:
        """The maximum size in a request, in bytes."""
        size = _OVERHEAD + len(self.key) + len(self.value or b"")
        for name, value in self.headers:
            size += _HEADER_OVERHEAD + len(name) + len(value)
        return size


def too_large(messages: Iterable[Message], most: int) -> Iterator[Position]:
    """Return the positions of messages that do not fit into a request of ``max_bytes``."""
    for message in messages:
        # The only header of variable length is the subject, which the value contains too.
        if len(message.value or b"") > most // 4 and message.size > most:
            yield message.position


class Builder(Protocol):
    """A batch under construction (aiokafka's BatchBuilder)."""

    def append(self, *, timestamp: int, key: bytes, value: bytes | None, headers: KafkaHeaders) -> object:
        """Add a message; return None if it does not fit and is not the first."""


def event_messages(source: Row, records: Sequence[Record], encoding: Encoding, mode: Mode) -> list[Message]:
    """Return the messages for records of one source; records that the encoding does not cover have none."""
    encode, schema = format_of(encoding)
    key = key_of(source)
    messages = []
    for record in records:
        value = encode(record)
        if value is None:
            continue
        headers: KafkaHeaders = []
        if mode == "binary":
            headers = cloudevents.kafka_headers(record, schema)
        elif mode == "structured":
            value, headers = cloudevents.envelope(record, value, schema), cloudevents.kafka_envelope_headers()
        messages.append(Message((record.epoch, record.sequence), key, value, headers))
    return messages


def state_messages(changes: Sequence[Change], max_bytes: int) -> list[Message]:
    """Return the messages for changes of the current state; a removed entry is a tombstone, a message without value.

    An entry that would be too large is published without labels and with ``labels_dropped``.
    """
    messages = []
    for change in changes:
        message = Message(change.position, key_of(change.row), change.value, [])
        if change.value is not None and message.size > max_bytes:
            message = message._replace(value=current.without_labels(change.value))
        messages.append(message)
    return messages


def key_of(row: Row) -> bytes:
    """Return HOST/ENGINE/NAMESPACE/ID, or HOST/ENGINE for a source, with percent-encoded parts."""
    parts = row if row.namespace or row.id else row[:2]
    return "/".join(quote(part, safe=_SAFE, errors="surrogatepass") for part in parts).encode()


def row_of(key: bytes) -> Row | None:
    """Decode a message key; None if it has another format."""
    parts = [unquote(part, errors="surrogatepass") for part in key.decode(errors="replace").split("/")]
    return Row(*parts) if len(parts) in (2, _KEY_PARTS) else None


def partition_of(source: Row, partitions: Sequence[int]) -> int:
    """Return the partition for a source's key, as Kafka's default partitioner chooses it."""
    return int(DefaultPartitioner()(key_of(source), partitions, partitions))


def batches(
    messages: Sequence[Message], timestamp: int, new: Callable[[], Builder], most: int = MOST
) -> Iterator[tuple[Builder, Sequence[Message]]]:
    """Fill batches in order, each with as many messages as fit: at most ``max_messages``, at least one."""
    start = 0
    while start < len(messages):
        builder, end = new(), start
        while end < min(len(messages), start + most):
            _, key, value, headers = messages[end]
            if builder.append(timestamp=timestamp, key=key, value=value, headers=headers) is None:
                break
            end += 1
        yield builder, messages[start:end]
        start = end
