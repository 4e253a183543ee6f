"""Talking to the running bridge through the socket in its state_dir."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path

from bridge.outbox.folder import CONTROL

_MOST_BYTES = 65536


class Control(http.client.HTTPConnection):
    """HTTP over a unix socket; errors are those of the operating system, and http.client's."""

    def __init__(self, folder: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self.path = folder / CONTROL

    def connect(self) -> None:
        """Connect; by way of the directory's descriptor, since its path may be longer than a socket's can be."""
        folder = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{folder}/{self.path.name}")
        finally:
            os.close(folder)

    def post(self, path: str) -> tuple[int, bytes]:
        """Send a request without a body; return status and body of the answer."""
        try:
            self.request("POST", path)
            answer = self.getresponse()
            return answer.status, answer.read(_MOST_BYTES)
        finally:
            self.close()
