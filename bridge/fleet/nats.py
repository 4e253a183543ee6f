"""Reader of a NATS sink's messages: from its stream or, in core mode, from a subscription.

A stream is read through an ephemeral consumer without acknowledgements, which the server deletes half a minute after
the reader has disconnected. The reader pulls batches, so that the server never sends more than the reader can process.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bridge.core.errors import NotFoundError, TransientError
from bridge.core.time import from_seconds
from bridge.fleet.messages import Begin, Message
from bridge.telemetry.text import one_line
from sinks.nats.connection import Dialer
from sinks.nats.failures import AnsweredError
from sinks.nats.streams import NOT_FOUND

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from config.sinks.nats import NatsSettings
    from sinks.nats.connection import Link

BATCH = 200
WAIT_SECONDS = 5.0  # until the server ends a pull request
FORGET_SECONDS = 30.0
_OVER = ("404", "408")  # no messages; request expired


class NatsReader:
    """Reads the subjects of ``settings``; after an interruption, it continues after the last returned message."""

    def __init__(self, settings: NatsSettings, *, begin: Begin, follow: bool) -> None:
        self.follow = follow
        self._settings = settings
        self._begin = begin
        self._dialer = Dialer(settings)
        self._pattern = f"{settings.subject_prefix}.>"
        self._stream = ""
        self._last = 0

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Yield messages in the stream's order.

        Raises:
            TransientError: No server can be reached or accepts our credentials, or no data arrives.
            NotFoundError: No stream has these subjects.
        """
        async with self._connected() as link:
            is_core = self._settings.mode == "core"
            async for batch in self._heard(link) if is_core else self._stored(link):
                yield batch

    async def _stored(self, link: Link) -> AsyncGenerator[Sequence[Message], None]:
        """Yield the stream's messages."""
        consumer, remaining = await self._consumer(link)
        requests = _Requests(link, self._next_of(consumer))
        await requests.listen()
        yield ()
        while self.follow or remaining > 0:
            await requests.send(BATCH if self.follow else min(BATCH, remaining))
            while requests.left:
                batch = await requests.more()
                if batch:
                    self._last = batch[-1].number
                    remaining -= len(batch)
                    yield batch
                elif not self.follow:
                    return  # the remaining messages were deleted

    async def _heard(self, link: Link) -> AsyncGenerator[Sequence[Message], None]:
        """Yield messages from a subscription."""
        received: asyncio.Queue[Msg] = asyncio.Queue(BATCH)
        await link.subscribe(self._pattern, received.put)
        yield ()
        while True:
            batch = [Message(each.data, each.subject, 0) for each in await _taken(link, received, None)]
            yield batch

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Link]:
        link = await self._dialer.connect()
        try:
            yield link
        finally:
            self._dialer.learn(link)
            await link.close()

    async def _consumer(self, link: Link) -> tuple[str, int]:
        """Create a consumer; return its name and its number of pending messages."""
        name = f"whalebridge-{secrets.token_hex(8)}"
        if not self._stream:
            self._stream = self._settings.stream_name
            try:
                return name, await self._create(link, name)
            except AnsweredError as error:
                if error.code != NOT_FOUND:
                    raise
            self._stream = await self._find(link)
        return name, await self._create(link, name)

    async def _create(self, link: Link, name: str) -> int:
        config = {
            "name": name,
            "filter_subject": self._pattern,
            "ack_policy": "none",
            "inactive_threshold": from_seconds(FORGET_SECONDS),
            "mem_storage": True,
            "num_replicas": 1,
            **self._where(),
        }
        call = f"CONSUMER.CREATE.{self._stream}.{name}.{self._pattern}"
        purpose = f"create a consumer of stream {self._stream}"
        body = {"stream_name": self._stream, "config": config}
        response = await link.request(purpose, self._settings.domain, call, body)
        # Even without messages, so that the next connection starts where this one did.
        self._last = max(self._last, int((response.get("delivered") or {}).get("stream_seq", 0)))
        return int(response.get("num_pending", 0))

    def _where(self) -> dict[str, Any]:
        if self._last:
            return {"deliver_policy": "by_start_sequence", "opt_start_seq": self._last + 1}
        match self._begin:
            case "beginning":
                return {"deliver_policy": "all"}
            case "end":
                return {"deliver_policy": "new"}
            case datetime():
                moment = self._begin.astimezone(UTC).isoformat().replace("+00:00", "Z")
                return {"deliver_policy": "by_start_time", "opt_start_time": moment}

    async def _find(self, link: Link) -> str:
        """Return the name of the stream with our subjects, if it has another name than the configured one."""
        purpose = f"find the stream with subject {self._pattern}"
        response = await link.request(purpose, self._settings.domain, "STREAM.NAMES", {"subject": self._pattern})
        for stream in response.get("streams") or ():
            return str(stream)
        raise NotFoundError(
            f"NATS at {link.place.server} has no stream with subject {self._pattern}; check the subject, "
            "or set 'mode: core' for this sink if no stream stores its messages"
        )

    def _next_of(self, consumer: str) -> str:
        domain = self._settings.domain
        return f"$JS.{f'{domain}.' if domain else ''}API.CONSUMER.MSG.NEXT.{self._stream}.{consumer}"


class _Requests:
    """Pull requests, one at a time; the server responds with single messages, up to the requested number.

    Args:
        connection: The connection to send requests on.
        subject: The subject of the consumer's pull requests.
    """

    def __init__(self, link: Link, subject: str) -> None:
        self._link = link
        self._subject = subject
        self._inbox = link.new_inbox()
        self._came: asyncio.Queue[Msg] = asyncio.Queue()  # has at most the requested number of messages
        self.left = 0
        """How many messages of the last request are outstanding."""

    async def listen(self) -> None:
        """Subscribe to the responses."""
        await self._link.subscribe(self._inbox, self._came.put)

    async def send(self, count: int) -> None:
        """Request ``count`` messages; the request expires after ``REQUEST_EXPIRY_SECONDS``."""
        self.left = count
        body = {"batch": count, "expires": from_seconds(WAIT_SECONDS)}
        await self._link.call(self._subject, json.dumps(body).encode(), self._inbox)

    async def more(self) -> list[Message]:
        """Wait for messages, and return those that have arrived.

        Raises:
            TransientError: The connection was lost, or the consumer or its stream was deleted.
        """
        batch: list[Message] = []
        for message in await _taken(self._link, self._came, WAIT_SECONDS + self._link.timeout):
            if message.subject != self._inbox:
                batch.append(Message(message.data, message.subject, message.metadata.sequence.stream))
                self.left -= 1
                continue
            headers = message.headers or {}
            if headers.get("Status") not in _OVER:
                reason = one_line(headers.get("Description") or "no responders")
                raise TransientError(f"NATS at {self._link.place.server}: request to {self._subject} failed: {reason}")
            self.left = 0
        return batch


async def _taken(link: Link, came: asyncio.Queue[Msg], seconds: float | None) -> list[Msg]:
    """Wait for messages while the connection is open, and return those that have arrived."""
    getting = asyncio.ensure_future(came.get())
    try:
        either: set[asyncio.Future[Any]] = {getting, link.failed}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not getting.done():
            link.check()
            raise TransientError(f"no data from NATS at {link.place.server} within {seconds:g} s")
        messages = [getting.result()]
    finally:
        getting.cancel()
    while len(messages) < BATCH and not came.empty():
        messages.append(came.get_nowait())
    return messages
