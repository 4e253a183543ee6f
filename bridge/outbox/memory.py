"""The outbox in memory: limited in size, and lost with the process; the next start publishes a snapshot.

Invariants:
- A sink gets the appended records in order, or a ``lost`` record in their place.
- At the limit, only the lagging sink loses records, its oldest first.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import structlog

from bridge.core.encode import lost_record
from bridge.core.events import Record
from bridge.core.ports import Clock, Lag, Recollection
from bridge.core.time import SECOND, to_seconds
from bridge.outbox.bounds import Bounds
from bridge.outbox.lane import Batch, Cover, Lane, refusals, unneeded_by_all
from bridge.telemetry.rate_limit import RateLimiter

DEFAULT = Bounds(max_records=1_000_000, max_bytes=64 * 1024 * 1024, max_age=7 * 24 * 3600)
_NOTHING: Mapping[str, bytes | None] = {}
_SPACING = SECOND  # of the moments that are kept
_log = structlog.get_logger(__name__)


class MemoryOutbox:
    """Implements ``bridge.core.ports.Outbox`` without persistence.

    Args:
        sinks: The ids of the sinks.
        clock: Source of time and random numbers.
        limits: Limits of each sink's backlog.
        on_loss: Called when a sink has acknowledged the loss of an overflow, so that a snapshot can follow.
    """

    def __init__(
        self,
        sinks: Iterable[str],
        clock: Clock,
        bounds: Bounds = DEFAULT,
        *,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._bounds = bounds
        self._on_loss = on_loss
        self._limiter = RateLimiter(clock)
        self._lanes = {sink: Lane(0) for sink in sinks}
        self._records: dict[int, Record] = {}
        self._end = 0
        self._appended: deque[tuple[int, int]] = deque()  # positions, and when (monotonic) records came from there on
        self._old = 0  # records before this position are older than they may be

    @property
    def trouble(self) -> str | None:
        """Always None: appends to memory do not fail."""
        return None

    def recall(self) -> Recollection:
        """Return an empty checkpoint."""
        return Recollection({})

    async def append(self, records: Sequence[Record], memory: Mapping[str, bytes | None] = _NOTHING) -> None:  # noqa: ARG002
        """Append records for every sink."""
        size = sum(len(record.data) for record in records)
        self._grow_old()
        for sink, lane in self._lanes.items():
            self._make_room(sink, lane, len(records), size)
            lane.size += size
        now = self._clock.now().monotonic
        if not self._appended or now - self._appended[-1][1] >= _SPACING:
            self._appended.append((self._end, now))
        for position, record in enumerate(records, self._end):
            self._records[position] = record
        self._end += len(records)
        for lane in self._lanes.values():
            lane.filled.set()

    async def read(self, sink: str, limit: int, max_bytes: int = 1024 * 1024) -> Sequence[Record]:
        """Wait for records that a sink has not acknowledged, and return the oldest."""
        lane = self._lanes[sink]
        while not lane.depth(self._end):
            lane.filled.clear()
            await lane.filled.wait()
        waiting = list(islice(self._waiting(lane), limit))
        lane.handed = Batch([record for record, _ in waiting], [end for _, end in waiting]).within(limit, max_bytes)
        return lane.handed.records

    async def acknowledge(self, sink: str, batch: Sequence[Record]) -> None:
        """Advance a sink's cursor past the records of its last read, or the first of them."""
        lane = self._lanes[sink]
        first = lane.cursor
        told = lane.acknowledge(batch)
        self._free(first)
        first = min(lane.cursor for lane in self._lanes.values())
        while len(self._appended) > 1 and self._appended[1][0] <= first:
            self._appended.popleft()
        if any(cover.reason == "overflow" for cover in told):
            self._on_loss()

    async def refuse(self, sink: str, positions: Collection[tuple[int, int]], reason: str) -> int:
        """Replace records that a sink rejected by loss records; there is no dead-letter file."""
        lane = self._lanes[sink]
        covers = refusals(lane.handed, positions, self._clock.now().wall)
        for cover in covers:
            position = f"{cover.record.epoch}-{cover.record.sequence}"
            self._limiter.log(
                _log.error, (sink, reason), "rejected_record_discarded", sink=sink, position=position, reason=reason
            )
        lane.replace(covers)
        return len(covers)

    def depth(self, sink: str) -> int:
        """Return how many records a sink has not acknowledged."""
        return self._lanes[sink].depth(self._end)

    def lag(self, sink: str) -> Lag:
        """Return the depth, size and age of a sink's backlog, and its dropped records."""
        lane, depth = self._lanes[sink], self.depth(sink)
        return Lag(depth, lane.size, self._age(lane.cursor) if depth else 0.0, lane.lost)

    def _age(self, position: int) -> float:
        """Return how many seconds ago the record at a position was appended, or up to a second more."""
        since = self._appended[bisect_right(self._appended, position, key=lambda each: each[0]) - 1][1]
        return to_seconds(self._clock.now().monotonic - since)

    async def close(self) -> None:
        """Do nothing: there are no resources to release."""

    def _waiting(self, lane: Lane) -> Iterator[tuple[Record, int]]:
        for step in lane.plan(self._end):
            if isinstance(step, Cover):
                yield step.record, step.end
            else:
                for position in range(step.first, step.end):
                    yield self._records[position], position + 1

    # --- limits ---

    def _grow_old(self) -> None:
        oldest = self._clock.now().monotonic - self._bounds.max_age * SECOND
        # The first stays: a batch that was handed out is never dropped.
        while len(self._appended) > 2 and self._appended[2][1] < oldest:  # noqa: PLR2004
            del self._appended[1]
        young = bisect_left(self._appended, oldest, key=lambda each: each[1])
        self._old = self._appended[young][0] if young < len(self._appended) else self._end

    def _make_room(self, sink: str, lane: Lane, records: int, size: int) -> None:
        records, size = self._bounds.excess(lane.depth(self._end) + records, lane.size + size)
        first = end = lane.open
        dropped = 0
        while end < self._end and (end - first < records or dropped < size or end < self._old):
            dropped += len(self._records[end].data)
            end += 1
        if end == first:
            return
        lane.lose(list(self._losses(lane, first, end)), dropped)
        self._free(first)
        waiting = lane.depth(self._end)
        self._limiter.log(_log.warning, sink, "outbox_records_dropped", sink=sink, dropped=end - first, backlog=waiting)

    def _losses(self, lane: Lane, first: int, end: int) -> Iterator[Cover]:
        """Build the losses for dropped records, one per epoch."""
        now = self._clock.now().wall
        extended = lane.loss_to_extend(self._records[first].epoch, self._records[first].sequence)
        start, sequence, size = first, self._records[first].sequence, 0
        if extended is not None:
            start, sequence, size = extended.first, extended.sequence, extended.size
        for position in range(first, end):
            record = self._records[position]
            size += len(record.data)
            after = self._records.get(position + 1) if position + 1 < end else None
            if after is None or (after.epoch, after.sequence) != (record.epoch, record.sequence + 1):
                lost = lost_record(record, sequence, "overflow", now)
                yield Cover(start, position + 1, sequence, size, "overflow", lost)
                start, sequence, size = position + 1, after.sequence if after is not None else 0, 0

    def _free(self, first: int) -> None:
        """Delete records from position ``first`` on that no sink needs any more."""
        for positions in unneeded_by_all(self._lanes.values()):
            for position in range(max(first, positions.first), min(positions.end, self._end)):
                self._records.pop(position, None)
