"""Publishes messages in order with a bounded number in flight, and collects JetStream's acknowledgements.

Only an acknowledgement shows that a message is stored; that nats-py has accepted or sent the message does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Struct

from bridge.core.errors import TransientError
from bridge.telemetry.text import one_line

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from sinks.nats.connection import Link

WINDOW = 1000  # messages without an acknowledgement
WINDOW_BYTES = 8 * 1024 * 1024
NO_RESPONDERS = 503
TOO_LARGE = (10054, 10097)  # error codes: message too large, headers too large


class Refusal(Struct, frozen=True):
    """Why a message was not stored; ``err_code`` is JetStream's, 0 for errors that do not come from JetStream."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Answer(Struct, frozen=True):
    """JetStream's reply to a message: an error, or stored in ``stream``, now or (``duplicate``) earlier."""

    error: Refusal | None = None
    stream: str = ""
    seq: int = 0
    duplicate: bool = False


class Message(NamedTuple):
    """A message to publish; ``wants_ack`` requests an acknowledgement."""

    subject: str
    data: bytes
    headers: dict[str, str] | None
    answered: bool = True


_DECODER = msgspec.json.Decoder(Answer)
_BEGUN = Answer()
_NOBODY = Answer(Refusal(NO_RESPONDERS, 0, "no responders for this subject"))
_STRANGE = Answer(Refusal(0, 0, "invalid acknowledgement"))


def always(_: Answer) -> bool:
    """Continue after any acknowledgement."""
    return True


def unless_refused(answer: Answer) -> bool:
    """Continue until a message is rejected."""
    return answer.error is None


class Exchange:
    """Publishes messages over a connection. For a single use; only one at a time per connection.

    Args:
        connection: The connection.
        requests: The messages, in this order.
        should_continue: Called with each acknowledgement; if it returns False, the remaining messages are not sent.
    """

    def __init__(self, link: Link, messages: Sequence[Message], goes_on: Callable[[Answer], bool]) -> None:
        self.answers: dict[int, Answer] = {}
        """By position in ``requests``."""
        self._link = link
        self._messages = messages
        self._goes_on = goes_on
        self._wanted = sum(message.answered for message in messages)
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room = asyncio.Event()
        self._held: dict[int, int] = {}  # bytes by position
        self._held_bytes = 0
        self._progress = 0
        self._first = 0

    async def run(self) -> dict[int, Answer]:
        """Publish, and return the acknowledgements: all, or those up to the first that stops the window.

        Raises:
            TransientError: The connection failed, or made no progress within its timeout. It must be closed.
        """
        self._first = self._link.claim(len(self._messages), self._take)
        sending = asyncio.ensure_future(self._send())
        sending.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieves the exception
        try:
            await self._finish(sending)
        finally:
            # nats-py swallows a cancellation while it waits for the network; then _send() checks whether to end.
            self._end()
            sending.cancel()
        return self.answers

    async def _finish(self, sending: asyncio.Future[None]) -> None:
        while not self._over.done():
            before = self._progress
            waiting: set[asyncio.Future[Any]] = {self._over, self._link.failed}
            if not sending.done():
                waiting.add(sending)
            await asyncio.wait(waiting, timeout=self._link.timeout, return_when=asyncio.FIRST_COMPLETED)
            self._check(sending)
            if self._progress == before and not self._over.done():
                raise TransientError(
                    f"NATS at {self._link.place.server}: no acknowledgement within {self._link.timeout:g} s"
                )

    def _check(self, sending: asyncio.Future[None]) -> None:
        if self._over.done():
            return
        if sending.done() and (error := sending.exception()):
            self._link.check()
            text = f"sending to NATS at {self._link.place.server} failed: {one_line(error)}"
            raise TransientError(text) from error
        self._link.check()

    async def _send(self) -> None:
        for position, message in enumerate(self._messages):
            await self._wait_for_room(len(message.data))
            if self._over.done():
                return
            reply_id = self._first + position if message.answered else None
            if message.answered:
                self._held[position] = len(message.data)
                self._held_bytes += len(message.data)
            await self._link.send(message.subject, message.data, message.headers, reply_id)
            self._progress += 1
        if not self._wanted:
            self._end()

    async def _wait_for_room(self, size: int) -> None:
        while self._held and (len(self._held) >= WINDOW or self._held_bytes + size > WINDOW_BYTES):
            if self._over.done():
                return
            self._room.clear()
            await self._room.wait()

    def _take(self, number: int, message: Msg) -> None:
        position = number - self._first
        if self._over.done() or position not in self._held:  # late, or for an earlier window
            return
        ack = self.answers[position] = read(message)
        self._held_bytes -= self._held.pop(position)
        self._progress += 1
        self._room.set()
        if len(self.answers) == self._wanted or not self._goes_on(ack):
            self._end()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)


def read(message: Msg) -> Answer:
    """Decode an acknowledgement."""
    if not message.data:
        return _NOBODY if message.headers else _BEGUN
    try:
        return _DECODER.decode(message.data)
    except msgspec.MsgspecError:
        return _STRANGE
