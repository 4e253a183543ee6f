"""The outbox in memory: bounded, and gone with the process; the next start's snapshot makes up for it.

Invariants:
- A sink gets what was appended in order, each record or a ``lost`` record in its place.
- When the bound is reached, only the sink that lags loses, its oldest records first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from msgspec import Struct

from bridge.core.encode import lost_record
from bridge.core.events import Record
from bridge.core.ports import Clock

MAX_RECORDS = 200_000
MAX_BYTES = 64 * 1024 * 1024


class MemoryOutbox:
    """Keeps what the sinks have not acknowledged.

    Args:
        sinks: Their names.
        clock: For the time of a loss.
        max_records: How many records wait for one sink at the most.
        max_bytes: How many bytes of records wait for one sink at the most.
        on_loss: Called when a sink has been told of a loss: a snapshot has to follow.
    """

    def __init__(
        self,
        sinks: Iterable[str],
        clock: Clock,
        *,
        max_records: int = MAX_RECORDS,
        max_bytes: int = MAX_BYTES,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._lanes = {sink: _Lane(clock, max_records, max_bytes) for sink in sinks}
        self._on_loss = on_loss

    async def append(self, records: Sequence[Record]) -> None:
        """Keep records for every sink."""
        for lane in self._lanes.values():
            lane.append(records)

    async def read(self, sink: str, limit: int) -> Sequence[Record]:
        """Wait for records that a sink has not acknowledged; return the oldest, at most ``limit``."""
        lane = self._lanes[sink]
        while not lane.depth:
            lane.filled.clear()
            await lane.filled.wait()
        return lane.oldest(limit)

    async def acknowledge(self, sink: str, batch: Sequence[Record]) -> None:
        """The sink has what was read: forget it."""
        if self._lanes[sink].forget(batch):
            self._on_loss()

    def depth(self, sink: str) -> int:
        """Return how many records a sink has not acknowledged."""
        return self._lanes[sink].depth


class _Loss(Struct):
    """A range of one epoch's sequences that was dropped: from ``first`` to that of ``last``."""

    first: int
    last: Record


class _Lane:
    """One sink's records; what had to be dropped at the old end is remembered as ranges, one an epoch."""

    def __init__(self, clock: Clock, max_records: int, max_bytes: int) -> None:
        self.filled = asyncio.Event()
        self._clock = clock
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._records: deque[Record] = deque()
        self._bytes = 0
        self._losses: list[_Loss] = []

    @property
    def depth(self) -> int:
        return len(self._losses) + len(self._records)

    def append(self, records: Sequence[Record]) -> None:
        self._records.extend(records)
        self._bytes += sum(len(record.data) for record in records)
        while len(self._records) > self._max_records or self._bytes > self._max_bytes:
            self._drop_oldest()
        self.filled.set()

    def oldest(self, limit: int) -> list[Record]:
        now = self._clock.now().wall
        lost = [lost_record(loss.last, loss.first, "overflow", now) for loss in self._losses[:limit]]
        return [*lost, *islice(self._records, limit - len(lost))]

    def forget(self, batch: Sequence[Record]) -> bool:
        """Drop what was acknowledged; return whether a loss was told with it."""
        epoch, end = _position(batch[-1])
        # A loss may have grown, or begun, behind the batch's back: what the batch delivered of it is not lost.
        self._losses = [loss for loss in self._losses if _position(loss.last) > (epoch, end)]
        for loss in self._losses:
            if loss.last.epoch == epoch:
                loss.first = max(loss.first, end + 1)
        while self._records and _position(self._records[0]) <= (epoch, end):
            self._pop()
        return any(record.type == "lost" for record in batch)

    def _pop(self) -> Record:
        record = self._records.popleft()
        self._bytes -= len(record.data)
        return record

    def _drop_oldest(self) -> None:
        record = self._pop()
        if self._losses and self._losses[-1].last.epoch == record.epoch:
            self._losses[-1].last = record
        else:
            self._losses.append(_Loss(record.sequence, record))


def _position(record: Record) -> tuple[int, int]:
    return (record.epoch, record.sequence)
