"""Publishes records to a stream, in order and without duplicates.

If the stream allows it, records are published in atomic batches: the server stores a batch completely and in order, or
not at all. Otherwise records are published individually, many in flight at once, and a record that is sent again
after a failure may be stored after later ones.

JetStream recognizes a record that is sent again by its message id. A batch with a known id is rejected as a whole: then
the publisher probes which records are stored, with messages to which the server can only reply "duplicate" or an error,
and sends the others as a batch. This keeps the order even if an acknowledgement was lost, or if a restart changes the
batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from bridge.core.errors import RefusedRecordError
from bridge.telemetry.text import one_line
from sinks.nats.exchange import TOO_LARGE, Answer, Exchange, Message, Refusal, always, unless_refused
from sinks.nats.failures import AnsweredError
from sinks.nats.messages import MESSAGE_ID, Item

if TYPE_CHECKING:
    from sinks.nats.connection import Link
    from sinks.nats.streams import Stream

BATCH = 1000  # the servers' default limit
BATCH_BYTES = 4 * 1024 * 1024
ANSWER_BYTES = 128 * 1024
HEADER_BYTES = 65_535

_BATCH_TOO_LARGE = 10199
_DUPLICATE_IN_BATCH = 10201
_NO_BATCHES = 10174
_NO_IDS_IN_BATCHES = 10177  # server 2.12.0
_WRONG_LAST_ID = 10070
_log = structlog.get_logger(__name__)


@dataclass
class Progress:
    """State that outlasts a connection.

    ``stored``: ids of stored records that may be published again. ``max_batch``: maximum number of messages in a batch.
    ``batch_size``: current number of messages in a batch, reduced when connections fail before a batch is stored.
    ``atomic``: whether the server supports message ids in batches.
    """

    stored: set[str] = field(default_factory=set)
    most: int = BATCH
    batch: int = BATCH
    atomic: bool = True

    def advance(self, items: Iterable[Item]) -> None:
        """Note that these messages are stored."""
        self.stored.update(item.id for item in items)
        self.batch = min(self.most, 2 * self.batch)

    def shrink(self) -> None:
        """Reduce the batch size after a connection failed during a batch."""
        self.batch = max(1, self.batch // 2)

    def limit(self) -> None:
        """Reduce the maximum batch size after the server has rejected a batch as too large."""
        self.most = self.batch = max(1, self.batch // 2)


class Writer:
    """Publishes to one stream over one connection; ``progress`` outlasts the connection."""

    def __init__(self, link: Link, stream: Stream, progress: Progress) -> None:
        self._link = link
        self._stream = stream
        self._progress = progress
        self._atomic = stream.atomic and progress.atomic

    async def store(self, items: Sequence[Item]) -> None:
        """Publish messages in order; return when the stream has all of them.

        Raises:
            RejectedRecordError: Some messages are too large or otherwise rejected for good.
            ApiResponseError: The server responded with an error.
            TransientError: The connection failed and must be closed.
        """
        self._check(items)
        remaining = self._unknown(items)
        try:
            while remaining:
                size = self._chunk(remaining)
                chunk, remaining = remaining[:size], remaining[size:]
                remaining = await self._store(chunk) + remaining
        except (AnsweredError, RefusedRecordError):
            raise
        except BaseException:  # a timeout of the pump cancels this
            self._progress.shrink()
            raise

    def _check(self, items: Sequence[Item]) -> None:
        """Reject messages above the server's limits; the server closes the connection on such a message."""
        limits = (self._link.max_payload, self._stream.max_message)
        limit = min(each for each in limits if each >= 0)
        sizes = [(item, item.header_size) for item in items]
        too_large = frozenset(
            item.position for item, size in sizes if len(item.data) + size > limit or size > HEADER_BYTES
        )
        if too_large:
            raise RefusedRecordError(
                f"record is too large for stream {self._stream.name} at NATS {self._link.place.server}: the limit is "
                f"{limit} bytes with headers (max_payload of the server, max_msg_size of the stream)",
                too_large,
            )

    def _unknown(self, items: Sequence[Item]) -> list[Item]:
        """Return the messages that are not stored yet, each once."""
        seen = set(self._progress.stored)
        remaining = []
        for item in items:
            if item.id not in seen:
                remaining.append(item)
            seen.add(item.id)
        return remaining

    def _chunk(self, items: Sequence[Item]) -> int:
        """Return the number of messages to publish together."""
        if not self._atomic:
            return len(items)
        limit = self._progress.batch
        size = 0
        for count, item in enumerate(items[:limit]):
            size += len(item.data)
            if count and size > BATCH_BYTES * limit // BATCH:
                return count
        return min(len(items), limit)

    async def _store(self, items: Sequence[Item]) -> list[Item]:
        """Publish messages together; return those to publish again, after the method has been adapted to the server."""
        if self._atomic and len(items) > 1:
            return await self._store_whole(items)
        await self._store_each(items)
        return []

    async def _store_whole(self, items: Sequence[Item]) -> list[Item]:
        """Publish an atomic batch; return the messages to publish again."""
        last = len(items) - 1
        acks = await Exchange(self._link, _batch(items), unless_refused).run()
        error = next((ack.error for ack in acks.values() if ack.error), None)
        if error is None:
            self._check_stream(acks[last])
            self._progress.advance(items)
            return []
        if error.err_code == _DUPLICATE_IN_BATCH:
            return await self._missing(items)
        if error.err_code == _BATCH_TOO_LARGE and self._progress.batch > 1:
            self._progress.limit()
        elif error.err_code == _NO_BATCHES:  # disabled since the stream was checked
            self._atomic = False
        elif error.err_code == _NO_IDS_IN_BATCHES:
            self._atomic = self._progress.atomic = False
            _log.warning(
                "atomic_batches_unsupported", server=self._link.place.server, detail="the server is older than 2.12.1"
            )
        else:
            raise self._refused(error, items[0])
        return list(items)

    async def _missing(self, items: Sequence[Item]) -> list[Item]:
        """Probe which messages the stream has; return the others."""
        messages = [
            Message(item.subject, b"", {MESSAGE_ID: item.id, "Nats-Expected-Last-Msg-Id": uuid4().hex})
            for item in items
        ]
        acks = await Exchange(self._link, messages, always).run()
        stored = {item.id for index, item in enumerate(items) if self._has(acks[index], item)}
        if not stored:
            # The cluster is still replicating a batch with the same records.
            raise AnsweredError(f"NATS at {self._link.place.server} is still processing the same records")
        self._progress.stored |= stored
        return [item for item in items if item.id not in stored]

    def _has(self, answer: Answer, item: Item) -> bool:
        if answer.error is None:
            return answer.duplicate
        if answer.error.err_code == _WRONG_LAST_ID:
            return False
        raise self._refused(answer.error, item)

    async def _store_each(self, items: Sequence[Item]) -> None:
        window = Exchange(
            self._link, [Message(item.subject, item.data, item.headers) for item in items], unless_refused
        )
        try:
            await window.run()
        finally:  # stored records are not sent again
            acks = window.answers.items()
            self._progress.advance(items[index] for index, ack in acks if self._has_stored(ack))
        for index, ack in sorted(acks):
            if ack.error is not None:
                raise self._refused(ack.error, items[index])
            self._check_stream(ack)

    def _has_stored(self, answer: Answer) -> bool:
        return answer.error is None and answer.stream == self._stream.name

    def _check_stream(self, answer: Answer) -> None:
        if answer.stream != self._stream.name:
            raise AnsweredError(
                f"stream {one_line(answer.stream)} at NATS {self._link.place.server} stored records for stream "
                f"{self._stream.name}; set stream.name to the former, or use another subject_prefix"
            )

    def _refused(self, refusal: Refusal, item: Item) -> AnsweredError | RefusedRecordError:
        where = f"stream {self._stream.name} at NATS {self._link.place.server}"
        description = one_line(refusal.description)
        if refusal.err_code in TOO_LARGE and not self._atomic:
            return RefusedRecordError(f"{where} rejected the record: {description}", frozenset({item.position}))
        if not refusal.err_code:
            return AnsweredError(
                f"{where} does not acknowledge {item.subject}: {description}; check its existence, subjects and leader"
            )
        return AnsweredError(f"{where} did not store the records: {description} ({refusal.err_code})", refusal.err_code)


