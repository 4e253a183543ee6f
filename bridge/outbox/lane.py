"""One sink's way through the outbox: a cursor, and what is told in the place of records that it does not get.

Records have positions, counted from 0 in the order in which they were appended. Pure, and the same for every outbox.

Invariants:
- Everything before the cursor was acknowledged, or its loss was.
- Covers lie behind the cursor, in order, without overlapping. What was handed out last is never covered by a loss that
  comes up afterwards: its acknowledgement cannot contradict it.
- A record that stands for others was written down before it is handed out, and never changes afterwards.
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
    """A ``lost`` record told in the place of those from position ``first`` to before ``end``.

    ``sequence`` is that of the first of them. ``size`` is how many bytes they were.
    """

    first: int
    end: int
    sequence: int
    size: int
    reason: LossReason
    record: Record


class Batch(NamedTuple):
    """Records that were handed out, and the position after each of them and whatever it stands for."""

    records: Sequence[Record]
    ends: Sequence[int]

    def split(self, number: int) -> tuple[Batch, Batch]:
        """Part the first ones from the others."""
        first, rest = slice(None, number), slice(number, None)
        return Batch(self.records[first], self.ends[first]), Batch(self.records[rest], self.ends[rest])

    def within(self, limit: int, max_bytes: int) -> Batch:
        """Return as many of them as the bounds allow, one at least."""
        for number, record in enumerate(self.records):
            max_bytes -= len(record.data)
            if number and (number == limit or max_bytes < 0):
                return self.split(number)[0]
        return self


NO_BATCH = Batch((), ())


class Stretch(NamedTuple):
    """Positions of which the records themselves are to be handed out."""

    first: int
    end: int


class Lane:
    """Where one sink stands.

    ``size`` is how many bytes of records still wait for it, ``lost`` how many were dropped for want of room.
    """

    def __init__(self, cursor: int, *, covers: Iterable[Cover] = (), size: int = 0) -> None:
        self.cursor = cursor
        self.covers: list[Cover] = [cover for cover in covers if cover.end > cursor]
        self.size = size
        self.lost = 0
        self.handed = NO_BATCH
        self.filled = asyncio.Event()
        self.changing = asyncio.Lock()  # held while records are chosen, to be handed out or to be dropped

    @property
    def ahead(self) -> int:
        """The first position that was not handed out."""
        return self.handed.ends[-1] if self.handed.ends else self.cursor

    @property
    def open(self) -> int:
        """The first position of a record that could still be dropped."""
        return max(self.ahead, self.covers[-1].end) if self.covers else self.ahead

    def depth(self, end: int) -> int:
        """Return how many records are to be handed out up to position ``end``."""
        return end - self.cursor - sum(cover.end - cover.first - 1 for cover in self.covers)

    def plan(self, end: int) -> Iterator[Cover | Stretch]:
        """Go through what is to be handed out from the cursor to ``end``."""
        position = self.cursor
        for cover in self.covers:
            if position < cover.first:
                yield Stretch(position, cover.first)
            yield cover
            position = cover.end
        if position < end:
            yield Stretch(position, end)

    def unneeded(self) -> list[Stretch]:
        """Return the positions of which this sink needs no record any more."""
        return [Stretch(0, self.cursor), *(Stretch(cover.first, cover.end) for cover in self.covers)]

    def acknowledge(self, batch: Sequence[Record]) -> list[Cover]:
        """Move on past what was acknowledged; return the losses that were told with it.

        Raises:
            ValueError: It is not the beginning of what was handed out last.
        """
        done, rest = self.handed.split(len(batch))
        if len(done.records) < len(batch) or (batch and batch[-1] is not done.records[-1]):
            raise ValueError("only what was read last can be acknowledged")
        self.handed = rest
        self.cursor = done.ends[-1] if done.ends else self.cursor
        told = [cover for cover in self.covers if cover.end <= self.cursor]
        self.covers = self.covers[len(told) :]
        self.size += sum(len(cover.record.data) for cover in told)  # it never counted
        self.size -= sum(len(record.data) for record in done.records)
        return told

    def loss_to_extend(self, epoch: int, sequence: int) -> Cover | None:
        """Return the loss that one from ``open`` on, with that epoch and sequence first, continues, if there is one."""
        last = self.covers[-1] if self.covers else None
        if last is None or last.reason != "overflow" or last.first < self.ahead:
            return None
        return last if last.record.epoch == epoch and last.record.sequence + 1 == sequence else None

    def lose(self, covers: Sequence[Cover], size: int) -> None:
        """Take over losses of ``size`` bytes from ``open`` on; one that was extended is replaced."""
        first = covers[0].first
        kept = [cover for cover in self.covers if cover.end <= first]
        extended = self.covers[len(kept) :]
        self.lost += sum(map(_length, covers)) - sum(map(_length, extended))
        self.covers = [*kept, *covers]
        self.size -= size

    def replace(self, covers: Sequence[Cover]) -> None:
        """Take over single records that were refused; what was handed out is to be read again."""
        self.handed = NO_BATCH
        self.covers = sorted([*self.covers, *covers], key=lambda cover: cover.first)
        self.size -= sum(cover.size for cover in covers)


def _length(cover: Cover) -> int:
    return cover.end - cover.first


def refusals(handed: Batch, positions: Collection[tuple[int, int]], now: int) -> list[Cover]:
    """Return what is told in the place of records that were refused, which ``positions`` (epoch, sequence) name.

    What stands for others already is never replaced.
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
    """Return the positions of which no sink needs a record any more."""
    common = [Stretch(0, sys.maxsize)]
    for lane in lanes:
        common = list(intersection(common, lane.unneeded()))
    return common


def intersection(ours: Iterable[Stretch], theirs: Sequence[Stretch]) -> Iterator[Stretch]:
    """Return the positions that are in both."""
    for mine in ours:
        for other in theirs:
            first, end = max(mine.first, other.first), min(mine.end, other.end)
            if first < end:
                yield Stretch(first, end)
