"""Where containerd is: its address, and a look at the socket before gRPC is let at it.

gRPC says "failed to connect" for a socket that is missing, forbidden, no socket, or somebody else's; these want
different things done about them. So a plain connection is made first, which also tells the process on the other side.
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

# What a client of HTTP/2 begins with: the preface, and a SETTINGS frame without settings (RFC 9113, sections 3.4, 6.5).
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_HEADER = 9
_SETTINGS = 4
_HTTP1 = b"HTTP/1."
_MISTAKES = frozenset({errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EPROTOTYPE, None})  # None: too long a path
_UCRED = struct.Struct("3i")  # pid, uid, gid: what SO_PEERCRED gives


class Peer(NamedTuple):
    """Who listens: the socket's device and inode, and the process, 0 where this machine's kernel does not tell."""

    device: int
    inode: int
    pid: int


def socket_path(address: str) -> str:
    """Return the absolute path in an address: ``PATH``, ``unix:PATH`` or ``unix://PATH``.

    Raises:
        UnreachableError: It is an address of another kind.
    """
    path = address.removeprefix("unix:")
    if path != address:
        path = path.removeprefix("//")
    if not path or "://" in path or "\0" in path:
        raise UnreachableError(f"invalid containerd address {address!r}: expected the path of a unix socket")
    return os.path.abspath(path)


async def probe(path: str, seconds: float) -> Peer:
    """Look whether something that speaks HTTP/2 listens there, and who it is.

    Raises:
        TransientError: Nobody listens, or nothing was said: containerd may not have started yet, or hangs.
        UnreachableError: It is no socket, is forbidden, or speaks something else.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISSOCK(found.st_mode):
            raise UnreachableError(f"{path} is not a socket; use the path of containerd's socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            async with asyncio.timeout(seconds):
                pid = await _greet(connection, path)
    except OSError as error:  # TimeoutError is one
        raise _translated(error, path, seconds) from error
    return Peer(found.st_dev, found.st_ino, pid)


async def _greet(connection: socket.socket, path: str) -> int:
    """Connect, and wait for the other side's SETTINGS; return its process id."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    await loop.sock_connect(connection, path)
    answer = b""
    with suppress(ConnectionError):  # whoever hangs up may have spoken before
        await loop.sock_sendall(connection, _GREETING)
    with suppress(ConnectionError):
        while len(answer) < _FRAME_HEADER and (received := await loop.sock_recv(connection, _FRAME_HEADER)):
            answer += received
    _check_answer(answer, path)
    return peer_pid(connection)


def _check_answer(answer: bytes, path: str) -> None:
    if not answer:
        raise TransientError(f"{path} closed the connection: not a containerd socket, or containerd is shutting down")
    if answer.startswith(_HTTP1):
        raise UnreachableError(
            f"{path} is not containerd's socket: it speaks HTTP/1 (Docker's API?); use containerd's socket"
        )
    if len(answer) < _FRAME_HEADER or answer[3] != _SETTINGS:
        raise UnreachableError(f"{path} is not containerd's socket: it does not speak gRPC; use containerd's socket")


def peer_pid(connection: socket.socket) -> int:
    """Return the process that listens; 0 where it is invisible from this pid namespace."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[0])


def _translated(error: OSError, path: str, seconds: float) -> UnreachableError | TransientError:
    if isinstance(error, FileNotFoundError):
        return TransientError(f"socket {path} does not exist; start containerd, or set its path (--containerd PATH)")
    if isinstance(error, PermissionError):
        return UnreachableError(f"{path}: permission denied; run as root or with the socket's group")
    if isinstance(error, ConnectionRefusedError):
        return TransientError(f"{path}: connection refused; containerd is not running")
    if isinstance(error, TimeoutError):
        return TransientError(
            f"no response from {path} within {seconds:g} s: containerd is hung, or this is not its socket"
        )
    if error.errno in _MISTAKES:
        return UnreachableError(f"{path} cannot be used as containerd's socket: {error.strerror or error}")
    return TransientError(f"cannot connect to containerd at {path}: {error.strerror}")
