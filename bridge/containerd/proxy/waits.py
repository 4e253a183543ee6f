"""The proxy's own method ``Waits.Wait``: calls of ``Tasks.Wait`` for many tasks, on one call of a client.

They are made on one connection to containerd, with a small object for each: gRPC's library needs 50 KiB for a call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from bridge.containerd.http2 import GrpcConnection, Status, StatusCode
from bridge.containerd.protos.waits_pb2 import TaskWait, WaitEnd, WaitsResponse
from bridge.containerd.proxy.policy import CallDenied, filter_wait_response, parse_waits
from bridge.containerd.wait_calls import connect, start_wait
from bridge.core.containerd_model import ContainerKey
from bridge.telemetry.safe_text import one_line

MAX_WAITS = 20_000  # at a time, of all clients
_ENDS_PER_MESSAGE = 1000


class PendingWaits:
    """Counts the waits of all clients."""

    def __init__(self) -> None:
        self.count = 0


class TaskWaits:
    """The waits of one client; create, use and close it on one event loop."""

    def __init__(self, path: str, all_pending: PendingWaits) -> None:
        self._path = path
        self._all_pending = all_pending
        self._connection: GrpcConnection | None = None
        self._pending = 0
        self._ends: deque[WaitEnd] = deque()  # that the client has not read
        self._arrived = asyncio.Event()
        self._read = asyncio.Event()
        self._closed = False

    def start(self, raw: bytes) -> None:
        """Start the waits of a request.

        Raises:
            CallDenied: The request cannot be decoded, or has other fields.
        """
        for wait in parse_waits(raw):
            if self._all_pending.count < MAX_WAITS:
                self._count_pending(1)
                self._call(wait)
            else:
                text = f"more than {MAX_WAITS} waits"
                self._add_end(wait.number, Status(StatusCode.RESOURCE_EXHAUSTED, text), None)

    async def relay_ends(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write the ends of waits to the client, without end; those that arrive together share a message."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._ends:
                ends = [self._ends.popleft() for _ in range(min(len(self._ends), _ENDS_PER_MESSAGE))]
                await write(WaitsResponse(ends=ends).SerializeToString())
                self._read.set()

    async def wait_until_read(self) -> None:
        """Wait until the client has read most of the ends, before it may start more waits: ends need memory, too."""
        while len(self._ends) >= _ENDS_PER_MESSAGE:
            self._read.clear()
            await self._read.wait()

    def close(self) -> None:
        """End all calls to containerd; idempotent."""
        self._closed = True
        self._count_pending(-self._pending)
        if self._connection is not None:
            self._connection.abort()

    def _call(self, wait: TaskWait) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._path)
        start_wait(self._connection, ContainerKey(wait.namespace, wait.container_id), self, wait.number)

    def end(self, number: int, status: Status, response: bytes | None) -> None:
        """Pass on the end of a call to containerd."""
        if self._closed:
            return
        self._count_pending(-1)
        if status.code is StatusCode.OK:
            try:
                response = filter_wait_response(response)
            except CallDenied as error:
                status, response = Status(error.code, str(error)), None
        self._add_end(number, status, response)

    def _count_pending(self, change: int) -> None:
        self._pending += change
        self._all_pending.count += change

    def _add_end(self, number: int, status: Status, response: bytes | None) -> None:
        self._ends.append(WaitEnd(number=number, code=status.code, details=one_line(status.details), response=response))
        self._arrived.set()
