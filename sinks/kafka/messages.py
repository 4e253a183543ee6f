"""From records to Kafka's: key, value and headers, and batches that are not too large. Pure.

A message's timestamp is the moment at which it is sent, not that of the event (which is in ``ce_time``): brokers
refuse timestamps that are too old or too new, and delete by them.
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

_SAFE = "!$&'()*+,;=:@"  # of a part of a key: all but what separates parts, and what escapes
_OVERHEAD = 101  # of a batch, 61, and of its one record at the most
_HEADER_OVERHEAD = 10  # two lengths
_KEY_PARTS = 4
MOST = 100_000  # messages of a batch


class Message(NamedTuple):
    """What Kafka calls a record; ``position`` is the (epoch, sequence) of the one it comes from."""

    position: Position
    key: bytes
    value: bytes | None
    headers: KafkaHeaders

    @property
    def size(self) -> int:
        """How many bytes it takes in a request at the most."""
        size = _OVERHEAD + len(self.key) + len(self.value or b"")
        for name, value in self.headers:
            size += _HEADER_OVERHEAD + len(name) + len(value)
        return size


def too_large(messages: Iterable[Message], most: int) -> Iterator[Position]:
    """Return the positions of messages that no request of ``most`` bytes can hold."""
    for message in messages:
        # Of what is in headers only the subject can be long, and it is in the value as well.
        if len(message.value or b"") > most // 4 and message.size > most:
            yield message.position


class Builder(Protocol):
    """A batch under construction: aiokafka's BatchBuilder."""

    def append(self, *, timestamp: int, key: bytes, value: bytes | None, headers: KafkaHeaders) -> object:
        """Add a message; None where it has no room, unless it is the first."""


def event_messages(source: Row, records: Sequence[Record], encoding: Encoding, mode: Mode) -> list[Message]:
    """Return the messages for records of one source; none for those that the encoding has no document for."""
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
    """Return the messages for changes of the current state; a row that is gone has no value, a tombstone.

    A row that would be too large loses its labels, and says so.
    """
    messages = []
    for change in changes:
        message = Message(change.position, key_of(change.row), change.value, [])
        if change.value is not None and message.size > max_bytes:
            message = message._replace(value=current.without_labels(change.value))
        messages.append(message)
    return messages


def key_of(row: Row) -> bytes:
    """Return HOST/ENGINE/NAMESPACE/ID, or HOST/ENGINE of a source; what is not plain in a part is percent-encoded."""
    parts = row if row.namespace or row.id else row[:2]
    return "/".join(quote(part, safe=_SAFE, errors="surrogatepass") for part in parts).encode()


def row_of(key: bytes) -> Row | None:
    """Read a key; None if it is none of ours."""
    parts = [unquote(part, errors="surrogatepass") for part in key.decode(errors="replace").split("/")]
    return Row(*parts) if len(parts) in (2, _KEY_PARTS) else None


def partition_of(source: Row, partitions: Sequence[int]) -> int:
    """Return the partition that any Kafka client would choose for a source's key."""
    return int(DefaultPartitioner()(key_of(source), partitions, partitions))


def batches(
    messages: Sequence[Message], timestamp: int, new: Callable[[], Builder], most: int = MOST
) -> Iterator[tuple[Builder, Sequence[Message]]]:
    """Fill batches, in order, each with as many messages as it takes, ``most`` of them, and one at least."""
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
