"""systemd-logind as a kubelet sees it, to shut a node down without a machine to shut down.

A kubelet connects to the system bus, takes an inhibitor lock (a file descriptor), and waits for the signal
PrepareForShutdown. Then it stops its pods, and closes the lock. This is the part of D-Bus and logind that it uses:
https://dbus.freedesktop.org/doc/dbus-specification.html, https://www.freedesktop.org/wiki/Software/systemd/inhibit/
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Mapping
from pathlib import Path

_METHOD_CALL, _METHOD_RETURN, _SIGNAL = 1, 2, 4
_PATH, _INTERFACE, _MEMBER, _REPLY_SERIAL, _SIGNATURE, _UNIX_FDS = 1, 2, 3, 5, 8, 9
_MAX_DELAY_USEC = 600_000_000


class Logind:
    """Serves one kubelet at the address of a system bus."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix:path={path}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._connection: socket.socket | None = None
        self._lock = -1  # of a pipe; the kubelet has the other end
        self._serial = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def shut_down(self, timeout: float) -> None:
        """Signal to the kubelet that the machine shuts down, and wait until it has stopped its pods."""
        lock = self._lock
        self._prepare_for_shutdown(active=True)
        if not select.select([lock], [], [], timeout)[0]:
            raise TimeoutError(f"the kubelet did not release its lock within {timeout} s")

    def cancel_shutdown(self) -> None:
        """Signal to the kubelet that the machine does not shut down."""
        self._prepare_for_shutdown(active=False)

    def close(self) -> None:
        """Close all sockets: a connection keeps the kubelet's network namespace in existence."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
        if self._lock >= 0:
            os.close(self._lock)

    def _prepare_for_shutdown(self, *, active: bool) -> None:
        if self._connection is None:
            raise RuntimeError("no kubelet has connected")
        fields = {_PATH: ("o", "/org/freedesktop/login1"), _INTERFACE: ("s", "org.freedesktop.login1.Manager")}
        fields |= {_MEMBER: ("s", "PrepareForShutdown"), _SIGNATURE: ("g", "b")}
        self._connection.sendall(self._message(_SIGNAL, fields, struct.pack("<I", active)))

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed, or the kubelet has exited
            while True:
                connection, _ = self._listener.accept()
                _authenticate(connection)
                self._connection = connection
                with contextlib.suppress(EOFError):
                    while True:
                        self._respond(connection, *_read_call(connection))

    def _respond(self, connection: socket.socket, serial: int, member: str) -> None:
        reply: dict[int, tuple[str, str | int]] = {_REPLY_SERIAL: ("u", serial)}
        match member:
            case "Hello":
                body = _string(":1.1")
                connection.sendall(self._message(_METHOD_RETURN, {**reply, _SIGNATURE: ("g", "s")}, body))
            case "Get":  # the only property that a kubelet reads is InhibitDelayMaxUSec
                body = b"\x01t\0".ljust(8, b"\0") + struct.pack("<Q", _MAX_DELAY_USEC)
                connection.sendall(self._message(_METHOD_RETURN, {**reply, _SIGNATURE: ("g", "v")}, body))
            case "Inhibit":
                self._lock, given = os.pipe()
                fields = {**reply, _SIGNATURE: ("g", "h"), _UNIX_FDS: ("u", 1)}
                message = self._message(_METHOD_RETURN, fields, struct.pack("<I", 0))
                socket.send_fds(connection, [message], [given])
                os.close(given)
            case _:  # AddMatch
                connection.sendall(self._message(_METHOD_RETURN, reply))

    def _message(self, kind: int, fields: Mapping[int, tuple[str, str | int]], body: bytes = b"") -> bytes:
        self._serial += 1
        array = b""
        for code, (signature, value) in fields.items():
            array = _pad(array, 8) + bytes([code]) + _signature(signature)
            if isinstance(value, int):
                array = _pad(array, 4) + struct.pack("<I", value)
            else:
                array = array + _signature(value) if signature == "g" else _pad(array, 4) + _string(value)
        header = struct.pack("<cBBBIII", b"l", kind, 0, 1, len(body), self._serial, len(array)) + array
        return _pad(header, 8) + body


def _authenticate(connection: socket.socket) -> None:
    """Accept any client that passes its user id."""
    with connection.makefile("rb", buffering=0) as lines:
        lines.read(1)  # a zero byte
        while (line := lines.readline().split())[:1] != [b"BEGIN"]:
            match line:
                case [b"AUTH", b"EXTERNAL", *_]:
                    connection.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
                case [b"NEGOTIATE_UNIX_FD"]:
                    connection.sendall(b"AGREE_UNIX_FD\r\n")
                case [b"AUTH", *_]:
                    connection.sendall(b"REJECTED EXTERNAL\r\n")
                case _:
                    raise OSError(f"unexpected line: {line}")


def _read_call(connection: socket.socket) -> tuple[int, str]:
    """Read a call; return its serial and the name of the method."""
    _, kind, _, _, body_length, serial, fields_length = struct.unpack("<cBBBIII", _read(connection, 16))
    fields = _read(connection, -(-fields_length // 8) * 8)
    _read(connection, body_length)
    if kind != _METHOD_CALL:
        raise OSError(f"unexpected message of type {kind}")
    member = fields[fields.index(bytes([_MEMBER]) + _signature("s")) + 4 :]
    (length,) = struct.unpack_from("<I", member)
    return serial, member[4 : 4 + length].decode()


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        received = connection.recv(size - len(data))
        if not received:
            raise EOFError
        data += received
    return data


def _string(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode() + b"\0"


def _signature(text: str) -> bytes:
    return bytes([len(text)]) + text.encode() + b"\0"


def _pad(data: bytes, size: int) -> bytes:
    return data + b"\0" * (-len(data) % size)
