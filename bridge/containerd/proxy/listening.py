"""The socket at which the proxy listens: who may open it, and what is in its place.

Its directory may be one that the client can write to, which could put a link there at any moment: nothing here changes
what a link leads to.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator

import grpc

from bridge.containerd.rpc import target
from bridge.core.errors import FatalError


def bind(server: grpc.aio.Server, path: str, *, mode: int, group: int | None) -> None:
    """Let a server, which is not started yet, listen at ``path``; a socket that nobody listens at is replaced.

    Raises:
        FatalError: Somebody listens there, something else is there, or it cannot be made.
    """
    try:
        _make_room(path)
        with _umask(0o777 & ~mode):  # not chmod, which follows links
            server.add_insecure_port(target(path))
        if group is not None:
            _give(path, group)
    except RuntimeError as error:
        raise FatalError(f"cannot listen at {path}: {error}") from error
    except OSError as error:
        text = f"cannot listen at {path}: {error.strerror or error}; its directory has to exist, and to be writable"
        raise FatalError(text) from error


def _give(path: str, group: int) -> None:
    try:
        os.chown(path, -1, group, follow_symlinks=False)
    except PermissionError as error:
        text = f"cannot give {path} to group {group}: only root can, or who belongs to it (--socket-group)"
        raise FatalError(text) from error


def _make_room(path: str) -> None:
    if not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
        raise FatalError(f"cannot listen at {path}: its directory does not exist, or cannot be written")
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FatalError(f"cannot listen at {path}: something that is no socket is there")
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise FatalError(f"cannot listen at {path}: another process does already")


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
