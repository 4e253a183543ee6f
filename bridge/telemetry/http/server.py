"""The sockets of the HTTP endpoint, and the control socket, which also serves POST /snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from bridge.core.ports import Clock
from bridge.telemetry.status import BridgeInspector

if TYPE_CHECKING:
    from bridge.telemetry.http.bounded_server import BoundedServer
    from bridge.telemetry.http.routes import Routes

_BACKLOG = 64
_SOCKET_MODE = 0o600
_log = structlog.get_logger(__name__)


class HttpEndpoint:
    """Serves the status of a running bridge on any number of sockets."""

    def __init__(self, bridge: BridgeInspector, clock: Clock, *, containers: bool = True) -> None:
        """Create the endpoint; ``containers`` is whether TCP sockets serve the paths that name containers."""
        self._bridge = bridge
        self._clock = clock
        self._names_containers = containers
        self._servers: list[tuple[asyncio.Server, _Connections]] = []

    @cached_property
    def routes(self) -> Routes:
        """The paths; they are imported with the first connection, so that a start does not wait for them."""
        from bridge.telemetry.http.routes import Routes  # noqa: PLC0415

        return Routes(self._bridge, self._clock, containers=self._names_containers)

    async def listen(self, host: str | None, port: int) -> list[str]:
        """Listen on TCP, on all addresses of IPv4 and IPv6 if ``host`` is None; return the addresses.

        Raises:
            OSError: The address cannot be used.
        """
        connections = _Connections(self, local=False)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(connections.open, host, port, backlog=_BACKLOG)
        self._servers.append((server, connections))
        return [_address(each) for each in server.sockets]

    async def listen_unix(self, path: Path) -> None:
        """Listen on a unix socket with access for its owner only; replace an existing socket.

        Raises:
            OSError: The socket cannot be created.
        """
        connections = _Connections(self, local=True)
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(connections.open, sock=_private_socket(path), backlog=_BACKLOG)
        self._servers.append((server, connections))

    async def close(self) -> None:
        """Close all sockets and connections; requests in progress get no response."""
        servers, self._servers = self._servers, []
        for server, connections in servers:
            server.close()
            await connections.close()


class _Connections:
    """The connections of one socket."""

    def __init__(self, endpoint: HttpEndpoint, *, local: bool) -> None:
        self._endpoint = endpoint
        self._local = local
        self._server: BoundedServer | None = None

    def open(self) -> asyncio.BaseProtocol:
        """Return the protocol of another connection."""
        try:
            if self._server is None:
                self._server = self._endpoint.routes.server(local=self._local)
            return self._server()
        except Exception:  # noqa: BLE001 (the import may fail; asyncio would log nothing)
            _log.exception("http_connection_failed")
            return _ClosedConnection()

    async def close(self) -> None:
        """Close all connections."""
        if self._server is not None:
            await self._server.close()


class _ClosedConnection(asyncio.Protocol):
    """Closes the connection without a response."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _private_socket(path: Path) -> socket.socket:
    """Create a unix socket for its owner only; the path may be longer than the kernel's limit for socket addresses.

    The socket gets its final name after its mode is set, so that no other user can connect in between. An existing
    socket is replaced atomically.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX)
    temporary_name = f"{path.name}.new"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary_name, dir_fd=directory)
        listener.bind(f"/proc/self/fd/{directory}/{temporary_name}")
        os.chmod(f"/proc/self/fd/{directory}/{temporary_name}", _SOCKET_MODE)
        os.rename(temporary_name, path.name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener
