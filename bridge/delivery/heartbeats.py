"""Heartbeats: records without a change, which show the readers of a sink that they have missed nothing."""

from __future__ import annotations

from collections.abc import Callable

from bridge.core.record_encoder import heartbeat_record
from bridge.core.records import Record, Watermark


class HeartbeatFactory:
    """Makes the heartbeats of all pumps.

    Args:
        watermark: Returns the time up to which all of containerd's events are persisted; None if there is none yet.
        interval: Seconds between heartbeats; may be replaced at any time.
    """

    def __init__(self, watermark: Callable[[], Watermark | None], interval: float) -> None:
        self.interval = interval
        self._watermark = watermark
        self._count = 0

    def make(self, last: Record) -> Record | None:
        """Return a heartbeat for readers that have all records up to ``last``; None if the epochs differ."""
        watermark = self._watermark()
        if watermark is None or watermark.epoch != last.epoch:
            return None
        self._count += 1
        return heartbeat_record(last, watermark.at, self._count, self.interval)
