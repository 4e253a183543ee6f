"""Subjects, and keys of buckets, from what records say. Pure.

Whatever a container, a namespace or a host is called, it becomes one token of ``[A-Za-z0-9_=-]``: no wildcard, no
dot, no blank gets through. Different values give different tokens, and a token has a bounded length, because a server
ends a connection whose control line exceeds 4 KiB.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.core.events import Record

_FIELDS = ("host", "namespace", "project", "type")
MAX_TOKEN = 200  # characters
_DIGEST = 16  # characters

_OTHERS = re.compile(rb"[^A-Za-z0-9_-]")
_WRITTEN = re.compile(rb"=([0-9A-F]{2})")


@lru_cache(maxsize=4096)  # few hosts, namespaces and types; container ids come and go
def token(value: str) -> str:
    """Write ``value`` as one token: other bytes than ``[A-Za-z0-9_-]`` as ``=HH``, nothing as ``_``.

    What gets too long is cut, and ends in ``==`` and a digest of the whole.
    """
    plain = value.encode(errors="surrogatepass")
    written = _OTHERS.sub(lambda found: b"=%02X" % found[0][0], plain).decode("ascii")
    if len(written) <= MAX_TOKEN:
        return written or "_"
    room = MAX_TOKEN - _DIGEST - 2
    kept = written[:room]
    cut = kept.rfind("=", room - 2)  # never through the midst of =HH
    return f"{kept[:cut] if cut > 0 else kept}=={sha256(plain).hexdigest()[:_DIGEST]}"


def read_token(written: str) -> str:
    """Read what ``token`` wrote; of what was cut, its beginning and its digest."""
    if written == "_":
        return ""
    return _WRITTEN.sub(lambda found: bytes([int(found[1], 16)]), written.encode()).decode(errors="surrogatepass")


class Subjects:
    """Makes the subject of each record.

    Args:
        prefix: What all of them begin with, tokens parted by dots.
        template: What follows the prefix and a dot; ``{host}``, ``{namespace}``, ``{project}`` and ``{type}`` stand
            for the record's.
    """

    def __init__(self, prefix: str, template: str) -> None:
        self._format = f"{prefix}.{template}".format
        self.pattern = self._format(**dict.fromkeys(_FIELDS, "*"))
        """What all of them fit, as a subscription would name it."""

    def of(self, record: Record) -> str:
        """Return the subject of ``record``; frames have no namespace and no project, so ``_`` stands there."""
        return self._format(
            host=token(record.host),
            namespace=token(record.namespace),
            project=token(record.project),
            type=token(record.type),
        )


def collide(pattern: str, other: str) -> bool:
    """Tell whether some subject fits both patterns."""
    left, right = pattern.split("."), other.split(".")
    for one, another in zip(left, right, strict=False):
        if ">" in (one, another):
            return True
        if "*" not in (one, another) and one != another:
            return False
    return len(left) == len(right)


def covered(pattern: str, by: Iterable[str]) -> bool:
    """Tell whether one of ``by`` takes every subject that fits ``pattern``."""
    return any(_takes(each.split("."), pattern.split(".")) for each in by)


def _takes(wide: list[str], narrow: list[str]) -> bool:
    for one, another in zip(wide, narrow, strict=False):
        if one == ">":
            return True
        if another == ">" or one not in ("*", another):
            return False
    return len(wide) == len(narrow)


def state_key(host: str, engine: str, namespace: str = "", container: str = "") -> str:
    """Return the key in a bucket of a container's state, or, without a container, of its source's."""
    source = f"{token(host)}.{token(engine)}"
    return f"{source}.{token(namespace)}.{token(container)}" if container else source
