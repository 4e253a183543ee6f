"""NATS messages for records: subjects, ids and headers; bucket keys, and JetStream's acknowledgments. Pure.

Any name of a container, namespace or host becomes one token of ``[A-Za-z0-9_=-]``, without wildcards, dots and blanks.
Different values have different tokens. The length of a token is bounded, because a server closes a connection whose
control line exceeds 4 KiB.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

import msgspec
from msgspec import Struct

from bridge.core.time import SECOND
from sinks import cloudevents
from sinks.encoding import get_encoding

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from bridge.core.records import Record
    from config.sinks.nats import NatsSettings

MESSAGE_ID = "Nats-Msg-Id"
BATCH_ID = "Nats-Batch-Id"
MAX_TOKEN_LENGTH = 200  # characters
ACK_INTERVAL_BYTES = 128 * 1024
NO_RESPONDERS = 503
TOO_LARGE = (10054, 10097)  # error codes: message too large, headers too large
IN_PROCESS = 10158  # error code: the leader has received the id, and does not know whether its message is stored
IN_PROCESS_SECONDS = 30  # a leader that cannot store messages steps down earlier
_BATCH_HEADER_BYTES = 160  # bytes: maximum that an atomic batch adds to a message's headers
_FIELDS = ("host", "namespace", "project", "type")
_DIGEST_LENGTH = 16  # characters

_UNSAFE_BYTES = re.compile(rb"[^A-Za-z0-9_-]")
_ESCAPED_BYTE = re.compile(rb"=([0-9A-F]{2})")


# --- messages ---


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
        self._encode, self._schema, self._content_type = get_encoding(settings.encoding)
        self._cloudevents = settings.cloudevents

    def encode(self, record: Record) -> OutgoingMessage | None:
        """Return the message for ``record``; None if the encoding does not cover its type."""
        document = self._encode(record)
        if document is None:
            return None
        id_ = message_id(record)
        headers = {MESSAGE_ID: id_}
        if self._cloudevents == "binary":
            headers |= cloudevents.nats_headers(record, self._schema, self._content_type)
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


class PublishRequest(NamedTuple):
    """A message to publish; ``wants_ack`` requests an acknowledgment."""

    subject: str
    data: bytes
    headers: dict[str, str] | None
    wants_ack: bool = True


class MessageIds(dict[str, tuple[str, int]]):
    """Ids that the servers reject as in process: the id to send instead, and since when that is rejected.

    A leader that steps down can drop a message, and still reject its id until the duplicate window is over, an hour by
    default. If the first message is stored after all, it is stored before the other one, and consumers skip the latter.
    """

    def replace(self, headers: dict[str, str]) -> dict[str, str]:
        """Return the headers to send."""
        id_ = headers.get(MESSAGE_ID, "")
        return {**headers, MESSAGE_ID: self[id_][0]} if id_ in self else headers

    def reject(self, headers: dict[str, str], now: int) -> None:
        """Remember a rejection at a time of the monotonic clock; after ``IN_PROCESS_SECONDS``, replace the id."""
        id_ = headers[MESSAGE_ID]
        sent, since = self.setdefault(id_, (id_, now))
        if now - since >= IN_PROCESS_SECONDS * SECOND:
            self[id_] = (f"{sent}~", now)


def build_atomic_batch(outgoing: Sequence[OutgoingMessage]) -> list[PublishRequest]:
    """Build an atomic batch. Acknowledgments of some messages before the last show progress on a slow network."""
    batch = uuid4().hex
    last = len(outgoing) - 1
    messages = []
    unacknowledged = ACK_INTERVAL_BYTES  # bytes since the last message with an acknowledgment
    for index, item in enumerate(outgoing):
        headers = {**item.headers, BATCH_ID: batch, "Nats-Batch-Sequence": str(index + 1)}
        if index == last:
            headers["Nats-Batch-Commit"] = "1"
        unacknowledged += len(item.data)
        wants_ack = index == last or unacknowledged >= ACK_INTERVAL_BYTES
        unacknowledged = 0 if wants_ack else unacknowledged
        messages.append(PublishRequest(item.subject, item.data, headers, wants_ack))
    return messages


# --- acknowledgments ---


class ApiError(Struct, frozen=True):
    """Why a message was not stored; ``err_code`` is JetStream's, 0 for errors that do not come from JetStream."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(Struct, frozen=True):
    """JetStream's reply to a message: an error, or stored in ``stream``, now or (``duplicate``) earlier."""

    error: ApiError | None = None
    stream: str = ""
    seq: int = 0
    duplicate: bool = False