def _batch(items: Sequence[Item]) -> list[Message]:
    """Build an atomic batch. Acknowledgements of some messages before the last show progress on a slow network."""
    batch = uuid4().hex
    last = len(items) - 1
    messages = []
    unacknowledged = ANSWER_BYTES  # bytes since the last message with an acknowledgement
    for index, item in enumerate(items):
        headers = {**item.headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(index + 1)}
        if index == last:
            headers["Nats-Batch-Commit"] = "1"
        unacknowledged += len(item.data)
        wants_ack = index == last or unacknowledged >= ANSWER_BYTES
        unacknowledged = 0 if wants_ack else unacknowledged
        messages.append(Message(item.subject, item.data, headers, wants_ack))
    return messages


class CoreWriter:
    """Publishes to core NATS over one connection. Nothing is acknowledged or stored."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def store(self, items: Sequence[Item]) -> None:
        """Publish messages in order; return when the server has read them.

        Raises:
            RejectedRecordError: Some messages are too large.
            TransientError: The connection failed and must be closed.
        """
        limit = self._link.max_payload
        too_large = frozenset(item.position for item in items if len(item.data) + item.header_size > limit)
        if too_large:
            where = f"NATS at {self._link.place.server}"
            raise RefusedRecordError(
                f"record is too large for {where}: the limit is {limit} bytes with headers (max_payload)", too_large
            )
        messages = [Message(item.subject, item.data, item.headers or None, answered=False) for item in items]
        await Exchange(self._link, messages, always).run()
        await self._link.flush()
