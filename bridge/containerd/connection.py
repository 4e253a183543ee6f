"""Calls to containerd with one request, on one connection.

Invariant: every call has a deadline and fails only with one of our errors.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from bridge.containerd.http2 import Call, GrpcConnection, Status, StatusCode
from bridge.containerd.methods import NAMESPACE_HEADER, Method
from bridge.containerd.rpc_errors import from_status, unreadable_response
from bridge.core.errors import TransientError
from bridge.core.ports import Clock
from bridge.core.time import SECOND, to_seconds

_Response = TypeVar("_Response", bound=Message)


class Connection:
    """Connects at the first call, and at the next one after the connection has ended, or its peer is shutting down."""

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._connections: list[GrpcConnection] = []  # the last one is used, the peers of the others are shutting down
        self._closed = False

    def close(self) -> None:
        """End the connection; calls in flight fail with a TransientError."""
        self._closed = True
        for connection in self._connections:
            connection.abort()

    async def call(self, method: Method[_Response], request: Message, namespace: str, seconds: float) -> _Response:
        """Call a method and return the response.

        Raises:
            RpcError: containerd returned an error or an unreadable response, or did not respond within ``seconds``.
            TransientError: This connection was closed.
        """
        responses = [each async for each in self.stream(method, request, namespace, seconds)]
        if len(responses) != 1:
            raise unreadable_response(method.path, self._path)
        return responses[0]

    async def stream(
        self, method: Method[_Response], request: Message, namespace: str, seconds: float
    ) -> AsyncIterator[_Response]:
        """Yield the responses of a streaming method; ``seconds``, for all of them, and errors as in ``call``.

        They are received even if they are not taken: a caller that waits between them needs the memory for all.
        """
        connection, call = self._get_connection(method), _PendingCall()
        deadline = self._clock.now().monotonic + round(seconds * SECOND)
        metadata = ((NAMESPACE_HEADER, namespace),) if namespace else ()
        connection.start(call, method.path, request.SerializeToString(), metadata)
        try:
            while (raw := await self._next_message(call, deadline)) is not None:
                yield method.response_type.FromString(raw)
        except TimeoutError:
            status = Status(StatusCode.DEADLINE_EXCEEDED, f"no response for {seconds:g} s")
            raise from_status(*status, method.purpose, self._path) from None
        except DecodeError as error:
            raise unreadable_response(method.path, self._path) from error
        finally:
            connection.cancel(call)
        if self._closed:
            raise self._closed_error(method)
        if call.status.code is not StatusCode.OK:
            raise from_status(*call.status, method.purpose, self._path)

    async def _next_message(self, call: _PendingCall, deadline: int) -> bytes | None:
        async with self._clock.timeout(to_seconds(max(0, deadline - self._clock.now().monotonic))):
            return await call.next_message()

    def _get_connection(self, method: Method[_Response]) -> GrpcConnection:
        if self._closed:
            raise self._closed_error(method)
        if not self._connections or not self._connections[-1].accepts_calls:
            self._connections = [each for each in self._connections if not each.closed]
            self._connections.append(GrpcConnection(self._path))
        return self._connections[-1]

    def _closed_error(self, method: Method[_Response]) -> TransientError:
        return TransientError(f"containerd at {self._path}: connection closed; could not {method.purpose}")


class _PendingCall(Call):
    """A call whose messages are taken one by one; ``status`` is set when it has ended."""

    __slots__ = ("_arrived", "_messages", "status")

    def __init__(self) -> None:
        super().__init__()
        self._messages: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self.status = _PENDING

    async def next_message(self) -> bytes | None:
        """Wait for the next message, and return it; None after the last one."""
        while not self._messages:
            if self.status is not _PENDING:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._messages.popleft()

    def receive_message(self, message: bytes) -> None:
        self._messages.append(message)
        self._arrived.set()

    def end(self, status: Status) -> None:
        self.status = status
        self._arrived.set()


_PENDING = Status(StatusCode.UNKNOWN, "pending")
