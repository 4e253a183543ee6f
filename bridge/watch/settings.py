"""Settings of a watch, with their defaults."""

from __future__ import annotations

from collections.abc import Callable, Collection

from msgspec import Struct

from bridge.core.events import ExtraType
from bridge.core.identity import Scope, everything
from bridge.core.labels import LabelRules


class WatchSettings(Struct, frozen=True, kw_only=True):
    """How to watch; times in seconds.

    ``namespace_filter`` selects the namespaces to watch, ``container_filter`` the containers to publish.
    ``filter_fingerprint`` identifies both filters and ``label_rules``, also across restarts. ``additional_events`` are
    the optional event types to publish. A marker verifies the stream every ``marker_interval``. If no marker returns
    within ``marker_timeout``, and nothing else arrives, containerd hangs. The sum of both must be below 30 s, the time
    within which a hung containerd must be detected.
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
