"""Subjects and bucket keys for records. Pure.

Any name of a container, namespace or host becomes one token of ``[A-Za-z0-9_=-]``, without wildcards, dots and blanks.
Different values have different tokens. The length of a token is bounded, because a server closes a connection whose
control line exceeds 4 KiB.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.core.records import Record

_FIELDS = ("host", "namespace", "project", "type")
MAX_TOKEN_LENGTH = 200  # characters
_DIGEST_LENGTH = 16  # characters

_UNSAFE_BYTES = re.compile(rb"[^A-Za-z0-9_-]")
_ESCAPED_BYTE = re.compile(rb"=([0-9A-F]{2})")


@lru_cache(maxsize=4096)  # few hosts, namespaces and types; container ids come and go
def encode_token(value: str) -> str:
    """Encode ``value`` as one token: bytes other than ``[A-Za-z0-9_-]`` become ``=HH``, an empty value ``_``.

    A token that would be too long is truncated and ends with ``==`` and a digest of the value.
    """
    plain = value.encode(errors="surrogatepass")
    encoded = _UNSAFE_BYTES.sub(lambda found: b"=%02X" % found[0][0], plain).decode("ascii")
    if len(encoded) <= MAX_TOKEN_LENGTH:
        return encoded or "_"
    room = MAX_TOKEN_LENGTH - _DIGEST_LENGTH - 2
    prefix = encoded[:room]
    cut = prefix.rfind("=", room - 2)  # do not split =HH
    return f"{prefix[:cut] if cut > 0 else prefix}=={sha256(plain).hexdigest()[:_DIGEST_LENGTH]}"


def decode_token(token: str) -> str:
    """Decode a token; of a truncated one, return the beginning and the digest."""
    if token == "_":  # noqa: S105 (a token of a subject, no secret)
        return ""
    return _ESCAPED_BYTE.sub(lambda found: bytes([int(found[1], 16)]), token.encode()).decode(errors="surrogatepass")


class SubjectBuilder:
    """Builds the subjects of records.

    Args:
        prefix: The first tokens of all subjects, separated by dots.
        template: The remaining tokens; ``{host}``, ``{namespace}``, ``{project}`` and ``{type}`` are replaced with the
            record's values.
    """

    def __init__(self, prefix: str, template: str) -> None:
        self._format = f"{prefix}.{template}".format
        self.pattern = self._format(**dict.fromkeys(_FIELDS, "*"))
        """A subscription pattern that matches all subjects."""

    def build(self, record: Record) -> str:
        """Return the subject of ``record``; control records have ``_`` as namespace and project."""
        return self._format(
            host=encode_token(record.host),
            namespace=encode_token(record.namespace),
            project=encode_token(record.project),
            type=encode_token(record.type),
        )


def overlaps(pattern: str, other: str) -> bool:
    """Return whether any subject matches both patterns."""
    left, right = pattern.split("."), other.split(".")
    for one, another in zip(left, right, strict=False):
        if ">" in (one, another):
            return True
        if "*" not in (one, another) and one != another:
            return False
    return len(left) == len(right)


def is_subset(pattern: str, patterns: Iterable[str]) -> bool:
    """Return whether one of ``patterns`` matches every subject that ``pattern`` matches."""
    return any(_matches_all(each.split("."), pattern.split(".")) for each in patterns)


def _matches_all(wide: list[str], narrow: list[str]) -> bool:
    for one, another in zip(wide, narrow, strict=False):
        if one == ">":
            return True
        if another == ">" or one not in ("*", another):
            return False
    return len(wide) == len(narrow)


def state_key(host: str, engine: str, namespace: str = "", container: str = "") -> str:
    """Return the bucket key of a container's entry; without a container, of its source's entry."""
    source = f"{encode_token(host)}.{encode_token(engine)}"
    return f"{source}.{encode_token(namespace)}.{encode_token(container)}" if container else source
