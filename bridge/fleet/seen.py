"""Deduplication of a source's records, because delivery is at least once. Pure.

Received positions are stored as ranges, separated by gaps, so that a record that arrives late is not taken for a
duplicate. At most ``MAX_GAPS`` gaps are stored. The oldest are evicted, and records that arrive for them later count as
duplicates.
"""

from __future__ import annotations

from bisect import bisect_right

from bridge.fleet.documents import Document, Position

HOLES = 1000


class Seen:
    """The received positions of one source."""

    def __init__(self, holes: int = HOLES) -> None:
        self._holes = holes
        self._first: list[Position] = []  # start of each range, in order
        self._last: list[Position] = []
        self._given_up: Position = (0, 0)

    def take(self, document: Document) -> bool:
        """Add a record and return whether it is new; a heartbeat always is, since it repeats a position on purpose."""
        if document.type == "heartbeat":
            return True
        if document.position <= self._given_up or self._has(document.position):
            return False
        lost = document.lost
        first = (lost.epoch, lost.first) if lost and lost.last == document.sequence else document.position
        self._add(first, document.position)
        return True

    def whole(self, first: Position, last: Position) -> bool:
        """Return whether all positions from ``first`` to ``last``, inclusive, of an epoch have arrived."""
        at = bisect_right(self._first, first) - 1
        return at >= 0 and last <= self._last[at]

    def _has(self, position: Position) -> bool:
        at = bisect_right(self._first, position) - 1
        return at >= 0 and position <= self._last[at]

    def _add(self, first: Position, last: Position) -> None:
        """Add a range, merged with the ranges that it overlaps or touches; a range never spans epochs."""
        begin = bisect_right(self._last, (first[0], first[1] - 2))  # ranges before this index do not touch the new one
        end = bisect_right(self._first, (last[0], last[1] + 1))
        if begin < end:
            first, last = min(first, self._first[begin]), max(last, self._last[end - 1])
        self._first[begin:end], self._last[begin:end] = [first], [last]
        if len(self._first) > self._holes + 1:
            self._given_up = self._last[0]
            del self._first[0], self._last[0]
