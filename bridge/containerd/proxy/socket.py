"""The socket on which the proxy listens: its permissions, and a stale file at its path.

The client may have write access to the directory and could place a link there at any moment, so this module never
changes the target of a link.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator

import grpc

from bridge.containerd.methods import target
from bridge.core.errors import FatalError

_MAX_PATH_BYTES = 107  # sockaddr_un.sun_path holds 108 with the closing zero


def bind(server: grpc.aio.Server, path: str, *, mode: int, group: int | None) -> None:
    """Make a server that has not started yet listen at ``path``; replace a stale socket.

    Raises:
        FatalError: Another process listens there, the path is not a socket, or the socket cannot be created.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise FatalError(f"cannot listen at {path}: the path is longer than {_MAX_PATH_BYTES} bytes; use a shorter one")
    try:
        _remove_stale_socket(path)
        with _umask(0o777 & ~mode):  # chmod would follow links
            server.add_insecure_port(target(path))
        if group is not None:
            _set_group(path, group)
    except RuntimeError as error:
        raise FatalError(f"cannot listen at {path}: {error}") from error
    except OSError as error:
        text = f"cannot listen at {path}: {error.strerror or error}; check the permissions of its directory"
        raise FatalError(text) from error


def _set_group(path: str, group: int) -> None:
    try:
        os.chown(path, -1, group, follow_symlinks=False)
    except PermissionError as error:
        text = f"cannot set the group of {path} to {group}: permission denied; run as root or as a member of the group"
        raise FatalError(text) from error


def _remove_stale_socket(path: str) -> None:
    if not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
        raise FatalError(
            f"cannot listen at {path}: its directory does not exist or is not writable; create it, or run as root"
        )
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FatalError(f"cannot listen at {path}: the file exists and is not a socket; use another path")
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise FatalError(f"cannot listen at {path}: another process already listens there; stop it")


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
