"""Kafka messages for records: key, value, headers, and batches within the size limits. Pure.

A message's timestamp is the time of sending, not of the event (which is in ``ce_time``): brokers reject timestamps that
are too old or too new, and use timestamps for retention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias
from urllib.parse import quote, unquote

from aiokafka.partitioner import DefaultPartitioner

from sinks import cloudevents, state_table
from sinks.cloudevents import KafkaHeaders
from sinks.encoding import EncodingName, get_encoding
from sinks.state_table import StateChange, StateKey

if TYPE_CHECKING:
    from bridge.core.records import Record

Position: TypeAlias = tuple[int, int]
CloudEventsMode: TypeAlias = Literal["none", "binary", "structured"]

_KEY_SAFE = "!$&'()*+,;=:@"  # in a part of a key: all but the separator and the escape character
_BATCH_OVERHEAD = 101  # bytes: 61 of a batch, and at most 40 of its only record
_HEADER_OVERHEAD = 10  # bytes: two lengths
_KEY_PARTS = 4
MAX_BATCH_MESSAGES = 100_000  # messages per batch


class Message(NamedTuple):
    """A Kafka message; ``position`` is the (epoch, sequence) of its record."""

    position: Position
    key: bytes
    value: bytes | None
    headers: KafkaHeaders

    @property
    def size(self) -> int:
        """The maximum size in a request, in bytes."""
        size = _BATCH_OVERHEAD + len(self.key) + len(self.value or b"")
        for name, value in self.headers:
            size += _HEADER_OVERHEAD + len(name) + len(value)
        return size


def find_oversized(messages: Iterable[Message], max_bytes: int) -> Iterator[Position]:
    """Return the positions of messages that do not fit into a request of ``max_bytes``."""
    for message in messages:
        # The only headers of variable length are subject and attributes, which the value contains too.
        if len(message.value or b"") > max_bytes // 4 and message.size > max_bytes:
            yield message.position


class BatchBuilder(Protocol):
    """A batch under construction (aiokafka's BatchBuilder)."""

    def append(self, *, timestamp: int, key: bytes, value: bytes | None, headers: KafkaHeaders) -> object:
        """Add a message; return None if it does not fit and is not the first."""


def event_messages(
    source: StateKey, records: Sequence[Record], encoding: EncodingName, mode: CloudEventsMode
) -> list[Message]:
    """Return the messages for records of one source; records that the encoding does not cover have none."""
    encode, schema, content_type = get_encoding(encoding)
    key = encode_key(source)
    messages = []
    for record in records:
        value = encode(record)
        if value is None:
            continue
        headers: KafkaHeaders = []
        if mode == "binary":
            headers = cloudevents.kafka_headers(record, key, schema, content_type)
        elif mode == "structured":
            value = cloudevents.envelope(record, value, schema, key=key)
            headers = cloudevents.kafka_envelope_headers()
        messages.append(Message((record.epoch, record.sequence), key, value, headers))
    return messages


def state_messages(changes: Sequence[StateChange], max_bytes: int) -> list[Message]:
    """Return the messages for changes of the current state; a removed entry is a tombstone, a message without value.

    An entry that would be too large is published without labels and with ``labels_dropped``.
    """
    messages = []
    for change in changes:
        message = Message(change.position, encode_key(change.key), change.value, [])
        if change.value is not None and message.size > max_bytes:
            message = message._replace(value=state_table.drop_labels(change.value))
        messages.append(message)
    return messages


def encode_key(key: StateKey) -> bytes:
    """Return HOST/ENGINE/NAMESPACE/ID, or HOST/ENGINE for a source, with percent-encoded parts."""
    parts = key if key.namespace or key.id else key[:2]
    return "/".join(quote(part, safe=_KEY_SAFE, errors="surrogatepass") for part in parts).encode()


def decode_key(key: bytes) -> StateKey | None:
    """Decode a message key; None if it has another format, as the keys of other programs may have."""
    try:
        parts = [unquote(part, errors="surrogatepass") for part in key.decode(errors="replace").split("/")]
    except UnicodeDecodeError:
        return None
    return StateKey(*parts) if len(parts) in (2, _KEY_PARTS) else None


def choose_partition(source: StateKey, partitions: Sequence[int]) -> int:
    """Return the partition for a source's key, as Kafka's default partitioner chooses it."""
    return int(DefaultPartitioner()(encode_key(source), partitions, partitions))


def build_batches(
    messages: Sequence[Message],
    timestamp: int,
    new_builder: Callable[[], BatchBuilder],
    max_messages: int = MAX_BATCH_MESSAGES,
) -> Iterator[tuple[BatchBuilder, Sequence[Message]]]:
    """Fill batches in order, each with as many messages as fit: at most ``max_messages``, at least one."""
    start = 0
    while start < len(messages):
        builder, end = new_builder(), start
        while end < min(len(messages), start + max_messages):
            _, key, value, headers = messages[end]
            if builder.append(timestamp=timestamp, key=key, value=value, headers=headers) is None:
                break
            end += 1
        yield builder, messages[start:end]
        start = end
