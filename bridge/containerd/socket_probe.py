"""containerd's address, and a probe of its socket before calls are made.

Calls fail alike if a socket is missing, not accessible, not a socket, or another program's, but each of these needs a
different fix. The probe therefore makes a connection of its own, and also finds the peer's process id.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import struct
from contextlib import suppress
from typing import NamedTuple

from bridge.core.errors import TransientError, UnreachableError
from bridge.core.ports import Clock

# An HTTP/2 client starts with the preface and a SETTINGS frame without settings (RFC 9113, sections 3.4 and 6.5).
_CLIENT_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_HEADER_BYTES = 9
_SETTINGS_FRAME = 4
_HTTP1 = b"HTTP/1."
_INVALID_PATH_ERRNOS = frozenset(
    {errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EPROTOTYPE, None}
)  # None: path too long
_UCRED = struct.Struct("3i")  # pid, uid, gid, as SO_PEERCRED returns them


class Peer(NamedTuple):
    """The listener: the socket's device and inode, and the process id, 0 if the kernel does not report it."""

    device: int
    inode: int
    pid: int


def socket_path(address: str) -> str:
    """Return the absolute path in an address: ``PATH``, ``unix:PATH`` or ``unix://PATH``.

    Raises:
        UnreachableError: The address has another format.
    """
    path = address.removeprefix("unix:")
    if path != address:
        path = path.removeprefix("//")
    if not path or "://" in path or "\0" in path:
        raise UnreachableError(f"invalid containerd address {address!r}: expected the path of a unix socket")
    return os.path.abspath(path)


async def probe(path: str, seconds: float, clock: Clock) -> Peer:
    """Check that an HTTP/2 server listens at ``path``, and return its identity.

    Raises:
        TransientError: No process listens or responds: containerd may not have started yet, or may be hung.
        UnreachableError: The path is not a socket, is not accessible, or its server does not speak HTTP/2.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISSOCK(status.st_mode):
            raise UnreachableError(f"{path} is not a socket; use the path of containerd's socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            async with clock.timeout(seconds):
                pid = await _handshake(connection, path)
    except OSError as error:  # TimeoutError is one
        raise _translate_error(error, path, seconds) from error
    return Peer(status.st_dev, status.st_ino, pid)


async def _handshake(connection: socket.socket, path: str) -> int:
    """Connect and wait for the server's SETTINGS frame; return the server's process id."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    await loop.sock_connect(connection, path)
    response = b""
    with suppress(ConnectionError):  # a server that closes the connection may have sent something before
        await loop.sock_sendall(connection, _CLIENT_PREFACE)
    with suppress(ConnectionError):
        while len(response) < _FRAME_HEADER_BYTES and (
            received := await loop.sock_recv(connection, _FRAME_HEADER_BYTES)
        ):
            response += received
    _check_response(response, path)
    return peer_pid(connection)


def _check_response(response: bytes, path: str) -> None:
    if not response:
        raise TransientError(f"{path} closed the connection: not a containerd socket, or containerd is shutting down")
    if response.startswith(_HTTP1):
        raise UnreachableError(
            f"{path} is not containerd's socket: it speaks HTTP/1 (Docker's API?); use containerd's socket"
        )
    if len(response) < _FRAME_HEADER_BYTES or response[3] != _SETTINGS_FRAME:
        raise UnreachableError(f"{path} is not containerd's socket: it does not speak gRPC; use containerd's socket")


def peer_pid(connection: socket.socket) -> int:
    """Return the id of the listening process; 0 if it is not visible from this pid namespace."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[0])


def _translate_error(error: OSError, path: str, seconds: float) -> UnreachableError | TransientError:
    if isinstance(error, FileNotFoundError):
        return TransientError(
            f"socket {path} does not exist; start containerd, or set its path (--containerd PATH, containerd.address)"
        )
    if isinstance(error, PermissionError):
        return UnreachableError(f"{path}: permission denied; run as root or with the socket's group")
    if isinstance(error, ConnectionRefusedError):
        return TransientError(f"{path}: connection refused; containerd is not running")
    if isinstance(error, TimeoutError):
        return TransientError(
            f"no response from {path} within {seconds:g} s: containerd is hung, or this is not its socket"
        )
    if error.errno in _INVALID_PATH_ERRNOS:
        return UnreachableError(f"{path} cannot be used as containerd's socket: {error.strerror or error}")
    return TransientError(f"cannot connect to containerd at {path}: {error.strerror}")
