"""Count events that do not concern a container, and failed queries; log them, and missing events, at a limited rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import structlog

from bridge.core.container_state import Transition
from bridge.core.containerd_model import ContainerKey, Ignored, Marker, Undecodable
from bridge.core.errors import BridgeError
from bridge.core.ports import Clock
from bridge.telemetry.rate_limit import RateLimiter

_log = structlog.get_logger(__name__)


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

    def starts_inferred(self, transitions: Iterable[Transition]) -> None:
        """Log the starts that a query has found while the events arrived: the event of the start is missing."""
        for each in transitions:
            if each.type == "started" and each.origin == "inferred":
                runtime = each.metadata.runtime if each.metadata is not None else ""
                fields = {"namespace": each.key.namespace, "id": each.key.id, "runtime": runtime}
                self._rate_limiter.log(_log.warning, ("start", runtime), "start_event_missing", **fields)
