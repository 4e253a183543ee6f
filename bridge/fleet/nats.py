"""Reading what a NATS sink publishes: from its stream, or, in core mode, as it passes by.

A stream is read through a consumer that the server forgets half a minute after we have gone. It acknowledges nothing,
and is asked for batches, so that the server never sends more than we take.
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
from bridge.fleet.messages import Begin, Message
from sinks.nats.dial import Dialer
from sinks.nats.failures import AnsweredError, one_line
from sinks.nats.streams import NOT_FOUND

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from config.sinks.nats import NatsSettings
    from sinks.nats.link import Link

BATCH = 200
WAIT_SECONDS = 5.0  # for which the server keeps an unanswered request for messages
FORGET_SECONDS = 30.0
_NANOSECONDS = 1_000_000_000
_OVER = ("404", "408")  # no messages; the time of a request is over


class NatsReader:
    """Reads the subjects of ``settings``; where it was interrupted, it goes on behind what it has handed over."""

    def __init__(self, settings: NatsSettings, *, begin: Begin, follow: bool) -> None:
        self.follow = follow
        self._settings = settings
        self._begin = begin
        self._dialer = Dialer(settings)
        self._pattern = f"{settings.subject_prefix}.>"
        self._stream = ""
        self._last = 0

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Read messages in the stream's order.

        Raises:
            TransientError: No server can be reached or lets us in, or nothing moves.
            NotFoundError: No stream holds these subjects.
        """
        async with self._connected() as link:
            passing_by = self._settings.mode == "core"
            async for batch in self._heard(link) if passing_by else self._stored(link):
                yield batch

    async def _stored(self, link: Link) -> AsyncGenerator[Sequence[Message], None]:
        """Read the stream."""
        consumer, left = await self._consumer(link)
        requests = _Requests(link, self._next_of(consumer))
        await requests.listen()
        yield ()
        while self.follow or left > 0:
            await requests.send(BATCH if self.follow else min(BATCH, left))
            while requests.left:
                batch = await requests.more()
                if batch:
                    self._last = batch[-1].number
                    left -= len(batch)
                    yield batch
                elif not self.follow:
                    return  # what was there has been removed meanwhile

    async def _heard(self, link: Link) -> AsyncGenerator[Sequence[Message], None]:
        """Listen to what passes by."""
        came: asyncio.Queue[Msg] = asyncio.Queue(BATCH)
        await link.subscribe(self._pattern, came.put)
        yield ()
        while True:
            batch = [Message(each.data, each.subject, 0) for each in await _taken(link, came, None)]
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
        """Make a consumer; return its name, and how many messages there are for it."""
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
            "inactive_threshold": int(FORGET_SECONDS * _NANOSECONDS),
            "mem_storage": True,
            "num_replicas": 1,
            **self._where(),
        }
        call = f"CONSUMER.CREATE.{self._stream}.{name}.{self._pattern}"
        doing = f"let us read stream {self._stream}"
        body = {"stream_name": self._stream, "config": config}
        answer = await link.request(doing, self._settings.domain, call, body)
        # Also where nothing comes before the next connection, which is to begin where this one does.
        self._last = max(self._last, int((answer.get("delivered") or {}).get("stream_seq", 0)))
        return int(answer.get("num_pending", 0))

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
        """Find a stream that somebody has given another name."""
        doing = f"tell which stream has {self._pattern}"
        answer = await link.request(doing, self._settings.domain, "STREAM.NAMES", {"subject": self._pattern})
        for stream in answer.get("streams") or ():
            return str(stream)
        raise NotFoundError(
            f"NATS at {link.place.server} has no stream for {self._pattern}: is that what whalebridge publishes to? "
            "(Where it is kept by nobody, set mode: core for this sink in the configuration.)"
        )

    def _next_of(self, consumer: str) -> str:
        domain = self._settings.domain
        return f"$JS.{f'{domain}.' if domain else ''}API.CONSUMER.MSG.NEXT.{self._stream}.{consumer}"


class _Requests:
    """Requests for messages, one at a time: messages come one by one, until there are as many as were asked for.

    Args:
        link: Where to send them.
        subject: The subject of the consumer's requests.
    """

    def __init__(self, link: Link, subject: str) -> None:
        self._link = link
        self._subject = subject
        self._inbox = link.new_inbox()
        self._came: asyncio.Queue[Msg] = asyncio.Queue()  # there are no more of them than were asked for
        self.left = 0
        """How many messages may come of the last one."""

    async def listen(self) -> None:
        """Begin to listen to answers."""
        await self._link.subscribe(self._inbox, self._came.put)

    async def send(self, count: int) -> None:
        """Ask for that many messages; the server answers for as long as it was told to wait."""
        self.left = count
        body = {"batch": count, "expires": int(WAIT_SECONDS * _NANOSECONDS)}
        await self._link.call(self._subject, json.dumps(body).encode(), self._inbox)

    async def more(self) -> list[Message]:
        """Wait for messages; return those that have come.

        Raises:
            TransientError: The connection, the consumer or its stream is gone.
        """
        batch: list[Message] = []
        for message in await _taken(self._link, self._came, WAIT_SECONDS + self._link.timeout):
            if message.subject != self._inbox:
                batch.append(Message(message.data, message.subject, message.metadata.sequence.stream))
                self.left -= 1
                continue
            headers = message.headers or {}
            if headers.get("Status") not in _OVER:
                said = one_line(headers.get("Description") or "nobody answers")
                raise TransientError(f"NATS at {self._link.place.server} sends nothing from {self._subject}: {said}")
            self.left = 0
        return batch


async def _taken(link: Link, came: asyncio.Queue[Msg], seconds: float | None) -> list[Msg]:
    """Wait for messages for as long as the connection lives; return those that are there."""
    getting = asyncio.ensure_future(came.get())
    try:
        either: set[asyncio.Future[Any]] = {getting, link.failed}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not getting.done():
            link.check()
            raise TransientError(f"NATS at {link.place.server} has sent nothing for {seconds:g} s")
        found = [getting.result()]
    finally:
        getting.cancel()
    while len(found) < BATCH and not came.empty():
        found.append(came.get_nowait())
    return found
