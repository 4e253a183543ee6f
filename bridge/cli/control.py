"""Client for the control socket in the state_dir of a running bridge."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path

from bridge.outbox.folder import CONTROL

_MOST_BYTES = 65536


class Control(http.client.HTTPConnection):
    """HTTP over a unix socket; raises the errors of the operating system and of http.client."""

    def __init__(self, folder: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self.path = folder / CONTROL

    def connect(self) -> None:
        """Connect through the directory's descriptor, because the path may be too long for a socket address."""
        directory = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{directory}/{self.path.name}")
        finally:
            os.close(directory)

    def post(self, path: str) -> tuple[int, bytes]:
        """Send a request without a body; return the status and the body of the response."""
        try:
            self.request("POST", path)
            response = self.getresponse()
            return response.status, response.read(_MOST_BYTES)
        finally:
            self.close()
