"""Sending messages one after the other, and gathering JetStream's answers to them.

Only an answer says that a message was stored; that nats-py has taken one, or has written it out, says nothing.
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

WINDOW = 1000  # messages without an answer
WINDOW_BYTES = 8 * 1024 * 1024
NO_RESPONDERS = 503
TOO_LARGE = (10054, 10097)  # a message, or its headers


class Refusal(Struct, frozen=True):
    """Why a message was not stored; ``err_code`` is JetStream's own, 0 where it is not JetStream that says so."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Answer(Struct, frozen=True):
    """What JetStream says to a message: refused, or stored in ``stream``, now or (``duplicate``) before."""

    error: Refusal | None = None
    stream: str = ""
    seq: int = 0
    duplicate: bool = False


class Message(NamedTuple):
    """A message to send; ``answered`` where an answer is asked for."""

    subject: str
    data: bytes
    headers: dict[str, str] | None
    answered: bool = True


_DECODER = msgspec.json.Decoder(Answer)
_BEGUN = Answer()
_NOBODY = Answer(Refusal(NO_RESPONDERS, 0, "nobody takes this subject"))
_STRANGE = Answer(Refusal(0, 0, "the answer is not JetStream's"))


def always(_: Answer) -> bool:
    """Accept whatever the answer is."""
    return True


def unless_refused(answer: Answer) -> bool:
    """Go on as long as nothing is refused."""
    return answer.error is None


class Exchange:
    """Sends messages over a link; for use once, and by one at a time on a link.

    Args:
        link: The connection.
        messages: What to send, in this order.
        goes_on: Told each answer; where it says no, the rest is not sent, and not waited for.
    """

    def __init__(self, link: Link, messages: Sequence[Message], goes_on: Callable[[Answer], bool]) -> None:
        self.answers: dict[int, Answer] = {}
        """By position in ``messages``."""
        self._link = link
        self._messages = messages
        self._goes_on = goes_on
        self._wanted = sum(message.answered for message in messages)
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room = asyncio.Event()
        self._held: dict[int, int] = {}  # bytes of what has no answer yet, by position
        self._held_bytes = 0
        self._progress = 0
        self._first = 0

    async def run(self) -> dict[int, Answer]:
        """Send, and return the answers: all of them, or those up to the first with which it does not go on.

        Raises:
            TransientError: The connection failed, or nothing moved for the link's timeout. It is to be given up.
        """
        self._first = self._link.claim(len(self._messages), self._take)
        sending = asyncio.ensure_future(self._send())
        sending.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else may ask
        try:
            await self._finish(sending)
        finally:
            # nats-py swallows a cancellation while it waits for the network: then the sending finds that it is over.
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
                    f"NATS at {self._link.place.server} has acknowledged nothing for {self._link.timeout:g} s"
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
            number = self._first + position if message.answered else None
            if message.answered:
                self._held[position] = len(message.data)
                self._held_bytes += len(message.data)
            await self._link.send(message.subject, message.data, message.headers, number)
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
        if self._over.done() or position not in self._held:  # late, for an exchange before this one, or a stranger's
            return
        answer = self.answers[position] = read(message)
        self._held_bytes -= self._held.pop(position)
        self._progress += 1
        self._room.set()
        if len(self.answers) == self._wanted or not self._goes_on(answer):
            self._end()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)


def read(message: Msg) -> Answer:
    """Read an answer."""
    if not message.data:
        return _NOBODY if message.headers else _BEGUN
    try:
        return _DECODER.decode(message.data)
    except msgspec.MsgspecError:
        return _STRANGE
