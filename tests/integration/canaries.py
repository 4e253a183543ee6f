"""Recognizable secrets: where each is placed, and where it leaked.

Each canary is a random word. `Canaries.find_leaks` searches raw bytes for the word and for its usual encodings: base64
at each of the three alignments, and hexadecimal digits.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from pathlib import Path

_ALIGNMENTS = range(3)


class Canaries:
    """All secrets of one test; `locations` maps the place of each secret to the secret."""

    def __init__(self) -> None:
        self.locations: dict[str, str] = {}

    def new(self, location: str) -> str:
        """Create a secret for a location."""
        return self.adopt(location, f"canary{secrets.token_hex(10)}")

    def adopt(self, location: str, secret: str) -> str:
        """Register a secret that was generated elsewhere, such as a seed or a token."""
        assert location not in self.locations
        self.locations[location] = secret
        return secret

    def find_leaks(self, output: Mapping[str, bytes]) -> list[str]:
        """Return the location of each leaked secret, and the output that contains it."""
        forms = {location: _encoded_forms(secret) for location, secret in self.locations.items()}
        return [
            f"{location} in {name}"
            for name, content in output.items()
            for location, encodings in forms.items()
            if any(encoding in content for encoding in encodings)
        ]


def _encoded_forms(secret: str) -> list[bytes]:
    raw = secret.encode()
    # The characters at both ends depend on the bytes next to the secret.
    encoded = [base64.b64encode(b"\0" * shift + raw)[(0, 2, 3)[shift] : -4] for shift in _ALIGNMENTS]
    return [raw, raw.hex().encode(), *encoded]


def read_files(directory: Path) -> dict[str, bytes]:
    """Return the raw bytes of all files in a directory tree, by relative path."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
