"""Reader of a NATS sink's messages: from its stream or, in core mode, from a subscription.

A stream is read through an ephemeral consumer without acknowledgments, which the server deletes half a minute after
the reader has disconnected. The reader pulls batches, so that the server never sends more than the reader can process.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bridge.consumer.record_reader import Message, StartPosition
from bridge.core.errors import NotFoundError, TransientError
from bridge.core.time import from_seconds
from bridge.task_groups import first_of
from bridge.telemetry.safe_text import one_line
from config.sinks.nats import BUCKET_PREFIX
from sinks.nats.connection import ServerConnector
from sinks.nats.errors import ApiResponseError
from sinks.nats.streams import NOT_FOUND

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from bridge.core.ports import Clock
    from config.sinks.nats import NatsSettings
    from sinks.nats.connection import NatsConnection

MAX_BATCH = 200
REQUEST_EXPIRY_SECONDS = 5.0  # until the server ends a pull request
INACTIVE_THRESHOLD_SECONDS = 30.0
_END_STATUSES = ("404", "408")  # no messages; request expired


class NatsReader:
    """Reads the subjects of ``settings``; after an interruption, it continues after the last returned message."""

    def __init__(
        self,
        settings: NatsSettings,
        clock: Clock,
        *,
        start_position: StartPosition,
        follow: bool,
        bucket: str | None = None,
    ) -> None:
        """Read the stream of ``settings``, or the entries of a key-value ``bucket`` instead."""
        self.follow = follow
        self.total: int | None = None
        self._settings = settings
        self._start_position = start_position
        self._connector = ServerConnector(settings, clock)
        self._subject_filter = f"$KV.{bucket}.>" if bucket else f"{settings.subject_prefix}.>"
        self._bucket = bucket
        self._stream_name = f"{BUCKET_PREFIX}{bucket}" if bucket else ""
        self._last_sequence = 0
        self._resumes = False  # whether the last sequence is that of an earlier reader

    @property
    def position(self) -> dict[str, int]:
        """The sequence of the last message of the stream that was returned."""
        return {"stream": self._last_sequence} if self._last_sequence else {}

    @position.setter
    def position(self, position: dict[str, int]) -> None:
        self._last_sequence = position.get("stream", 0)
        self._resumes = self._last_sequence > 0

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Yield messages in the stream's order.

        Raises:
            TransientError: No server can be reached or accepts our credentials, or no data arrives.
            NotFoundError: No stream has these subjects, or there is no such bucket.
        """
        connection = await self._connector.connect()
        try:
            is_core = self._settings.mode == "core"
            async for batch in self._read_core(connection) if is_core else self._read_stream(connection):
                yield batch
        finally:
            self._connector.remember_servers(connection)
            await connection.close()

    async def _read_stream(self, connection: NatsConnection) -> AsyncGenerator[Sequence[Message], None]:
        """Yield the stream's messages."""
        consumer, remaining = await self._open_consumer(connection)
        self.total = remaining
        requests = _PullRequests(connection, self._next_subject(consumer))
        await requests.subscribe()
        yield ()
        while self.follow or remaining > 0:
            await requests.send(MAX_BATCH if self.follow else min(MAX_BATCH, remaining))
            while requests.remaining:
                batch = await requests.receive()
                if batch:
                    self._last_sequence = batch[-1].number
                    remaining -= len(batch)
                    yield batch
                elif not self.follow:
                    return  # the remaining messages were deleted

    async def _read_core(self, connection: NatsConnection) -> AsyncGenerator[Sequence[Message], None]:
        """Yield messages from a subscription."""
        received: asyncio.Queue[Msg] = asyncio.Queue(MAX_BATCH)
        await connection.subscribe(self._subject_filter, received.put)
        yield ()
        while True:
            messages = await _receive_available(connection, received, None)
            yield [Message(each.data, each.subject, 0) for each in messages]

    async def _open_consumer(self, connection: NatsConnection) -> tuple[str, int]:
        """Create a consumer; return its name and its number of pending messages.

        The position of an earlier reader includes its last message: if that is not there, nor a later one, then the
        stream was created again, and is read from its beginning.
        """
        name, pending = await self._open_consumer_at(connection)
        if self._resumes and not pending:
            self._last_sequence, self._start_position = 0, "beginning"
            name, pending = await self._open_consumer_at(connection)
        self._resumes = False
        return name, pending

    async def _open_consumer_at(self, connection: NatsConnection) -> tuple[str, int]:
        """Create a consumer at the next message."""
        name = f"whalebridge-{secrets.token_hex(8)}"
        if not self._stream_name:
            self._stream_name = self._settings.stream_name
            try:
                return name, await self._create_consumer(connection, name)
            except ApiResponseError as error:
                if error.code != NOT_FOUND:
                    raise
            self._stream_name = await self._find_stream(connection)
        try:
            return name, await self._create_consumer(connection, name)
        except ApiResponseError as error:
            if self._bucket is None or error.code != NOT_FOUND:
                raise
            server = connection.address.server
            raise NotFoundError(f"NATS at {server} has no key-value bucket {self._bucket}") from error

    async def _create_consumer(self, connection: NatsConnection, name: str) -> int:
        config = {
            "name": name,
            "filter_subject": self._subject_filter,
            "ack_policy": "none",
            "inactive_threshold": from_seconds(INACTIVE_THRESHOLD_SECONDS),
            "mem_storage": True,
            "num_replicas": 1,
            **self._delivery_policy(),
        }
        call = f"CONSUMER.CREATE.{self._stream_name}.{name}.{self._subject_filter}"
        purpose = f"create a consumer of stream {self._stream_name}"
        body = {"stream_name": self._stream_name, "config": config}
        response = await connection.api_request(purpose, self._settings.domain, call, body)
        # Set even if no message was read, so that a reconnect continues where this consumer started, not at the new end
        # of the stream.
        self._last_sequence = max(self._last_sequence, int((response.get("delivered") or {}).get("stream_seq", 0)))
        return int(response.get("num_pending", 0))

    def _delivery_policy(self) -> dict[str, Any]:
        if self._last_sequence:
            first = self._last_sequence + (0 if self._resumes else 1)
            return {"deliver_policy": "by_start_sequence", "opt_start_seq": first}
        match self._start_position:
            case "beginning":
                return {"deliver_policy": "all"}
            case "end":
                return {"deliver_policy": "new"}
            case datetime():
                moment = self._start_position.astimezone(UTC).isoformat().replace("+00:00", "Z")
                return {"deliver_policy": "by_start_time", "opt_start_time": moment}

    async def _find_stream(self, connection: NatsConnection) -> str:
        """Return the name of the stream with our subjects, if it has another name than the configured one."""
        purpose = f"find the stream with subject {self._subject_filter}"
        response = await connection.api_request(
            purpose, self._settings.domain, "STREAM.NAMES", {"subject": self._subject_filter}
        )
        for stream in response.get("streams") or ():
            return str(stream)
        raise NotFoundError(
            f"NATS at {connection.address.server} has no stream with subject {self._subject_filter}; "
            "check the subject, or set 'mode: core' for this sink if no stream stores its messages"
        )

    def _next_subject(self, consumer: str) -> str:
        domain = self._settings.domain
        return f"$JS.{f'{domain}.' if domain else ''}API.CONSUMER.MSG.NEXT.{self._stream_name}.{consumer}"


