"""Publishes messages in order with a bounded number in flight, and collects JetStream's acknowledgments.

Only an acknowledgment shows that a message is stored; that nats-py has accepted or sent the message does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Struct

from bridge.core.errors import TransientError
from bridge.telemetry.safe_text import one_line

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from sinks.nats.connection import NatsConnection

MAX_IN_FLIGHT = 1000  # messages without an acknowledgment
MAX_IN_FLIGHT_BYTES = 8 * 1024 * 1024
NO_RESPONDERS = 503
TOO_LARGE = (10054, 10097)  # error codes: message too large, headers too large


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


class PublishRequest(NamedTuple):
    """A message to publish; ``wants_ack`` requests an acknowledgment."""

    subject: str
    data: bytes
    headers: dict[str, str] | None
    wants_ack: bool = True


_DECODER = msgspec.json.Decoder(PubAck)
_EMPTY_ACK = PubAck()
_NO_RESPONDERS_ACK = PubAck(ApiError(NO_RESPONDERS, 0, "no responders for this subject"))
_INVALID_ACK = PubAck(ApiError(0, 0, "invalid acknowledgment"))


def always_continue(_: PubAck) -> bool:
    """Continue after any acknowledgment."""
    return True


def continue_unless_rejected(ack: PubAck) -> bool:
    """Continue until a message is rejected."""
    return ack.error is None


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
        sending = asyncio.ensure_future(self._send())
        sending.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieves the exception
        try:
            await self._wait_finished(sending)
        finally:
            # nats-py swallows a cancellation while it waits for the network; then _send() checks whether to end.
            self._set_finished()
            sending.cancel()
        return self.acks

    async def _wait_finished(self, sending: asyncio.Future[None]) -> None:
        while not self._finished.done():
            before = self._progress
            waiting: set[asyncio.Future[Any]] = {self._finished, self._connection.failed}
            if not sending.done():
                waiting.add(sending)
            await asyncio.wait(waiting, timeout=self._connection.timeout, return_when=asyncio.FIRST_COMPLETED)
            self._raise_on_failure(sending)
            if self._progress == before and not self._finished.done():
                raise TransientError(
                    f"NATS at {self._connection.address.server}: "
                    f"no acknowledgment within {self._connection.timeout:g} s"
                )

    def _raise_on_failure(self, sending: asyncio.Future[None]) -> None:
        if self._finished.done():
            return
        if sending.done() and (error := sending.exception()):
            self._connection.raise_if_failed()
            text = f"sending to NATS at {self._connection.address.server} failed: {one_line(error)}"
            raise TransientError(text) from error
        self._connection.raise_if_failed()

    async def _send(self) -> None:
        for position, message in enumerate(self._requests):
            await self._wait_for_room(len(message.data))
            if self._finished.done():
                return
            reply_id = self._first_reply_id + position if message.wants_ack else None
            if message.wants_ack:
                self._in_flight[position] = len(message.data)
                self._in_flight_bytes += len(message.data)
            await self._connection.publish(message.subject, message.data, message.headers, reply_id)
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
        if len(self.acks) == self._expected_acks or not self._should_continue(ack):
            self._set_finished()

    def _set_finished(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)


def decode_ack(message: Msg) -> PubAck:
    """Decode an acknowledgment."""
    if not message.data:
        return _NO_RESPONDERS_ACK if message.headers else _EMPTY_ACK
    try:
        return _DECODER.decode(message.data)
    except msgspec.MsgspecError:
        return _INVALID_ACK
