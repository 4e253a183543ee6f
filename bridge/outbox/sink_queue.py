"""A sink's queue: its cursor, its limits, and the losses that replace records that the sink does not get. Pure.

Records have positions, counted from 0 in the order of appends. The cursor is the position of the first record that the
sink has not acknowledged, as with the offsets of Kafka consumers. Offsets count the bytes of all records before a
position, also of those that are deleted, so that the size of a backlog is a difference.

Invariants:
- The sink has acknowledged every record before the cursor, or its loss.
- Loss ranges are at or after the cursor, in order, and do not overlap. A later loss never includes records in flight,
  so that their acknowledgment cannot contradict the loss.
- A loss record is persisted before it is read, and never changes afterwards.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from msgspec import Struct

from bridge.core.record_encoder import lost_record
from bridge.core.records import LossReason, Record

_HEADROOM_DIVISOR = 16  # a drop frees another 1/16 of the limit, for the loss record and for the next records


class LossRange(Struct, frozen=True):
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

    def split(self, count: int) -> tuple[Batch, Batch]:
        """Return the first ``count`` records, and the rest."""
        first, rest = slice(None, count), slice(count, None)
        return Batch(self.records[first], self.ends[first]), Batch(self.records[rest], self.ends[rest])

    def truncate(self, limit: int, max_bytes: int) -> Batch:
        """Return as many records as the limits allow, at least one."""
        for count, record in enumerate(self.records):
            max_bytes -= len(record.data)
            if count and (count == limit or max_bytes < 0):
                return self.split(count)[0]
        return self


EMPTY_BATCH = Batch((), ())


class PositionRange(NamedTuple):
    """A range of positions from ``first`` to before ``end``."""

    first: int
    end: int


class SinkQueue:
    """The state of one sink's queue.

    ``offset``: the bytes before the cursor. ``dropped``: number of records dropped at the limits. ``oldest_since``:
    when (monotonic) the oldest record in the backlog was appended, or a little earlier.
    """

    def __init__(self, cursor: int, offset: int, *, losses: Iterable[LossRange] = (), oldest_since: int = 0) -> None:
        self.cursor = cursor
        self.offset = offset
        self.losses: list[LossRange] = [loss for loss in losses if loss.end > cursor]
        self.oldest_since = oldest_since
        self.dropped = 0
        self.in_flight = EMPTY_BATCH
        self.not_empty = asyncio.Event()
        self.selection_lock = asyncio.Lock()  # held while records are selected for reading or dropping

    @property
    def next_unread(self) -> int:
        """The first position after the records in flight."""
        return self.in_flight.ends[-1] if self.in_flight.ends else self.cursor

    @property
    def first_droppable(self) -> int:
        """The first position that can still be dropped."""
        return max(self.next_unread, self.losses[-1].end) if self.losses else self.next_unread

    def depth(self, end: int) -> int:
        """Return the number of records, loss records included, from the cursor to ``end``."""
        return end - self.cursor - sum(loss.end - loss.first - 1 for loss in self.losses)

    def size(self, end_offset: int) -> int:
        """Return the bytes of records, without loss records, from the cursor to ``end_offset``."""
        return end_offset - self.offset - sum(loss.size for loss in self.losses)

    def read_plan(self, end: int) -> Iterator[LossRange | PositionRange]:
        """Iterate over the steps of a read from the cursor to ``end``: ranges of records, and losses."""
        position = self.cursor
        for loss in self.losses:
            if position < loss.first:
                yield PositionRange(position, loss.first)
            yield loss
            position = loss.end
        if position < end:
            yield PositionRange(position, end)

    def released(self) -> list[PositionRange]:
        """Return the ranges whose records this sink no longer needs."""
        return [PositionRange(0, self.cursor), *(PositionRange(loss.first, loss.end) for loss in self.losses)]

    def acknowledge(self, batch: Sequence[Record]) -> list[LossRange]:
        """Advance the cursor past an acknowledged batch; return the losses whose records are in it.

        Raises:
            ValueError: The batch is not the beginning of the records in flight.
        """
        done, rest = self.in_flight.split(len(batch))
        if len(done.records) < len(batch) or (batch and batch[-1] is not done.records[-1]):
            raise ValueError("acknowledged batch is not the beginning of the last read")
        self.in_flight = rest
        self.cursor = done.ends[-1] if done.ends else self.cursor
        passed = [loss for loss in self.losses if loss.end <= self.cursor]
        self.losses = self.losses[len(passed) :]
        self.offset += sum(len(record.data) for record in done.records)
        self.offset += sum(loss.size - len(loss.record.data) for loss in passed)
        return passed

    def open_loss(self, epoch: int, sequence: int) -> LossRange | None:
        """Return the loss that a drop at ``first_droppable`` extends, given its first epoch and sequence; or None."""
        last = self.losses[-1] if self.losses else None
        if last is None or last.reason != "overflow" or last.first < self.next_unread:
            return None
        return last if last.record.epoch == epoch and last.record.sequence + 1 == sequence else None

    def drop(self, losses: Sequence[LossRange]) -> None:
        """Add losses from ``first_droppable`` on; an extended loss is replaced."""
        first = losses[0].first
        unchanged = [loss for loss in self.losses if loss.end <= first]
        extended = self.losses[len(unchanged) :]
        self.dropped += sum(map(_record_count, losses)) - sum(map(_record_count, extended))
        self.losses = [*unchanged, *losses]

    def mark_rejected(self, losses: Sequence[LossRange]) -> None:
        """Add the losses of rejected records; the records in flight have to be read again."""
        self.in_flight = EMPTY_BATCH
        self.losses = sorted([*self.losses, *losses], key=lambda loss: loss.first)


def _record_count(loss: LossRange) -> int:
    return loss.end - loss.first


class Limits(Struct, frozen=True, kw_only=True):
    """The maximum backlog of one sink; ``max_age`` is in seconds of the bridge's uptime.

    Records of the append in progress are never dropped; otherwise a large snapshot could never be delivered.
    """

    max_records: int
    max_bytes: int
    max_age: int

    def overflow(self, records: int, size: int) -> tuple[int, int]:
        """Return how many records and bytes to drop from a backlog of this size; (0, 0) within the limits."""
        if records <= self.max_records and size <= self.max_bytes:
            return (0, 0)
        return (
            max(0, records - self.max_records + self.max_records // _HEADROOM_DIVISOR),
            max(0, size - self.max_bytes + self.max_bytes // _HEADROOM_DIVISOR),
        )


def rejection_losses(in_flight: Batch, positions: Collection[tuple[int, int]], now: int) -> list[LossRange]:
    """Return losses that replace the rejected records at ``positions`` (epoch, sequence).

    Loss records are never replaced.
    """
    return [
        LossRange(
            end - 1,
            end,
            record.sequence,
            len(record.data),
            "rejected",
            lost_record(record, record.sequence, "rejected", now),
        )
        for record, end in zip(in_flight.records, in_flight.ends, strict=True)
        if (record.epoch, record.sequence) in positions and record.type != "lost"
    ]


def released_by_all(queues: Iterable[SinkQueue]) -> list[PositionRange]:
    """Return the ranges whose records no sink needs any more."""
    common = [PositionRange(0, sys.maxsize)]
    for queue in queues:
        common = list(intersection(common, queue.released()))
    return common


def intersection(left: Iterable[PositionRange], right: Sequence[PositionRange]) -> Iterator[PositionRange]:
    """Return the positions that are in both sequences of ranges."""
    for one in left:
        for other in right:
            first, end = max(one.first, other.first), min(one.end, other.end)
            if first < end:
                yield PositionRange(first, end)
