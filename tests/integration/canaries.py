"""Secrets that are told from everything else: where they were put, and whether they got out.

Each canary is a random word. `Canaries.leaked` looks for it in raw bytes, as it is and in the encodings that carry
secrets about: base64 at each of its three alignments, and hexadecimal digits.
"""

from __future__ import annotations

import base64
import secrets
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

_ALIGNMENTS = range(3)


class Canaries:
    """All secrets of one test; `put[name]` says where each was put."""

    def __init__(self) -> None:
        self.locations: dict[str, str] = {}

    def new(self, location: str) -> str:
        """A secret for a place."""
        return self.adopt(location, f"canary{secrets.token_hex(10)}")

    def adopt(self, location: str, secret: str) -> str:
        """A secret that somebody else has made: a seed, a token."""
        assert location not in self.locations
        self.locations[location] = secret
        return secret

    def find_leaks(self, output: Mapping[str, bytes]) -> list[str]:
        """Which secrets were seen where."""
        forms = {place: _encoded_forms(secret) for place, secret in self.locations.items()}
        return [
            f"{place} in {where}"
            for where, content in output.items()
            for place, known in forms.items()
            if any(form in content for form in known)
        ]


def _encoded_forms(secret: str) -> list[bytes]:
    raw = secret.encode()
    # The characters at both ends depend on what stands beside it.
    encoded = [base64.b64encode(b"\0" * shift + raw)[(0, 2, 3)[shift] : -4] for shift in _ALIGNMENTS]
    return [raw, raw.hex().encode(), *encoded]


class NotifySocketRecorder:
    """What a service manager hears, as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> NotifySocketRecorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self.path))
        self._thread.join(10)
        self._socket.close()

    def _listen(self) -> None:
        while said := self._socket.recv(65536):
            self.messages += said + b"\n"


def read_files(directory: Path) -> dict[str, bytes]:
    """The raw bytes of all files below a folder, by name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
