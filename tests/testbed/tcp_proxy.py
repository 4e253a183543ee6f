"""A TCP proxy on loopback that simulates network failures; it runs in a thread, for tests with and without a loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.testbed.process import Closing
from tests.testbed.server import HOST, free_port

_T = TypeVar("_T")
_CHUNK = 65536


class TcpProxy(Closing):
    """Forward `port` to a target. Each kind of failure applies to existing and new connections until `restore`.

    Data that a failing connection has dropped stays lost.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = free_port()
        self.accepted = 0
        """Number of accepted connections."""
        self._target = (host, port)
        self._delay = 0.0
        self._drop_all = False
        self._drop_responses = False
        self._bytes_until_reset: int | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self._call(self._listen())

    @property
    def address(self) -> str:
        """Return HOST:PORT of the listening socket."""
        return f"{HOST}:{self.port}"

    def refuse(self) -> None:
        """Reset all connections and refuse new ones, as if the server were down."""
        self._call(self._close_listener())

    def redirect(self, port: int) -> None:
        """Forward new connections to another port of the target."""
        self._target = (self._target[0], port)

    def reset(self) -> None:
        """Reset all connections; new ones work."""
        self._call(self._reset_all())

    def drop_traffic(self) -> None:
        """Drop all data without closing connections (half-open); new connections are accepted, too."""
        self._set(drop_all=True)

    def drop_responses(self) -> None:
        """Forward data to the server, and drop its responses."""
        self._set(drop_responses=True)

    def delay(self, seconds: float) -> None:
        """Delay each chunk of data, in both directions."""
        self._set(delay=seconds)

    def reset_after(self, count: int) -> None:
        """Forward `count` more bytes to the server, then reset the connection, once."""
        self._set(bytes_until_reset=count)

    def restore(self) -> None:
        """End the failure; reset the connections from which data was dropped, before they forward anything else."""
        self._set(reset=self._drop_all or self._drop_responses)
        self._call(self._listen())

    def close(self) -> None:
        """Reset all connections and stop the proxy."""
        if self._loop.is_closed():
            return
        self._call(self._close_listener())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _set(
        self,
        *,
        drop_all: bool = False,
        drop_responses: bool = False,
        delay: float = 0.0,
        bytes_until_reset: int | None = None,
        reset: bool = False,
    ) -> None:
        async def change() -> None:
            self._drop_all, self._drop_responses, self._delay, self._bytes_until_reset = (
                drop_all,
                drop_responses,
                delay,
                bytes_until_reset,
            )
            if reset:
                await self._reset_all()

        self._call(change())

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def _close_listener(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset_all()

    async def _reset_all(self) -> None:
        connections = set(self._connections)  # connections accepted meanwhile stay open
        for connection in connections:
            connection.cancel()
        if connections:
            await asyncio.wait(connections)

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        if self._server is None:  # accepted just before the listener was closed
            _abort(client_out)
            return
        self.accepted += 1
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        writers = [client_out]
        try:
            server_in, server_out = await asyncio.open_connection(*self._target)
            writers.append(server_out)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._forward(client_in, server_out, to_server=True))
                directions.create_task(self._forward(server_in, client_out, to_server=False))
        except* (OSError, asyncio.CancelledError):
            pass  # the server is down, or one side or this proxy has reset the connection: reset both sides
        finally:
            for writer in writers:
                _abort(writer)
            self._connections.discard(connection)

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, to_server: bool) -> None:
        while data := await source.read(_CHUNK):
            await asyncio.sleep(self._delay)
            if self._drop_all or (self._drop_responses and not to_server):
                continue
            if to_server and self._bytes_until_reset is not None:
                data, self._bytes_until_reset = data[: self._bytes_until_reset], self._bytes_until_reset - len(data)
            target.write(data)
            await target.drain()
            if to_server and self._bytes_until_reset is not None and self._bytes_until_reset <= 0:
                self._bytes_until_reset = None
                raise ConnectionResetError("byte limit reached")
        with contextlib.suppress(OSError):
            target.write_eof()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close the connection with RST instead of FIN: both sides notice at once, and data in flight is lost."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
