"""A TCP proxy on loopback that can fail as networks do; it works in a thread, so any kind of test can use it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from tests.testbed.server import HOST, free_port

_T = TypeVar("_T")
_CHUNK = 65536


class TcpProxy:
    """Forwards `port` to a target until told to fail, from when on every connection, old and new, fails that way.

    heal() ends a failure for connections that come then; what a failing connection had swallowed stays lost.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = free_port()
        self.accepted = 0
        """How many connections there were so far."""
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
        """Where it listens: HOST:PORT."""
        return f"{HOST}:{self.port}"

    def refuse(self) -> None:
        """Reset all connections and refuse new ones, as a dead server does."""
        self._call(self._close_listener())

    def reset(self) -> None:
        """Reset all connections; new ones are fine."""
        self._call(self._reset_all())

    def drop_traffic(self) -> None:
        """Half-open: connections stay and new ones are accepted, but no byte gets through and nobody is told."""
        self._set(drop_all=True)

    def drop_responses(self) -> None:
        """Let everything reach the server, and nothing come back."""
        self._set(drop_responses=True)

    def delay(self, seconds: float) -> None:
        """Hold back each piece of data, in both directions."""
        self._set(delay=seconds)

    def reset_after(self, count: int) -> None:
        """Let that many more bytes reach the server, then reset the connection in the middle of a record; once."""
        self._set(bytes_until_reset=count)

    def restore(self) -> None:
        """Work again; connections that were silent are reset, for they lack what was swallowed."""
        lacking = self._drop_all or self._drop_responses
        self._set()
        if lacking:
            self.reset()
        self._call(self._listen())

    def close(self) -> None:
        """End everything."""
        if self._loop.is_closed():
            return
        self._call(self._close_listener())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set(
        self,
        *,
        drop_all: bool = False,
        drop_responses: bool = False,
        delay: float = 0.0,
        bytes_until_reset: int | None = None,
    ) -> None:
        async def change() -> None:
            self._drop_all, self._drop_responses, self._delay, self._bytes_until_reset = (
                drop_all,
                drop_responses,
                delay,
                bytes_until_reset,
            )

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
        connections = set(self._connections)  # not those that come meanwhile: they may last
        for connection in connections:
            connection.cancel()
        if connections:
            await asyncio.wait(connections)

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        if self._server is None:  # it came a moment before we began to refuse
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
            async with asyncio.TaskGroup() as both_ways:
                both_ways.create_task(self._forward(client_in, server_out, to_server=True))
                both_ways.create_task(self._forward(server_in, client_out, to_server=False))
        except* (OSError, asyncio.CancelledError):
            pass  # the server is down, one side has reset the connection, or we do: both sides shall know
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
                raise ConnectionResetError("as asked for")
        with contextlib.suppress(OSError):
            target.write_eof()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN: both sides learn at once, and what is under way is gone."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
