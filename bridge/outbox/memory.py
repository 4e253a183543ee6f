"""The outbox in memory: bounded, and gone with the process; the next start's snapshot makes up for it.

Invariants:
- A sink gets what was appended in order, each record or a ``lost`` record in its place.
- When the bound is reached, only the sink that lags loses, its oldest records first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import structlog

from bridge.core.encode import lost_record
from bridge.core.events import Record
from bridge.core.ports import Clock, Lag, Recollection
from bridge.outbox.ages import Ages
from bridge.outbox.bounds import Bounds
from bridge.outbox.lane import Batch, Cover, Lane, refusals, unneeded_by_all
from bridge.telemetry.sparingly import Sparingly

DEFAULT = Bounds(max_records=1_000_000, max_bytes=64 * 1024 * 1024, max_age=7 * 24 * 3600)
_NOTHING: Mapping[str, bytes | None] = {}
_SECOND = 1_000_000_000
_log = structlog.get_logger(__name__)


class MemoryOutbox:
    """Implements ``bridge.core.ports.Outbox``, and remembers nothing across a restart.

    Args:
        sinks: Their names.
        clock: Time and chance.
        bounds: How much may wait for a sink.
        on_loss: Called when a sink has been told of an overflow: a snapshot has to follow.
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
        self._sparingly = Sparingly(clock)
        self._lanes = {sink: Lane(0) for sink in sinks}
        self._records: dict[int, Record] = {}
        self._end = 0
        self._appended: deque[tuple[int, int]] = deque()  # end positions, and when (monotonic)
        self._ages = Ages()
        self._old = 0  # records before this position are older than they may be

    @property
    def trouble(self) -> str | None:
        """Nothing ever keeps this outbox from taking records."""
        return None

    def recall(self) -> Recollection:
        """Nothing is remembered."""
        return Recollection({})

    async def append(self, records: Sequence[Record], memory: Mapping[str, bytes | None] = _NOTHING) -> None:  # noqa: ARG002
        """Keep records for every sink."""
        size = sum(len(record.data) for record in records)
        self._grow_old()
        for sink, lane in self._lanes.items():
            self._make_room(sink, lane, len(records), size)
            lane.size += size
        self._ages.note(self._end, self._clock.now().monotonic)
        for position, record in enumerate(records, self._end):
            self._records[position] = record
        self._end += len(records)
        self._appended.append((self._end, self._clock.now().monotonic))
        for lane in self._lanes.values():
            lane.filled.set()

    async def read(self, sink: str, limit: int, max_bytes: int = 1024 * 1024) -> Sequence[Record]:
        """Wait for records that a sink has not acknowledged; return the oldest."""
        lane = self._lanes[sink]
        while not lane.depth(self._end):
            lane.filled.clear()
            await lane.filled.wait()
        waiting = list(islice(self._waiting(lane), limit))
        lane.handed = Batch([record for record, _ in waiting], [end for _, end in waiting]).within(limit, max_bytes)
        return lane.handed.records

    async def acknowledge(self, sink: str, batch: Sequence[Record]) -> None:
        """The sink has what was read last, or its beginning: forget it."""
        lane = self._lanes[sink]
        first = lane.cursor
        told = lane.acknowledge(batch)
        self._free(first)
        self._ages.forget(min(lane.cursor for lane in self._lanes.values()))
        if any(cover.reason == "overflow" for cover in told):
            self._on_loss()

    async def refuse(self, sink: str, positions: Collection[tuple[int, int]], reason: str) -> int:
        """Have the loss of records that a sink will never have told in their place; there is no file to keep them."""
        lane = self._lanes[sink]
        covers = refusals(lane.handed, positions, self._clock.now().wall)
        for cover in covers:
            position = f"{cover.record.epoch}-{cover.record.sequence}"
            self._sparingly.say(
                _log.error, (sink, reason), "rejected_record_discarded", sink=sink, position=position, reason=reason
            )
        lane.replace(covers)
        return len(covers)

    def depth(self, sink: str) -> int:
        """Return how many records a sink has not acknowledged."""
        return self._lanes[sink].depth(self._end)

    def lag(self, sink: str) -> Lag:
        """Tell more of what a sink has not acknowledged."""
        lane, depth = self._lanes[sink], self.depth(sink)
        age = self._ages.seconds(lane.cursor, self._clock.now().monotonic) if depth else 0.0
        return Lag(depth, lane.size, age, lane.lost)

    async def close(self) -> None:
        """There is nothing to let go of."""

    def _waiting(self, lane: Lane) -> Iterator[tuple[Record, int]]:
        for step in lane.plan(self._end):
            if isinstance(step, Cover):
                yield step.record, step.end
            else:
                for position in range(step.first, step.end):
                    yield self._records[position], position + 1

    # --- bounds ---

    def _grow_old(self) -> None:
        oldest = self._clock.now().monotonic - self._bounds.max_age * _SECOND
        while self._appended and self._appended[0][1] < oldest:
            self._old = self._appended.popleft()[0]

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
        self._sparingly.say(
            _log.warning, sink, "outbox_records_dropped", sink=sink, dropped=end - first, backlog=waiting
        )

    def _losses(self, lane: Lane, first: int, end: int) -> Iterator[Cover]:
        """Make the records that tell of a loss: one an epoch."""
        now = self._clock.now().wall
        known = lane.loss_to_extend(self._records[first].epoch, self._records[first].sequence)
        start, sequence, size = first, self._records[first].sequence, 0
        if known is not None:
            start, sequence, size = known.first, known.sequence, known.size
        for position in range(first, end):
            record = self._records[position]
            size += len(record.data)
            after = self._records.get(position + 1) if position + 1 < end else None
            if after is None or (after.epoch, after.sequence) != (record.epoch, record.sequence + 1):
                told = lost_record(record, sequence, "overflow", now)
                yield Cover(start, position + 1, sequence, size, "overflow", told)
                start, sequence, size = position + 1, after.sequence if after is not None else 0, 0

    def _free(self, first: int) -> None:
        """Forget the records from a position on that no sink needs any more."""
        for stretch in unneeded_by_all(self._lanes.values()):
            for position in range(max(first, stretch.first), min(stretch.end, self._end)):
                self._records.pop(position, None)
