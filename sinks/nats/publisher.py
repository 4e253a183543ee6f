"""Publishes messages in order, with a bounded number in flight, and records to a stream without duplicates.

Only an acknowledgment shows that a message is stored; that nats-py has accepted or sent the message does not.

If the stream allows it, records are published in atomic batches: the server stores a batch completely and in order, or
not at all. Otherwise records are published individually, many in flight at once, and a record that is sent again
after a failure may be stored after later ones.

JetStream recognizes a record that is sent again by its message id. A batch with a known id is rejected as a whole: then
the publisher probes which records are stored, with messages to which the server can only reply "duplicate" or an error,
and sends the others as a batch. This keeps the order even if an acknowledgment was lost, or if a restart changes the
batches. A probe must be rejected before it is replicated: when the replicas reject a message, its id stays in process,
and nats-server 2.15.2 stops the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from bridge.core.errors import RejectedRecordError, TransientError
from bridge.task_groups import completes_within, first_of, task_group
from bridge.telemetry.safe_text import one_line
from sinks.nats.errors import ApiResponseError
from sinks.nats.messages import (
    BATCH_ID,
    IN_PROCESS,
    MESSAGE_ID,
    TOO_LARGE,
    ApiError,
    OutgoingMessage,
    PubAck,
    PublishRequest,
    build_atomic_batch,
    decode_ack,
)

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from sinks.nats.connection import NatsConnection
    from sinks.nats.streams import Stream
    from sinks.target_memory import TargetMemory

MAX_IN_FLIGHT = 1000  # messages without an acknowledgment
MAX_IN_FLIGHT_BYTES = 8 * 1024 * 1024
MAX_BATCH_MESSAGES = 1000  # the servers' default limit
MAX_BATCH_BYTES = 4 * 1024 * 1024
MAX_HEADER_BYTES = 65_535

_BATCH_TOO_LARGE = 10199
_DUPLICATE_IN_BATCH = 10201
_BATCHES_DISABLED = 10174
_IDS_IN_BATCH_UNSUPPORTED = 10177  # server 2.12.0
_INVALID_ROLLUP = 10111
_log = structlog.get_logger(__name__)


def always_continue(_: PubAck) -> bool:
    """Continue after any acknowledgment."""
    return True


def continue_unless_rejected(ack: PubAck) -> bool:
    """Continue until a message is rejected for another reason than an id in process, which may apply to many."""
    return ack.error is None or ack.error.err_code == IN_PROCESS


class PublishWindow:
    """Publishes messages over a connection. For a single use; only one at a time per connection.

    Args:
        connection: The connection.
        requests: The messages, in this order.
        should_continue: Called with each acknowledgment; if it returns False, the remaining messages are not sent.
    """

    def __init__(
        self, connection: NatsConnection, requests: Sequence[PublishRequest], should_continue: Callable[[PubAck], bool]
    ) -> None:
        self.acks: dict[int, PubAck] = {}
        """By position in ``requests``."""
        self._connection = connection
        self._requests = requests
        self._should_continue = should_continue
        self._expected_acks = sum(message.wants_ack for message in requests)
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._has_room = asyncio.Event()
        self._in_flight: dict[int, int] = {}  # bytes by position
        self._in_flight_bytes = 0
        self._progress = 0
        self._first_reply_id = 0

    async def run(self) -> dict[int, PubAck]:
        """Publish, and return the acknowledgments: all, or those up to the first that stops the window.

        Raises:
            TransientError: The connection failed, or made no progress within its timeout. It must be closed.
        """
        self._first_reply_id = self._connection.allocate_reply_ids(len(self._requests), self._receive_ack)
        async with task_group() as tasks:
            sending = tasks.create_task(self._send())
            try:
                await self._wait_finished()
            finally:
                # nats-py swallows a cancellation while it waits for the network; then _send() checks whether to end.
                self._set_finished()
                sending.cancel()
        return self.acks

    async def _wait_finished(self) -> None:
        connection, seconds = self._connection, self._connection.timeout
        while not self._finished.done():
            before = self._progress
            await completes_within(seconds, connection.clock, first_of(self._finished, connection.failed))
            if self._finished.done():
                return
            connection.raise_if_failed()
            if self._progress == before:
                raise TransientError(f"NATS at {connection.address.server}: no acknowledgment within {seconds:g} s")

    async def _send(self) -> None:
        replace_ids = self._connection.message_ids.replace if self._connection.message_ids else None
        for position, message in enumerate(self._requests):
            await self._wait_for_room(len(message.data))
            if self._finished.done():
                return
            reply_id = self._first_reply_id + position if message.wants_ack else None
            if message.wants_ack:
                self._in_flight[position] = len(message.data)
                self._in_flight_bytes += len(message.data)
            headers = replace_ids(message.headers) if replace_ids and message.headers else message.headers
            try:
                await self._connection.publish(message.subject, message.data, headers, reply_id)
            except Exception as error:
                if self._finished.done():
                    return
                self._connection.raise_if_failed()
                text = f"sending to NATS at {self._connection.address.server} failed: {one_line(error)}"
                raise TransientError(text) from error
            self._progress += 1
        if not self._expected_acks:
            self._set_finished()

    async def _wait_for_room(self, size: int) -> None:
        while self._in_flight and (
            len(self._in_flight) >= MAX_IN_FLIGHT or self._in_flight_bytes + size > MAX_IN_FLIGHT_BYTES
        ):
            if self._finished.done():
                return
            self._has_room.clear()
            await self._has_room.wait()

    def _receive_ack(self, reply_id: int, message: Msg) -> None:
        position = reply_id - self._first_reply_id
        if self._finished.done() or position not in self._in_flight:  # late, or for an earlier window
            return
        ack = self.acks[position] = decode_ack(message)
        self._in_flight_bytes -= self._in_flight.pop(position)
        self._progress += 1
        self._has_room.set()
        if ack.error is not None and ack.error.err_code == IN_PROCESS:
            headers = self._requests[position].headers
            if headers and BATCH_ID not in headers:  # of a batch, any message may be the one
                self._connection.message_ids.reject(headers, self._connection.clock.now().monotonic)
        if len(self.acks) == self._expected_acks or not self._should_continue(ack):
            self._set_finished()

    def _set_finished(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)


@dataclass
class PublishProgress:
    """State that outlasts a connection.

    ``stored``: ids of stored records that may be published again. ``max_batch``: maximum number of messages in a batch.
    ``batch_size``: current number of messages in a batch, reduced when connections fail before a batch is stored.
    ``atomic``: whether the server supports message ids in batches.
    """

    stored: set[str] = field(default_factory=set)
    max_batch: int = MAX_BATCH_MESSAGES
    batch_size: int = MAX_BATCH_MESSAGES
    atomic: bool = True

    def add_stored(self, outgoing: Iterable[OutgoingMessage]) -> None:
        """Remember that these messages are stored, and double the batch size, up to the maximum."""
        self.stored.update(item.id for item in outgoing)
        self.batch_size = min(self.max_batch, 2 * self.batch_size)

    def halve_batch_size(self) -> None:
        """Reduce the batch size after a connection failed during a batch."""
        self.batch_size = max(1, self.batch_size // 2)

    def lower_max_batch(self) -> None:
        """Reduce the maximum batch size after the server has rejected a batch as too large."""
        self.max_batch = self.batch_size = max(1, self.batch_size // 2)


class JetStreamPublisher:
    """Publishes to one stream over one connection; ``progress`` and ``memory`` outlast the connection."""

    def __init__(
        self, connection: NatsConnection, stream: Stream, progress: PublishProgress, memory: TargetMemory
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._progress = progress
        self._memory = memory
        self._atomic = stream.atomic and progress.atomic

    async def publish(self, outgoing: Sequence[OutgoingMessage]) -> None:
        """Publish messages in order; return when the stream has all of them.

        Raises:
            RejectedRecordError: Some messages are too large or otherwise rejected for good.
            ApiResponseError: The server responded with an error.
            TransientError: The connection failed and must be closed.
        """
        self._reject_oversized(outgoing)
        remaining = self._deduplicate(outgoing)
        try:
            while remaining:
                size = self._next_batch_size(remaining)
                chunk, remaining = remaining[:size], remaining[size:]
                if self._atomic and len(chunk) > 1:
                    remaining = await self._publish_atomic(chunk) + remaining
                else:
                    await self._publish_individually(chunk)
        except (ApiResponseError, RejectedRecordError):
            raise
        except BaseException:  # a timeout of the pump cancels this
            self._progress.halve_batch_size()
            raise

    def _reject_oversized(self, outgoing: Sequence[OutgoingMessage]) -> None:
        """Reject messages above the server's limits; the server closes the connection on such a message."""
        limits = (self._connection.max_payload, self._stream.max_message_bytes)
        limit = min(each for each in limits if each >= 0)
        sizes = [(item, item.header_size) for item in outgoing]
        too_large = frozenset(
            item.position for item, size in sizes if len(item.data) + size > limit or size > MAX_HEADER_BYTES
        )
        if too_large:
            raise RejectedRecordError(
                f"record is too large for stream {self._stream.name} at NATS {self._connection.address.server}: "
                f"the limit is {limit} bytes with headers (max_payload of the server, max_msg_size of the stream)",
                too_large,
            )

    def _deduplicate(self, outgoing: Sequence[OutgoingMessage]) -> list[OutgoingMessage]:
        """Return the messages that are not stored yet, each once."""
        seen = set(self._progress.stored)
        remaining = []
        for item in outgoing:
            if item.id not in seen:
                remaining.append(item)
            seen.add(item.id)
        return remaining

    def _next_batch_size(self, outgoing: Sequence[OutgoingMessage]) -> int:
        """Return the number of messages to publish together."""
        if not self._atomic:
            return len(outgoing)
        limit = self._progress.batch_size
        size = 0
        for count, item in enumerate(outgoing[:limit]):
            size += len(item.data)
            if count and size > MAX_BATCH_BYTES * limit // MAX_BATCH_MESSAGES:
                return count
        return min(len(outgoing), limit)

    async def _publish_atomic(self, outgoing: Sequence[OutgoingMessage]) -> list[OutgoingMessage]:
        """Publish an atomic batch; return those to publish again, after the method has been adapted to the server."""
        last = len(outgoing) - 1
        acks = await PublishWindow(self._connection, build_atomic_batch(outgoing), continue_unless_rejected).run()
        error = next((ack.error for ack in acks.values() if ack.error), None)
        if error is None:
            self._check_stream(acks[last])
            self._memory.acknowledge(acks[last].seq)
            self._progress.add_stored(outgoing)
            return []
        if error.err_code in (_DUPLICATE_IN_BATCH, IN_PROCESS):
            return await self._not_stored(outgoing)
        if error.err_code == _BATCH_TOO_LARGE and self._progress.batch_size > 1:
            self._progress.lower_max_batch()
        elif error.err_code == _BATCHES_DISABLED:  # disabled since the stream was checked
            self._atomic = False
        elif error.err_code == _IDS_IN_BATCH_UNSUPPORTED:
            self._atomic = self._progress.atomic = False
            _log.warning(
                "atomic_batches_unsupported",
                server=self._connection.address.server,
                detail="the server is older than 2.12.1",
            )
        else:
            raise self._rejection(error, outgoing[0])
        return list(outgoing)

    async def _not_stored(self, outgoing: Sequence[OutgoingMessage]) -> list[OutgoingMessage]:
        """Probe which messages the stream has; return the others."""
        messages = [
            # The leader looks for the id first, then rejects the rollup, which is invalid.
            PublishRequest(item.subject, b"", {MESSAGE_ID: item.id, "Nats-Rollup": "none"})
            for item in outgoing
        ]
        acks = await PublishWindow(self._connection, messages, always_continue).run()
        stored = {item.id for index, item in enumerate(outgoing) if self._is_stored(acks[index], item)}
        if not stored:
            # The cluster is still replicating a batch with the same records, or has dropped it.
            raise ApiResponseError(f"NATS at {self._connection.address.server} is still processing the same records")
        self._progress.stored |= stored
        return [item for item in outgoing if item.id not in stored]

    def _is_stored(self, ack: PubAck, message: OutgoingMessage) -> bool:
        if ack.error is None:
            return ack.duplicate
        if ack.error.err_code in (_INVALID_ROLLUP, IN_PROCESS):
            return False
        raise self._rejection(ack.error, message)

    async def _publish_individually(self, outgoing: Sequence[OutgoingMessage]) -> None:
        window = PublishWindow(
            self._connection,
            [PublishRequest(item.subject, item.data, item.headers) for item in outgoing],
            continue_unless_rejected,
        )
        try:
            await window.run()
        finally:  # stored records are not sent again
            acks = window.acks.items()
            self._progress.add_stored(outgoing[index] for index, ack in acks if self._is_acknowledged(ack))
            new = [ack.seq for _, ack in acks if self._is_acknowledged(ack) and not ack.duplicate]
            if new:
                self._memory.acknowledge(max(new))
        for index, ack in sorted(acks):
            if ack.error is not None:
                raise self._rejection(ack.error, outgoing[index])
            self._check_stream(ack)

    def _is_acknowledged(self, ack: PubAck) -> bool:
        return ack.error is None and ack.stream == self._stream.name

    def _check_stream(self, ack: PubAck) -> None:
        if ack.stream != self._stream.name:
            raise ApiResponseError(
                f"stream {one_line(ack.stream)} at NATS {self._connection.address.server} stored records for stream "
                f"{self._stream.name}; set stream.name to the former, or use another subject_prefix"
            )

    def _rejection(self, error: ApiError, message: OutgoingMessage) -> ApiResponseError | RejectedRecordError:
        where = f"stream {self._stream.name} at NATS {self._connection.address.server}"
        description = one_line(error.description)
        if error.err_code in TOO_LARGE and not self._atomic:
            return RejectedRecordError(f"{where} rejected the record: {description}", frozenset({message.position}))
        if not error.err_code:
            return ApiResponseError(
                f"{where} does not acknowledge {message.subject}: {description}; "
                "check that the stream exists, has the subject and a leader"
            )
        return ApiResponseError(f"{where} did not store the records: {description} ({error.err_code})", error.err_code)


class CorePublisher:
    """Publishes to core NATS over one connection. Nothing is acknowledged or stored."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection

    async def publish(self, outgoing: Sequence[OutgoingMessage]) -> None:
        """Publish messages in order; return when the server has read them.

        Raises:
            RejectedRecordError: Some messages are too large.
            TransientError: The connection failed and must be closed.
        """
        limit = self._connection.max_payload
        too_large = frozenset(item.position for item in outgoing if len(item.data) + item.header_size > limit)
        if too_large:
            where = f"NATS at {self._connection.address.server}"
            raise RejectedRecordError(
                f"record is too large for {where}: the limit is {limit} bytes with headers (max_payload)", too_large
            )
        messages = [PublishRequest(item.subject, item.data, item.headers or None, wants_ack=False) for item in outgoing]
        await PublishWindow(self._connection, messages, always_continue).run()
        await self._connection.flush()
