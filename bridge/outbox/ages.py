"""When records were appended, coarsely: it tells how old the oldest one is that waits. Pure, and bounded."""

from __future__ import annotations

from bisect import bisect_right

_MOST = 1024  # milestones; beyond that every other one is forgotten, and they come half as often
_SECOND = 1_000_000_000


class Ages:
    """Milestones: from which position on records are not older than some moment (monotonic)."""

    def __init__(self) -> None:
        self._positions: list[int] = []
        self._moments: list[int] = []
        self._spacing = _SECOND

    def note(self, position: int, moment: int) -> None:
        """What has ``position`` and comes next is appended at this moment; of those close together the first counts."""
        if self._moments and moment - self._moments[-1] < self._spacing:
            return
        self._positions.append(position)
        self._moments.append(moment)
        if len(self._positions) > _MOST:
            del self._positions[1::2], self._moments[1::2]
            self._spacing *= 2

    def seconds(self, position: int, now: int) -> float:
        """Return how old the record at a position is, or a little more; 0 where nothing is known of it."""
        index = bisect_right(self._positions, position) - 1
        return max(0, now - self._moments[index]) / _SECOND if index >= 0 else 0.0

    def forget(self, before: int) -> None:
        """Records before a position are gone; the milestone that it lies behind stays."""
        gone = bisect_right(self._positions, before) - 1
        if gone > 0:
            del self._positions[:gone], self._moments[:gone]
            if len(self._positions) == 1:
                self._spacing = _SECOND
