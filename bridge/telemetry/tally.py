"""What a watch has told so far, counted, for whoever looks after the bridge."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence

from msgspec import Struct

from bridge.core.encode import Coverage, Gap
from bridge.core.events import ExtraType, Origin, Reason, RowType, TransitionType
from bridge.core.lives import Transition

SNAPSHOTS_KEPT = 20
ANNOUNCING: frozenset[Reason] = frozenset({"start", "reconnect", "overflow", "audit", "outbox_reset"})
_SECOND = 1_000_000_000


class SnapshotNote(Struct, frozen=True):
    """A snapshot that was told: when (wall clock), why, and of how many containers."""

    id: str
    at: int
    gap: Gap
    coverage: Coverage
    containers: int
    inferred: int


class Tally:
    """Counts for as long as the process runs, whatever becomes of connections and sources.

    A snapshot that was asked for, or whose time had come, is none of the ``gaps``: nothing was missed.
    """

    def __init__(self) -> None:
        self.told: Counter[tuple[TransitionType | RowType | ExtraType, Origin]] = Counter()
        self.snapshots: Counter[Reason] = Counter()
        self.gaps: Counter[Reason] = Counter()
        self.gap_seconds: defaultdict[Reason, float] = defaultdict(float)
        self.reconnects = 0
        self.last: deque[SnapshotNote] = deque(maxlen=SNAPSHOTS_KEPT)

    def tell(self, transitions: Sequence[Transition]) -> None:
        """Count transitions, or rows."""
        for each in transitions:
            self.told[each.type, each.origin] += 1

    def snapshot(self, note: SnapshotNote) -> None:
        """Count a snapshot; what is in it is counted by ``tell``."""
        gap = note.gap
        self.last.append(note)
        self.snapshots[gap.reason] += 1
        if gap.reason in ANNOUNCING and (gap.reason != "audit" or note.inferred):
            self.gaps[gap.reason] += 1
            if gap.since is not None and gap.until is not None:
                self.gap_seconds[gap.reason] += max(0, gap.until - gap.since) / _SECOND
