"""Client for the control socket in the state_dir of a running bridge."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path

from bridge.outbox.state_directory import CONTROL_SOCKET

_MAX_RESPONSE_BYTES = 65536


class ControlClient(http.client.HTTPConnection):
    """HTTP over a unix socket; raises the errors of the operating system and of http.client."""

    def __init__(self, directory: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = directory / CONTROL_SOCKET

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
            return response.status, response.read(_MAX_RESPONSE_BYTES)
        finally:
            self.close()
