"""Settings of a watch, with their defaults."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from msgspec import Struct

from bridge.core.filters import ContainerPredicate, match_all
from bridge.core.label_rules import LabelRules
from bridge.core.records import AdditionalEventType


class WatchSettings(Struct, frozen=True, kw_only=True):
    """How to watch; times in seconds.

    ``namespace_filter`` selects the namespaces to watch, ``container_filter`` the containers to publish.
    ``filter_fingerprint`` identifies both filters and ``label_rules``, also across restarts, ``selection_fingerprint``
    both filters alone. ``additional_events`` are the optional event types to publish, ``attributes`` those of every
    record. ``keeps_checkpoint``: the outbox keeps it for the next start. ``uses_cri``: complete exits and labels of
    pods from CRI. A marker verifies the stream every ``marker_interval``. If no marker returns within
    ``marker_timeout``, and nothing else arrives, containerd hangs. The sum of both must be below 30 s, the time within
    which a hung containerd must be detected.
    """

    host: str
    namespace_filter: Callable[[str], bool]
    label_rules: LabelRules
    container_filter: ContainerPredicate = match_all
    filter_fingerprint: str = ""
    selection_fingerprint: str = ""
    additional_events: Collection[AdditionalEventType] = ()
    attributes: Mapping[str, str] = MappingProxyType({})
    keeps_checkpoint: bool = True
    uses_cri: bool = True
    snapshot_interval: float = 6 * 3600
    first_audit_delay: float = 30
    audit_interval: float = 300
    marker_interval: float = 10
    marker_timeout: float = 10
    namespace_attempts: int = 3
    max_fetches: int = 64
    max_queries: int = 16
