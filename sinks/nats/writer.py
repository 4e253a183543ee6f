"""Storing records in a stream, in order and once.

Where the stream allows it, records go in atomic batches: the server stores all of a batch, in order, or nothing. Else
they go one by one, many at a time without an answer, and what is sent again after a failure may be overtaken.

A record that is sent again is known by its message id. In a batch that makes the server refuse the whole: then it is
asked which of them it has, by messages that it can only answer with "duplicate" or refuse, and the others are sent as
a batch. That way the order stays right also where an acknowledgement was lost, or batches are cut differently after a
restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from bridge.core.errors import RefusedRecordError
from sinks.nats.exchange import TOO_LARGE, Answer, Exchange, Message, Refusal, always, unless_refused
from sinks.nats.failures import AnsweredError, one_line
from sinks.nats.messages import MESSAGE_ID, Item

if TYPE_CHECKING:
    from sinks.nats.link import Link
    from sinks.nats.streams import Stream

BATCH = 1000  # messages; what servers take unless told otherwise
BATCH_BYTES = 4 * 1024 * 1024
ANSWER_BYTES = 128 * 1024
HEADER_BYTES = 65_535

_BATCH_TOO_LARGE = 10199
_DUPLICATE_IN_BATCH = 10201
_NO_BATCHES = 10174
_NO_IDS_IN_BATCHES = 10177  # of server 2.12.0
_WRONG_LAST_ID = 10070
_log = structlog.get_logger(__name__)


@dataclass
class Progress:
    """What is known beyond the end of a connection.

    ``stored``: ids of records that the stream has, of those that may be handed over once more. ``most``: how many
    messages of a batch the server takes. ``batch``: how many to send at once, fewer where connections end before.
    ``atomic``: whether the server knows of message ids in batches.
    """

    stored: set[str] = field(default_factory=set)
    most: int = BATCH
    batch: int = BATCH
    atomic: bool = True

    def advance(self, items: Iterable[Item]) -> None:
        """Those are stored."""
        self.stored.update(item.id for item in items)
        self.batch = min(self.most, 2 * self.batch)

    def shrink(self) -> None:
        """The connection ended before the batch did."""
        self.batch = max(1, self.batch // 2)

    def limit(self) -> None:
        """The server takes fewer."""
        self.most = self.batch = max(1, self.batch // 2)


class Writer:
    """Writes to one stream over one link, as long as that lasts; ``progress`` outlives it."""

    def __init__(self, link: Link, stream: Stream, progress: Progress) -> None:
        self._link = link
        self._stream = stream
        self._progress = progress
        self._atomic = stream.atomic and progress.atomic

    async def store(self, items: Sequence[Item]) -> None:
        """Store items in their order; return when the stream has all of them.

        Raises:
            RefusedRecordError: Some are refused for what they are.
            AnsweredError: The server said no.
            TransientError: The connection failed; it is to be given up.
        """
        self._check(items)
        left = self._unknown(items)
        try:
            while left:
                size = self._chunk(left)
                chunk, left = left[:size], left[size:]
                left = await self._store(chunk) + left
        except (AnsweredError, RefusedRecordError):
            raise
        except BaseException:  # the pump's patience ends in a cancellation
            self._progress.shrink()
            raise

    def _check(self, items: Sequence[Item]) -> None:
        """Find what the server would take for too large; one such message would end the connection."""
        limits = (self._link.max_payload, self._stream.max_message)
        limit = min(each for each in limits if each >= 0)
        sizes = [(item, item.header_size) for item in items]
        too_large = frozenset(
            item.position for item, size in sizes if len(item.data) + size > limit or size > HEADER_BYTES
        )
        if too_large:
            raise RefusedRecordError(
                f"too large: stream {self._stream.name} at NATS {self._link.place.server} takes {limit} bytes with "
                "headers (max_payload of the server, max_msg_size of the stream)",
                too_large,
            )

    def _unknown(self, items: Sequence[Item]) -> list[Item]:
        """Leave out what is stored already, and what comes twice."""
        seen = set(self._progress.stored)
        left = []
        for item in items:
            if item.id not in seen:
                left.append(item)
            seen.add(item.id)
        return left

    def _chunk(self, items: Sequence[Item]) -> int:
        """Return how many of ``items`` go together."""
        if not self._atomic:
            return len(items)
        most = self._progress.batch
        size = 0
        for count, item in enumerate(items[:most]):
            size += len(item.data)
            if count and size > BATCH_BYTES * most // BATCH:
                return count
        return min(len(items), most)

    async def _store(self, items: Sequence[Item]) -> list[Item]:
        """Store items that go together; return what of them is still to be stored: the server wants it otherwise."""
        if self._atomic and len(items) > 1:
            return await self._store_whole(items)
        await self._store_each(items)
        return []

    async def _store_whole(self, items: Sequence[Item]) -> list[Item]:
        """Store a batch; return what of it is still to be stored."""
        last = len(items) - 1
        answers = await Exchange(self._link, _batch(items), unless_refused).run()
        refusal = next((answer.error for answer in answers.values() if answer.error), None)
        if refusal is None:
            self._check_stream(answers[last])
            self._progress.advance(items)
            return []
        if refusal.err_code == _DUPLICATE_IN_BATCH:
            return await self._missing(items)
        if refusal.err_code == _BATCH_TOO_LARGE and self._progress.batch > 1:
            self._progress.limit()
        elif refusal.err_code == _NO_BATCHES:  # turned off since we looked
            self._atomic = False
        elif refusal.err_code == _NO_IDS_IN_BATCHES:
            self._atomic = self._progress.atomic = False
            _log.warning(
                "atomic_batches_unsupported", server=self._link.place.server, detail="the server is older than 2.12.1"
            )
        else:
            raise self._refused(refusal, items[0])
        return list(items)

    async def _missing(self, items: Sequence[Item]) -> list[Item]:
        """Ask which of ``items`` the stream has; return the others."""
        messages = [
            Message(item.subject, b"", {MESSAGE_ID: item.id, "Nats-Expected-Last-Msg-Id": uuid4().hex})
            for item in items
        ]
        answers = await Exchange(self._link, messages, always).run()
        stored = {item.id for place, item in enumerate(items) if self._has(answers[place], item)}
        if not stored:
            # Some batch that has them is still on its way through the cluster.
            raise AnsweredError(f"NATS at {self._link.place.server} is still busy with the same records")
        self._progress.stored |= stored
        return [item for item in items if item.id not in stored]

    def _has(self, answer: Answer, item: Item) -> bool:
        if answer.error is None:
            return answer.duplicate
        if answer.error.err_code == _WRONG_LAST_ID:
            return False
        raise self._refused(answer.error, item)

    async def _store_each(self, items: Sequence[Item]) -> None:
        exchange = Exchange(
            self._link, [Message(item.subject, item.data, item.headers) for item in items], unless_refused
        )
        try:
            await exchange.run()
        finally:  # what is stored is not sent again
            answers = exchange.answers.items()
            self._progress.advance(items[place] for place, answer in answers if self._has_stored(answer))
        for place, answer in sorted(answers):
            if answer.error is not None:
                raise self._refused(answer.error, items[place])
            self._check_stream(answer)

    def _has_stored(self, answer: Answer) -> bool:
        return answer.error is None and answer.stream == self._stream.name

    def _check_stream(self, answer: Answer) -> None:
        if answer.stream != self._stream.name:
            raise AnsweredError(
                f"stream {one_line(answer.stream)} at NATS {self._link.place.server} took records that are for "
                f"{self._stream.name}: set stream.name to that one, or take another subject"
            )

    def _refused(self, refusal: Refusal, item: Item) -> AnsweredError | RefusedRecordError:
        where = f"stream {self._stream.name} at NATS {self._link.place.server}"
        said = one_line(refusal.description)
        if refusal.err_code in TOO_LARGE and not self._atomic:
            return RefusedRecordError(f"{where} refuses the record: {said}", frozenset({item.position}))
        if not refusal.err_code:
            return AnsweredError(
                f"{where} does not answer to {item.subject}: {said}; it is gone, not for it, or has no leader now"
            )
        return AnsweredError(f"{where} did not store the records: {said} ({refusal.err_code})", refusal.err_code)


def _batch(items: Sequence[Item]) -> list[Message]:
    """Make an atomic batch. Answers to some messages on the way tell of progress over a slow network."""
    batch = uuid4().hex
    last = len(items) - 1
    messages = []
    quiet = ANSWER_BYTES  # since an answer was asked for
    for place, item in enumerate(items):
        headers = {**item.headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(place + 1)}
        if place == last:
            headers["Nats-Batch-Commit"] = "1"
        quiet += len(item.data)
        answered = place == last or quiet >= ANSWER_BYTES
        quiet = 0 if answered else quiet
        messages.append(Message(item.subject, item.data, headers, answered))
    return messages
