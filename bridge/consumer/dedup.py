"""Deduplication of a source's records, because delivery is at least once. Pure.

Received positions are stored as ranges, separated by gaps, so that a record that arrives late is not taken for a
duplicate. At most ``MAX_GAPS`` gaps are stored. The oldest are evicted, and records that arrive for them later count as
duplicates.
"""

from __future__ import annotations

from bisect import bisect_right

from bridge.consumer.record_decoder import DecodedRecord, Position

MAX_GAPS = 1000
REPEATING_TYPES = frozenset({"heartbeat", "source_retired"})
"""The types of records that take no position of their own, but have that of the last record before them."""


class Deduplicator:
    """The received positions of one source."""

    def __init__(self, max_gaps: int = MAX_GAPS) -> None:
        self._max_gaps = max_gaps
        self._starts: list[Position] = []  # start of each range, in order
        self._ends: list[Position] = []
        self._evicted_up_to: Position = (0, 0)

    def accept(self, record: DecodedRecord) -> bool:
        """Add a record and return whether it is new; one that repeats a position on purpose always is."""
        if record.type in REPEATING_TYPES:
            return True
        if record.position <= self._evicted_up_to or self.covers(record.position, record.position):
            return False
        self._add(_first_position(record), record.position)
        return True

    @property
    def newest(self) -> Position:
        """The highest position that has arrived; (0, 0) if none has."""
        return self._ends[-1] if self._ends else (0, 0)

    def covers(self, first: Position, last: Position) -> bool:
        """Return whether all positions from ``first`` to ``last``, inclusive, of an epoch have arrived."""
        at = bisect_right(self._starts, first) - 1
        return at >= 0 and last <= self._ends[at]

    def _add(self, first: Position, last: Position) -> None:
        """Add a range, merged with the ranges that it overlaps or touches; a range never spans epochs."""
        begin = bisect_right(self._ends, (first[0], first[1] - 2))  # ranges before this index do not touch the new one
        end = bisect_right(self._starts, (last[0], last[1] + 1))
        if begin < end:
            first, last = min(first, self._starts[begin]), max(last, self._ends[end - 1])
        self._starts[begin:end], self._ends[begin:end] = [first], [last]
        if len(self._starts) > self._max_gaps + 1:
            self._evicted_up_to = self._ends[0]
            del self._starts[0], self._ends[0]


def _first_position(record: DecodedRecord) -> Position:
    """Return the first position that a record stands for; a loss with an invalid range stands for its own only."""
    lost = record.lost
    if lost and lost.epoch == record.epoch and lost.first <= lost.last == record.sequence:
        return (lost.epoch, lost.first)
    return record.position
