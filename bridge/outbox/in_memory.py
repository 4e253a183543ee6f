"""The outbox in memory: limited in size, and lost with the process; the next start publishes a snapshot.

Invariants:
- A sink gets the appended records in order, or a ``lost`` record in their place.
- At the limit, only the lagging sink loses records, its oldest first.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import structlog

from bridge.core.ports import Clock, Lag, StoredCheckpoint
from bridge.core.record_encoder import lost_record
from bridge.core.records import Record
from bridge.core.time import SECOND, to_seconds
from bridge.outbox.limits import Limits
from bridge.outbox.sink_queue import Batch, LossRange, SinkQueue, rejection_losses, released_by_all
from bridge.telemetry.rate_limit import RateLimiter

DEFAULT_LIMITS = Limits(max_records=1_000_000, max_bytes=64 * 1024 * 1024, max_age=7 * 24 * 3600)
_NO_CHANGES: Mapping[str, bytes | None] = {}
_APPEND_TIME_INTERVAL_NS = SECOND  # between two recorded times of appends
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
        limits: Limits = DEFAULT_LIMITS,
        *,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._on_loss = on_loss
        self._rate_limiter = RateLimiter(clock)
        self._queues = {sink: SinkQueue(0) for sink in sinks}
        self._records: dict[int, Record] = {}
        self._end = 0
        self._append_times: deque[tuple[int, int]] = deque()  # positions, and when (monotonic) they were appended
        self._expired_before = 0  # records before this position are older than the maximum age

    async def open(self, on_locked: Callable[[Path], Awaitable[None]]) -> None:
        """Do nothing: there is no directory to lock."""

    @property
    def last_error(self) -> str | None:
        """Always None: appends to memory do not fail."""
        return None

    def load_checkpoint(self) -> StoredCheckpoint:
        """Return an empty checkpoint."""
        return StoredCheckpoint({})

    async def append(self, records: Sequence[Record], checkpoint: Mapping[str, bytes | None] = _NO_CHANGES) -> None:  # noqa: ARG002
        """Append records for every sink."""
        size = sum(len(record.data) for record in records)
        self._expire()
        for sink, queue in self._queues.items():
            self._enforce_limits(sink, queue, len(records), size)
            queue.size += size
        now = self._clock.now().monotonic
        if not self._append_times or now - self._append_times[-1][1] >= _APPEND_TIME_INTERVAL_NS:
            self._append_times.append((self._end, now))
        for position, record in enumerate(records, self._end):
            self._records[position] = record
        self._end += len(records)
        for queue in self._queues.values():
            queue.not_empty.set()

    async def read(self, sink: str, limit: int, max_bytes: int = 1024 * 1024) -> Sequence[Record]:
        """Wait for records that a sink has not acknowledged, and return the oldest."""
        queue = self._queues[sink]
        while not queue.depth(self._end):
            queue.not_empty.clear()
            await queue.not_empty.wait()
        oldest = list(islice(self._backlog(queue), limit))
        queue.in_flight = Batch([record for record, _ in oldest], [end for _, end in oldest]).truncate(limit, max_bytes)
        return queue.in_flight.records

    async def acknowledge(self, sink: str, batch: Sequence[Record]) -> None:
        """Advance a sink's cursor past the records of its last read, or past a prefix of them."""
        queue = self._queues[sink]
        first = queue.cursor
        passed = queue.acknowledge(batch)
        self._delete_released(first)
        first = min(queue.cursor for queue in self._queues.values())
        while len(self._append_times) > 1 and self._append_times[1][0] <= first:
            self._append_times.popleft()
        if any(loss.reason == "overflow" for loss in passed):
            self._on_loss()

    async def reject(self, sink: str, positions: Collection[tuple[int, int]], reason: str) -> int:
        """Replace records that a sink rejected by loss records; there is no dead-letter file."""
        queue = self._queues[sink]
        losses = rejection_losses(queue.in_flight, positions, self._clock.now().wall)
        for loss in losses:
            position = f"{loss.record.epoch}-{loss.record.sequence}"
            self._rate_limiter.log(
                _log.error, (sink, reason), "rejected_record_discarded", sink=sink, position=position, reason=reason
            )
        queue.mark_rejected(losses)
        return len(losses)

    def depth(self, sink: str) -> int:
        """Return how many records a sink has not acknowledged."""
        return self._queues[sink].depth(self._end)

    def lag(self, sink: str) -> Lag:
        """Return the depth, size and age of a sink's backlog, and its dropped records."""
        queue, depth = self._queues[sink], self.depth(sink)
        return Lag(depth, queue.size, self._age_seconds(queue.cursor) if depth else 0.0, queue.dropped)

    def _age_seconds(self, position: int) -> float:
        """Return how many seconds ago the record at a position was appended, or up to a second more."""
        since = self._append_times[bisect_right(self._append_times, position, key=lambda each: each[0]) - 1][1]
        return to_seconds(self._clock.now().monotonic - since)

    async def close(self) -> None:
        """Do nothing: there are no resources to release."""

    def _backlog(self, queue: SinkQueue) -> Iterator[tuple[Record, int]]:
        for step in queue.read_plan(self._end):
            if isinstance(step, LossRange):
                yield step.record, step.end
            else:
                for position in range(step.first, step.end):
                    yield self._records[position], position + 1

    # --- limits ---

    def _expire(self) -> None:
        oldest = self._clock.now().monotonic - self._limits.max_age * SECOND
        # The first one stays, because a batch in flight is never dropped.
        while len(self._append_times) > 2 and self._append_times[2][1] < oldest:  # noqa: PLR2004
            del self._append_times[1]
        young = bisect_left(self._append_times, oldest, key=lambda each: each[1])
        self._expired_before = self._append_times[young][0] if young < len(self._append_times) else self._end

    def _enforce_limits(self, sink: str, queue: SinkQueue, records: int, size: int) -> None:
        records, size = self._limits.overflow(queue.depth(self._end) + records, queue.size + size)
        first = end = queue.first_droppable
        dropped = 0
        while end < self._end and (end - first < records or dropped < size or end < self._expired_before):
            dropped += len(self._records[end].data)
            end += 1
        if end == first:
            return
        queue.drop(list(self._build_losses(queue, first, end)), dropped)
        self._delete_released(first)
        backlog = queue.depth(self._end)
        self._rate_limiter.log(
            _log.warning, sink, "outbox_records_dropped", sink=sink, dropped=end - first, backlog=backlog
        )

    def _build_losses(self, queue: SinkQueue, first: int, end: int) -> Iterator[LossRange]:
        """Build the losses for dropped records, one per epoch."""
        now = self._clock.now().wall
        extended = queue.open_loss(self._records[first].epoch, self._records[first].sequence)
        start, sequence, size = first, self._records[first].sequence, 0
        if extended is not None:
            start, sequence, size = extended.first, extended.sequence, extended.size
        for position in range(first, end):
            record = self._records[position]
            size += len(record.data)
            after = self._records.get(position + 1) if position + 1 < end else None
            if after is None or (after.epoch, after.sequence) != (record.epoch, record.sequence + 1):
                lost = lost_record(record, sequence, "overflow", now)
                yield LossRange(start, position + 1, sequence, size, "overflow", lost)
                start, sequence, size = position + 1, after.sequence if after is not None else 0, 0

    def _delete_released(self, first: int) -> None:
        """Delete records from position ``first`` on that no sink needs any more."""
        for positions in released_by_all(self._queues.values()):
            for position in range(max(first, positions.first), min(positions.end, self._end)):
                self._records.pop(position, None)
