"""Counters of a running bridge, for the metrics and the status page: plain numbers that are cheap to update."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from itertools import accumulate

from msgspec import Struct

from bridge.core.container_state import Transition
from bridge.core.exit_counts import ExitCounts
from bridge.core.record_encoder import Gap, SnapshotCoverage
from bridge.core.records import AdditionalEventType, Origin, SnapshotReason, SnapshotRecordType, TransitionType
from bridge.core.time import to_seconds

MAX_RECENT_SNAPSHOTS = 20
GAP_REASONS: frozenset[SnapshotReason] = frozenset(
    {"start", "reconnect", "overflow", "audit", "outbox_reset", "second_bridge"}
)
BUCKET_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class SnapshotSummary(Struct, frozen=True):
    """A published snapshot: ``at`` is its wall clock time, ``inferred`` counts its inferred transitions."""

    id: str
    at: int
    gap: Gap
    coverage: SnapshotCoverage
    containers: int
    inferred: int


class Counters:
    """Counters since the start of the process, across connections and sources; ``exits`` continue across restarts.

    Snapshots on demand or on schedule are not counted as ``gaps``, because no events were missed.
    """

    def __init__(self) -> None:
        self.exits = ExitCounts()
        self.records: Counter[tuple[TransitionType | SnapshotRecordType | AdditionalEventType, Origin]] = Counter()
        self.snapshots: Counter[SnapshotReason] = Counter()
        self.gaps: Counter[SnapshotReason] = Counter()
        self.gap_seconds: defaultdict[SnapshotReason, float] = defaultdict(float)
        self.reconnects = 0
        self.recent_snapshots: deque[SnapshotSummary] = deque(maxlen=MAX_RECENT_SNAPSHOTS)

    def count_records(self, transitions: Sequence[Transition]) -> None:
        """Count the records of transitions, or of a snapshot's containers."""
        for each in transitions:  # as a rule one, for which Counter.update() takes several times as long
            self.records[each.type, each.origin] += 1
        self.exits.count(transitions)

    def count_snapshot(self, summary: SnapshotSummary) -> None:
        """Count a snapshot; ``count_records`` counts its records."""
        gap = summary.gap
        self.recent_snapshots.append(summary)
        self.snapshots[gap.reason] += 1
        if gap.reason in GAP_REASONS and (gap.reason != "audit" or summary.inferred):
            self.gaps[gap.reason] += 1
            if gap.since is not None and gap.until is not None:
                self.gap_seconds[gap.reason] += to_seconds(max(0, gap.until - gap.since))


class Histogram:
    """Counts durations by bucket; ``total`` is the sum of the durations, in seconds."""

    def __init__(self) -> None:
        self.total = 0.0
        self._counts = [0] * (len(BUCKET_BOUNDS) + 1)

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(BUCKET_BOUNDS, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> list[int]:
        """Return the number of durations up to each of ``BUCKET_BOUNDS``, then the number of all durations."""
        return list(accumulate(self._counts))
