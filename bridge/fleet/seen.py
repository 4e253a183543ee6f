"""Which positions of a source have come already: delivery is at least once. Pure.

What has come is kept in ranges, one for each hole between them, so that a record that was overtaken is not taken for a
repetition. Of holes, no more than ``HOLES`` are remembered: the oldest are given up, and what comes of them later is
taken for a repetition.
"""

from __future__ import annotations

from bisect import bisect_right

from bridge.fleet.documents import Document, Position

HOLES = 1000


class Seen:
    """The positions of one source that have come."""

    def __init__(self, holes: int = HOLES) -> None:
        self._holes = holes
        self._first: list[Position] = []  # of each range, in order
        self._last: list[Position] = []
        self._given_up: Position = (0, 0)

    def take(self, document: Document) -> bool:
        """Note a record; tell whether it is new. A heartbeat repeats a position on purpose, and always is."""
        if document.type == "heartbeat":
            return True
        if document.position <= self._given_up or self._has(document.position):
            return False
        lost = document.lost
        first = (lost.epoch, lost.first) if lost and lost.last == document.sequence else document.position
        self._add(first, document.position)
        return True

    def whole(self, first: Position, last: Position) -> bool:
        """Tell whether everything of an epoch between two positions has come, these included."""
        at = bisect_right(self._first, first) - 1
        return at >= 0 and last <= self._last[at]

    def _has(self, position: Position) -> bool:
        at = bisect_right(self._first, position) - 1
        return at >= 0 and position <= self._last[at]

    def _add(self, first: Position, last: Position) -> None:
        """Add a range, with all that it overlaps and touches; a range never spans epochs."""
        begin = bisect_right(self._last, (first[0], first[1] - 2))  # those before end where nothing touches
        end = bisect_right(self._first, (last[0], last[1] + 1))
        if begin < end:
            first, last = min(first, self._first[begin]), max(last, self._last[end - 1])
        self._first[begin:end], self._last[begin:end] = [first], [last]
        if len(self._first) > self._holes + 1:
            self._given_up = self._last[0]
            del self._first[0], self._last[0]
