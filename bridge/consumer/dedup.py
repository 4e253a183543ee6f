"""Deduplication of a source's records, because delivery is at least once, and the holes in them. Pure.

Received positions are stored as ranges, separated by gaps, so that a record that arrives late is not taken for a
duplicate. At most ``MAX_GAPS`` gaps are stored. The oldest are evicted, and records that arrive for them later count as
duplicates.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from msgspec import Struct

from bridge.consumer.record_decoder import REPEATING_TYPES, DecodedRecord, Position

MAX_GAPS = 1000
_ORIGIN: Position = (0, 0)


class SequenceRange(NamedTuple):
    """Sequences of an epoch, from ``first`` to ``last``, inclusive."""

    epoch: int
    first: int
    last: int


class Positions(Struct, frozen=True, omit_defaults=True):
    """Received positions as stored: ranges, up to where older ones were evicted, and the links between epochs."""

    ranges: list[tuple[Position, Position]] = []
    evicted_up_to: Position = (0, 0)
    previous: list[tuple[int, Position]] = []
    expected: Position = (0, 0)


class Deduplicator:
    """The received positions of one source."""

    def __init__(self, positions: Positions | None = None, max_gaps: int = MAX_GAPS) -> None:
        positions = positions or Positions()
        self._max_gaps = max_gaps
        self._starts = [start for start, _ in positions.ranges]  # start of each range, in order
        self._ends = [end for _, end in positions.ranges]
        self._evicted_up_to = positions.evicted_up_to
        self._previous = dict(positions.previous)  # by epoch: the last position before it
        self._expected = positions.expected  # the highest position that a heartbeat has named

    def accept(self, record: DecodedRecord) -> bool:
        """Add a record and return whether it is new; one that repeats a position on purpose always is."""
        if record.type in REPEATING_TYPES:
            return True
        position = record.position
        if position <= self._evicted_up_to or self.covers(position, position):
            return False
        ends = self._ends
        if record.lost is None and ends and ends[-1] == (position[0], position[1] - 1):
            ends[-1] = position  # the usual case, quickly
        else:
            self._add(_first_position(record), position)
        return True

    def covers(self, first: Position, last: Position) -> bool:
        """Return whether all positions from ``first`` to ``last``, inclusive, of an epoch have arrived."""
        at = bisect_right(self._starts, first) - 1
        return at >= 0 and last <= self._ends[at]

    def link(self, epoch: int, previous: Position) -> None:
        """Remember the last position before an epoch; one that is not before it is ignored."""
        if previous[0] >= epoch:
            return  # ``is_linked`` would not end
        self._previous[epoch] = previous
        if len(self._previous) > self._max_gaps:
            del self._previous[min(self._previous)]

    def is_linked(self, first: int, last: int) -> bool:
        """Return whether each epoch after ``first`` up to ``last`` says which position precedes it."""
        while last > first and last in self._previous:
            last = self._previous[last][0]
        return last <= first

    def expect(self, position: Position) -> None:
        """Remember that all positions up to this one, of its epoch, were sent."""
        self._expected = max(self._expected, position)

    def missing(self) -> list[SequenceRange]:
        """Return the sequences that have not arrived although later records say that they exist, in order.

        What precedes the first position that has arrived does not count, nor what was evicted.
        """
        floor = self._evicted_up_to
        if floor == _ORIGIN:
            if not self._starts:
                return []
            floor = (self._starts[0][0], self._starts[0][1] - 1)
        last_sent: dict[int, int] = {}  # by epoch
        for epoch, sequence in (self._expected, *self._previous.values(), *self._ends):
            last_sent[epoch] = max(sequence, last_sent.get(epoch, 0))
        result = []
        for epoch, last in sorted(last_sent.items()):
            received = [pair for pair in zip(self._starts, self._ends, strict=True) if pair[0][0] == epoch]
            before = floor[1] if floor[0] == epoch else 0
            for (_, first), (_, end) in (*received, ((epoch, last + 1), (epoch, last + 1))):
                if first > before + 1 and (epoch, first - 1) > floor:
                    result.append(SequenceRange(epoch, before + 1, first - 1))
                before = max(before, end)
        return result

    def positions(self) -> Positions:
        """Return the positions in the form in which they are stored."""
        ranges = list(zip(self._starts, self._ends, strict=True))
        return Positions(ranges, self._evicted_up_to, list(self._previous.items()), self._expected)

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
