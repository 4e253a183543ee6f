"""Receive the messages of a program to systemd."""

from __future__ import annotations

import queue
import socket
import threading
import time
from pathlib import Path

from tests.testbed.process import Closing


class NotifySocket(Closing):
    """A notify socket like systemd's, read by a thread: the kernel queues only ten messages."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self.received = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Stop reading."""
        self._socket.sendto(b"", str(self.path))
        self._reader.join(30)
        self._socket.close()

    def wait(self, text: str, seconds: float = 30) -> None:
        """Read messages until a line starts with ``text``."""
        lines: list[str] = []
        deadline = time.monotonic() + seconds
        while not (lines and lines[-1].startswith(text)):
            try:
                lines.append(self._messages.get(timeout=max(deadline - time.monotonic(), 0)))
            except queue.Empty:
                raise AssertionError(f"no {text}: {lines}") from None

    def is_silent(self, seconds: float, within: float = 30) -> bool:
        """Return whether no message arrives for that long, after the messages in flight."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            try:
                self._messages.get(timeout=seconds)
            except queue.Empty:
                return True
        return False

    def _read(self) -> None:
        while message := self._socket.recv(65536):
            self.received += message + b"\n"
            for line in message.decode(errors="replace").splitlines():
                self._messages.put(line)
