"""A sink's queue: its cursor, and the losses that replace records that the sink does not get. Pure.

Records have positions, counted from 0 in the order of appends. The cursor is the position of the first record that the
sink has not acknowledged, as with the offsets of Kafka consumers. Both outboxes use this module.

Invariants:
- The sink has acknowledged every record before the cursor, or its loss.
- Loss ranges are at or after the cursor, in order, and do not overlap. A later loss never includes records in flight,
  so that their acknowledgement cannot contradict the loss.
- A loss record is persisted before it is read, and never changes afterwards.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from msgspec import Struct

from bridge.core.encode import lost_record
from bridge.core.events import LossReason, Record


class Cover(Struct, frozen=True):
    """A ``lost`` record that replaces the records from position ``first`` to before ``end``.

    ``sequence`` is the first replaced record's, ``size`` the number of replaced bytes.
    """

    first: int
    end: int
    sequence: int
    size: int
    reason: LossReason
    record: Record


class Batch(NamedTuple):
    """Records in flight; ``ends`` has the position after each record, or after the records that it replaces."""

    records: Sequence[Record]
    ends: Sequence[int]

    def split(self, number: int) -> tuple[Batch, Batch]:
        """Return the first ``count`` records, and the others."""
        first, rest = slice(None, number), slice(number, None)
        return Batch(self.records[first], self.ends[first]), Batch(self.records[rest], self.ends[rest])

    def within(self, limit: int, max_bytes: int) -> Batch:
        """Return as many records as the limits allow, at least one."""
        for number, record in enumerate(self.records):
            max_bytes -= len(record.data)
            if number and (number == limit or max_bytes < 0):
                return self.split(number)[0]
        return self


NO_BATCH = Batch((), ())


class Stretch(NamedTuple):
    """A range of positions from ``first`` to before ``end``."""

    first: int
    end: int


class Lane:
    """The state of one sink's queue.

    ``size`` is how many bytes of records still wait for it, ``lost`` how many were dropped for want of room. ``since``
    (monotonic) is when the oldest of those that wait was appended, or a little earlier.
    """

    def __init__(self, cursor: int, *, covers: Iterable[Cover] = (), size: int = 0, since: int = 0) -> None:
        self.cursor = cursor
        self.covers: list[Cover] = [cover for cover in covers if cover.end > cursor]
        self.size = size
        self.since = since
        self.lost = 0
        self.handed = NO_BATCH
        self.filled = asyncio.Event()
        self.changing = asyncio.Lock()  # held while records are selected for reading or dropping

    @property
    def ahead(self) -> int:
        """The first position after the records in flight."""
        return self.handed.ends[-1] if self.handed.ends else self.cursor

    @property
    def open(self) -> int:
        """The first position that can still be dropped."""
        return max(self.ahead, self.covers[-1].end) if self.covers else self.ahead

    def depth(self, end: int) -> int:
        """Return the number of records, loss records included, from the cursor to ``end``."""
        return end - self.cursor - sum(cover.end - cover.first - 1 for cover in self.covers)

    def plan(self, end: int) -> Iterator[Cover | Stretch]:
        """Iterate over what to read from the cursor to ``end``: ranges of records, and losses."""
        position = self.cursor
        for cover in self.covers:
            if position < cover.first:
                yield Stretch(position, cover.first)
            yield cover
            position = cover.end
        if position < end:
            yield Stretch(position, end)

    def unneeded(self) -> list[Stretch]:
        """Return the ranges whose records this sink no longer needs."""
        return [Stretch(0, self.cursor), *(Stretch(cover.first, cover.end) for cover in self.covers)]

    def acknowledge(self, batch: Sequence[Record]) -> list[Cover]:
        """Advance the cursor past an acknowledged batch; return the losses whose records are in it.

        Raises:
            ValueError: The batch is not the beginning of the records in flight.
        """
        done, rest = self.handed.split(len(batch))
        if len(done.records) < len(batch) or (batch and batch[-1] is not done.records[-1]):
            raise ValueError("acknowledged batch is not the beginning of the last read")
        self.handed = rest
        self.cursor = done.ends[-1] if done.ends else self.cursor
        passed = [loss for loss in self.covers if loss.end <= self.cursor]
        self.covers = self.covers[len(passed) :]
        self.size += sum(len(loss.record.data) for loss in passed)  # not part of the size, but subtracted below
        self.size -= sum(len(record.data) for record in done.records)
        return passed

    def loss_to_extend(self, epoch: int, sequence: int) -> Cover | None:
        """Return the loss that a drop at ``first_droppable`` extends, given its first epoch and sequence; or None."""
        last = self.covers[-1] if self.covers else None
        if last is None or last.reason != "overflow" or last.first < self.ahead:
            return None
        return last if last.record.epoch == epoch and last.record.sequence + 1 == sequence else None

    def lose(self, covers: Sequence[Cover], size: int) -> None:
        """Add losses of ``size`` bytes from ``first_droppable`` on; an extended loss is replaced."""
        first = covers[0].first
        unchanged = [loss for loss in self.covers if loss.end <= first]
        extended = self.covers[len(unchanged) :]
        self.lost += sum(map(_length, covers)) - sum(map(_length, extended))
        self.covers = [*unchanged, *covers]
        self.size -= size

    def replace(self, covers: Sequence[Cover]) -> None:
        """Add the losses of rejected records; the records in flight have to be read again."""
        self.handed = NO_BATCH
        self.covers = sorted([*self.covers, *covers], key=lambda cover: cover.first)
        self.size -= sum(cover.size for cover in covers)


def _length(cover: Cover) -> int:
    return cover.end - cover.first


def refusals(handed: Batch, positions: Collection[tuple[int, int]], now: int) -> list[Cover]:
    """Return losses that replace the rejected records at ``positions`` (epoch, sequence).

    Loss records are never replaced.
    """
    return [
        Cover(
            end - 1,
            end,
            record.sequence,
            len(record.data),
            "rejected",
            lost_record(record, record.sequence, "rejected", now),
        )
        for record, end in zip(handed.records, handed.ends, strict=True)
        if (record.epoch, record.sequence) in positions and record.type != "lost"
    ]


def unneeded_by_all(lanes: Iterable[Lane]) -> list[Stretch]:
    """Return the ranges whose records no sink needs any more."""
    common = [Stretch(0, sys.maxsize)]
    for lane in lanes:
        common = list(intersection(common, lane.unneeded()))
    return common


def intersection(ours: Iterable[Stretch], theirs: Sequence[Stretch]) -> Iterator[Stretch]:
    """Return the positions that are in both sequences of ranges."""
    for one in ours:
        for other in theirs:
            first, end = max(one.first, other.first), min(one.end, other.end)
            if first < end:
                yield Stretch(first, end)
