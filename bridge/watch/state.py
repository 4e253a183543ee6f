"""The state of a watch that outlives connections, and the counts of events without a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache

import structlog

from bridge.core.checkpoint import SourceId
from bridge.core.container_state import Transition
from bridge.core.containerd_model import ContainerKey, Ignored, Instant, Marker, Metadata, Undecodable
from bridge.core.errors import BridgeError
from bridge.core.label_rules import LabelRules
from bridge.core.ports import Clock, EngineClient, Outbox
from bridge.core.records import SnapshotReason, SourcePosition
from bridge.core.tracker import Tracker
from bridge.telemetry.counters import Counters
from bridge.telemetry.rate_limit import RateLimiter
from bridge.watch.cri import CRI
from bridge.watch.event_queue import EventQueue
from bridge.watch.image_digests import ImageDigests
from bridge.watch.second_bridges import SecondBridges
from bridge.watch.settings import WatchSettings
from bridge.watch.snapshot_requests import SnapshotRequests

_MAX_CACHED_NAMESPACES = 1024  # cached results of the namespace filter
_log = structlog.get_logger(__name__)


class WatchState:
    """What one connection leaves to the next; with a persistent outbox, most of it survives the process as well.

    Attributes:
        tracker: The state of the containers.
        event_queue: Events that are received, and not processed yet.
        pending: Transitions that are decided, and not published yet: they go into the next snapshot.
        watermark_at: The moment (wall clock) up to which all events are processed; None if unknown.
        verified_at: The moment (monotonic) up to which the event stream is known to work; None before the first marker.
        synced: Whether the first snapshot of the current connection is complete; until then, transitions are pending.
        snapshot_reason: The reason of the next connection's snapshot.
        previous_positions: The last position of each source that was published before.
        excluded_namespaces: If no namespace is watched: those that exist.
    """

    def __init__(
        self,
        client: EngineClient,
        outbox: Outbox,
        clock: Clock,
        settings: WatchSettings,
        boot_id: str,
        *,
        publishes: bool,
    ) -> None:
        self.client = client
        self.outbox = outbox
        self.clock = clock
        self.boot_id = boot_id
        self.settings = settings
        self.is_watched = _cached(settings.namespace_filter)
        self.tracker = Tracker(boot_id, settings.additional_events)
        self.event_queue = EventQueue(self.container, clock, lambda: self.settings)
        self.cri = CRI(client, clock, lambda: self.settings)
        self.image_digests = ImageDigests(client, clock, self._known_metadata)
        self.pending: list[Transition] = []
        self.watermark_at: int | None = None
        self.verified_at: int | None = None
        self.synced = False
        self.snapshot_reason: SnapshotReason = "start"
        self.previous_positions: dict[SourceId, SourcePosition | None] = {}
        self.excluded_namespaces: list[str] = []
        self.requests = SnapshotRequests(clock)
        self.counters = Counters()
        self.ignored_events = IgnoredEvents(clock)
        self.second_bridges = SecondBridges(clock, settings.host, publishes=publishes)

    def reload(self, settings: WatchSettings) -> bool:
        """Apply other settings; return whether filters or label rules change, so that a snapshot must follow."""
        filters_changed = settings.filter_fingerprint != self.settings.filter_fingerprint
        if filters_changed:
            self.tracker.apply_label_rules(settings.label_rules)
            self._apply_label_rules(settings.label_rules)
        self.settings, self.is_watched = settings, _cached(settings.namespace_filter)
        self.tracker.additional_events = settings.additional_events
        return filters_changed

    def apply_filters(self, *, selection_changed: bool) -> None:
        """Apply the current filters and label rules to all that is tracked.

        ``selection_changed``: other containers may be selected, so that no namespace is synced afterwards.
        """
        if selection_changed:
            self.tracker.apply_filters(self.settings.namespace_filter)
        self.tracker.apply_label_rules(self.settings.label_rules)
        self._apply_label_rules(self.settings.label_rules)

    def _apply_label_rules(self, rules: LabelRules) -> None:
        self.pending = [transition.with_label_rules(rules) for transition in self.pending]

    async def container(self, key: ContainerKey) -> Metadata | None:
        """Return a container's current metadata, with its image's digest, and labels of its pod that only CRI knows.

        Errors are those of ``EngineClient.container``.
        """
        metadata = await self.client.container(key)
        if metadata is None:
            return None
        if metadata.kind != "sandbox" and self.tracker.pod_labels(metadata) is None:
            metadata = await self.cri.with_pod_labels(metadata)
        return await self.image_digests.add(metadata)

    def _known_metadata(self, key: ContainerKey) -> Metadata | None:
        entry = self.tracker.find(key)
        return None if entry is None else entry.metadata

    def replace_tracker(self, tracker: Tracker) -> None:
        """Replace the tracker, and keep its counts."""
        tracker.counts = self.tracker.counts
        self.tracker = tracker

    def disconnect(self) -> None:
        """Handle the end of a connection: from now on containers may change unseen."""
        self.tracker.disconnect()
        self.synced, self.excluded_namespaces = False, []

    def advance_watermark(self, sent: Instant) -> None:
        """Record that all events from before ``sent`` are processed."""
        self.watermark_at = sent.wall


def _cached(namespace_filter: Callable[[str], bool]) -> Callable[[str], bool]:
    return lru_cache(maxsize=_MAX_CACHED_NAMESPACES)(namespace_filter)


class IgnoredEvents:
    """Count ignored and unknown topics, undecodable payloads, foreign markers, and failed task queries."""

    def __init__(self, clock: Clock) -> None:
        self.counts: Counter[str] = Counter()
        self._rate_limiter = RateLimiter(clock)

    def record(self, event: Ignored | Undecodable | Marker) -> None:
        """Count an ignored event; log it if it is unexpected."""
        match event:
            case Marker():
                self.counts["foreign_marker"] += 1
            case Ignored(known=True):
                self.counts["ignored"] += 1
            case Ignored(topic=topic):
                self.counts["unknown"] += 1
                self._rate_limiter.log(_log.warning, ("unknown", topic), "event_topic_unknown", topic=topic)
            case Undecodable(topic=topic, reason=reason):
                self.counts["undecodable"] += 1
                self._rate_limiter.log(
                    _log.warning, ("undecodable", topic), "event_decode_failed", topic=topic, error=reason
                )

    def query_failed(self, key: ContainerKey, error: BridgeError) -> None:
        """Count and log a failed task query."""
        self.counts["query_failed"] += 1
        fields = {"namespace": key.namespace, "id": key.id, "error": str(error)}
        self._rate_limiter.log(_log.warning, ("query_failed", key.namespace), "task_state_unknown", **fields)

    def starts_inferred(self, transitions: Iterable[Transition], connected_at: int) -> None:
        """Log the starts that a query has found while the events arrived: the event of the start is missing.

        Starts from before ``connected_at`` (wall clock), which CRI remembers, fell into a gap.
        """
        for each in transitions:
            is_in_gap = each.started_at is not None and each.started_at < connected_at
            if each.type == "started" and each.origin == "inferred" and not is_in_gap:
                runtime = each.metadata.runtime if each.metadata is not None else ""
                fields = {"namespace": each.key.namespace, "id": each.key.id, "runtime": runtime}
                hint = "if this repeats for a runtime, check whether its shim reaches containerd's ttrpc socket"
                self._rate_limiter.log(_log.warning, ("start", runtime), "start_event_missing", **fields, hint=hint)