_DECODER = msgspec.json.Decoder(PubAck)
_EMPTY_ACK = PubAck()
_NO_RESPONDERS_ACK = PubAck(ApiError(NO_RESPONDERS, 0, "no responders for this subject"))
_INVALID_ACK = PubAck(ApiError(0, 0, "invalid acknowledgment"))


def decode_ack(message: Msg) -> PubAck:
    """Decode an acknowledgment."""
    if not message.data:
        return _NO_RESPONDERS_ACK if message.headers else _EMPTY_ACK
    try:
        return _DECODER.decode(message.data)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested too deep
        return _INVALID_ACK


# --- subjects and keys ---


@lru_cache(maxsize=4096)  # few hosts, namespaces and types; container ids come and go
def encode_token(value: str) -> str:
    """Encode ``value`` as one token: bytes other than ``[A-Za-z0-9_-]`` become ``=HH``, an empty value ``_``.

    A token that would be too long is truncated and ends with ``==`` and a digest of the value.
    """
    plain = value.encode(errors="surrogatepass")
    encoded = _UNSAFE_BYTES.sub(lambda found: b"=%02X" % found[0][0], plain).decode("ascii")
    if len(encoded) <= MAX_TOKEN_LENGTH:
        return encoded or "_"
    room = MAX_TOKEN_LENGTH - _DIGEST_LENGTH - 2
    prefix = encoded[:room]
    cut = prefix.rfind("=", room - 2)  # do not split =HH
    return f"{prefix[:cut] if cut > 0 else prefix}=={sha256(plain).hexdigest()[:_DIGEST_LENGTH]}"


def decode_token(token: str) -> str:
    """Decode a token; of a truncated one, return the beginning and the digest. Bytes that are not text are replaced."""
    if token == "_":  # noqa: S105 (a token of a subject, no secret)
        return ""
    decoded = _ESCAPED_BYTE.sub(lambda found: bytes([int(found[1], 16)]), token.encode())
    try:
        return decoded.decode(errors="surrogatepass")
    except UnicodeDecodeError:  # truncated within a character, or written by another program
        return decoded.decode(errors="replace")


class SubjectBuilder:
    """Builds the subjects of records.

    Args:
        prefix: The first tokens of all subjects, separated by dots.
        template: The remaining tokens; ``{host}``, ``{namespace}``, ``{project}`` and ``{type}`` are replaced with the
            record's values.
    """

    def __init__(self, prefix: str, template: str) -> None:
        self._format = f"{prefix}.{template}".format
        self.pattern = self._format(**dict.fromkeys(_FIELDS, "*"))
        """A subscription pattern that matches all subjects."""

    def build(self, record: Record) -> str:
        """Return the subject of ``record``; control records have ``_`` as namespace and project."""
        return self._format(
            host=encode_token(record.host),
            namespace=encode_token(record.namespace),
            project=encode_token(record.project),
            type=encode_token(record.type),
        )


def overlaps(pattern: str, other: str) -> bool:
    """Return whether any subject matches both patterns."""
    left, right = pattern.split("."), other.split(".")
    for one, another in zip(left, right, strict=False):
        if ">" in (one, another):
            return True
        if "*" not in (one, another) and one != another:
            return False
    return len(left) == len(right)


def is_subset(pattern: str, patterns: Iterable[str]) -> bool:
    """Return whether one of ``patterns`` matches every subject that ``pattern`` matches."""
    return any(_matches_all(each.split("."), pattern.split(".")) for each in patterns)


def _matches_all(wide: list[str], narrow: list[str]) -> bool:
    for one, another in zip(wide, narrow, strict=False):
        if one == ">":
            return True
        if another == ">" or one not in ("*", another):
            return False
    return len(wide) == len(narrow)


def state_key(host: str, engine: str, namespace: str = "", container: str = "") -> str:
    """Return the bucket key of a container's entry; without a container, of its source's entry."""
    source = f"{encode_token(host)}.{encode_token(engine)}"
    return f"{source}.{encode_token(namespace)}.{encode_token(container)}" if container else source
