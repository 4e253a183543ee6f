"""What a watch can be told; the defaults are DESIGN's."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from bridge.core.labels import LabelRules
from bridge.core.model import Metadata


class WatchSettings(Struct, frozen=True, kw_only=True):
    """How to watch; times in seconds.

    ``namespaces`` tells which namespaces are watched, ``publishes`` whether a container's lives are told; ``scope``
    tells one choice of them and of ``rules`` from another, also after a restart. A mark every
    ``mark_interval`` proves the stream; one that is not back after ``mark_timeout``, while nothing else arrives
    either, means that containerd hangs: both together stay below the 30 s in which that is to be noticed.
    """

    host: str
    namespaces: Callable[[str], bool]
    publishes: Callable[[Metadata | None], bool]
    rules: LabelRules
    scope: str = ""
    snapshot_interval: float = 6 * 3600
    first_audit: float = 30
    audit_interval: float = 300
    mark_interval: float = 10
    mark_timeout: float = 10
    namespace_attempts: int = 3
    lookups: int = 64
    questions: int = 16