class _PullRequests:
    """Pull requests, one at a time; the server responds with single messages, up to the requested number.

    Args:
        connection: The connection to send requests on.
        subject: The subject of the consumer's pull requests.
    """

    def __init__(self, connection: NatsConnection, subject: str) -> None:
        self._connection = connection
        self._subject = subject
        self._inbox = connection.new_inbox()
        self._received: asyncio.Queue[Msg] = asyncio.Queue()  # has at most the requested number of messages
        self.remaining = 0
        """Number of outstanding messages of the last request."""

    async def subscribe(self) -> None:
        """Subscribe to the responses."""
        await self._connection.subscribe(self._inbox, self._received.put)

    async def send(self, count: int) -> None:
        """Request ``count`` messages; the request expires after ``REQUEST_EXPIRY_SECONDS``."""
        self.remaining = count
        body = {"batch": count, "expires": from_seconds(REQUEST_EXPIRY_SECONDS)}
        await self._connection.publish_with_reply(self._subject, json.dumps(body).encode(), self._inbox)

    async def receive(self) -> list[Message]:
        """Wait for messages, and return those that have arrived.

        Raises:
            TransientError: The connection was lost, or the consumer or its stream was deleted.
        """
        batch: list[Message] = []
        for message in await _receive_available(
            self._connection, self._received, REQUEST_EXPIRY_SECONDS + self._connection.timeout
        ):
            if message.subject != self._inbox:
                batch.append(Message(message.data, message.subject, message.metadata.sequence.stream))
                self.remaining -= 1
                continue
            headers = message.headers or {}
            if headers.get("Status") not in _END_STATUSES:
                reason = one_line(headers.get("Description") or "no responders")
                raise TransientError(
                    f"NATS at {self._connection.address.server}: request to {self._subject} failed: {reason}"
                )
            self.remaining = 0
        return batch


async def _receive_available(connection: NatsConnection, queue: asyncio.Queue[Msg], seconds: float | None) -> list[Msg]:
    """Wait for messages while the connection is open, and return those that have arrived."""
    try:
        async with connection.clock.timeout(seconds):
            ended, result = await first_of(queue.get(), connection.failed)
    except TimeoutError:
        raise TransientError(f"no data from NATS at {connection.address.server} within {seconds:g} s") from None
    if ended == 1:
        raise TransientError(result)
    messages = [result]
    while len(messages) < MAX_BATCH and not queue.empty():
        messages.append(queue.get_nowait())
    return messages
