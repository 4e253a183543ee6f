"""What a watch can be told; the defaults are DESIGN's."""

from __future__ import annotations

from collections.abc import Callable, Collection

from msgspec import Struct

from bridge.core.events import ExtraType
from bridge.core.identity import Scope, everything
from bridge.core.labels import LabelRules


class WatchSettings(Struct, frozen=True, kw_only=True):
    """How to watch; times in seconds.

    ``namespaces`` tells which namespaces are watched, ``in_scope`` whether a container's lives are told; ``scope``
    tells one choice of them and of ``rules`` from another, also after a restart. ``extras`` are the types of records
    that are told only where they are asked for. A mark every
    ``mark_interval`` proves the stream; one that is not back after ``mark_timeout``, while nothing else arrives
    either, means that containerd hangs: both together stay below the 30 s in which that is to be noticed.
    """

    host: str
    namespaces: Callable[[str], bool]
    rules: LabelRules
    in_scope: Scope = everything
    scope: str = ""
    extras: Collection[ExtraType] = ()
    snapshot_interval: float = 6 * 3600
    first_audit: float = 30
    audit_interval: float = 300
    mark_interval: float = 10
    mark_timeout: float = 10
    namespace_attempts: int = 3
    lookups: int = 64
    questions: int = 16
