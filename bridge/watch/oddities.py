"""Count events that do not concern a container, and failed queries; log them at a limited rate."""

from __future__ import annotations

from collections import Counter

import structlog

from bridge.core.errors import BridgeError
from bridge.core.model import ContainerKey, Ignored, Mark, Undecodable
from bridge.core.ports import Clock
from bridge.telemetry.sparingly import Sparingly

_log = structlog.get_logger(__name__)


class Oddities:
    """Count ignored and unknown topics, undecodable payloads, foreign markers, and failed task queries."""

    def __init__(self, clock: Clock) -> None:
        self.counts: Counter[str] = Counter()
        self._sparingly = Sparingly(clock)

    def note(self, oddity: Ignored | Undecodable | Mark) -> None:
        """Count an ignored event; log it if it is unexpected."""
        match oddity:
            case Mark():
                self.counts["foreign_marker"] += 1
            case Ignored(known=True):
                self.counts["ignored"] += 1
            case Ignored(topic=topic):
                self.counts["unknown"] += 1
                self._sparingly.say(_log.warning, ("unknown", topic), "event_topic_unknown", topic=topic)
            case Undecodable(topic=topic, reason=reason):
                self.counts["undecodable"] += 1
                self._sparingly.say(
                    _log.warning, ("undecodable", topic), "event_decode_failed", topic=topic, error=reason
                )

    def unanswered(self, key: ContainerKey, error: BridgeError) -> None:
        """Count and log a failed task query."""
        self.counts["query_failed"] += 1
        fields = {"namespace": key.namespace, "id": key.id, "error": str(error)}
        self._sparingly.say(_log.warning, ("query_failed", key.namespace), "task_state_unknown", **fields)
