"""The writer: combines pending appends and cursors into one transaction at a time (group commit).

Before an append it drops what exceeds the limits of a sink's backlog. It keeps the newest records in memory, so that
sinks that keep up cause no disk reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import structlog

from bridge.core.ports import Clock
from bridge.core.record_encoder import lost_record
from bridge.core.records import Record
from bridge.core.time import SECOND, to_seconds
from bridge.outbox.chunks import ChunkHeader, WriteBatch, split_into_chunks
from bridge.outbox.database import Store
from bridge.outbox.database_worker import DatabaseWorker
from bridge.outbox.memory_store import MemoryStore
from bridge.outbox.sink_queue import Limits, LossRange, PositionRange, SinkQueue, intersection, released_by_all
from bridge.telemetry.counters import Histogram
from bridge.telemetry.rate_limit import RateLimiter

REMOVED_SINK_RETENTION_SECONDS = 24 * 3600  # seconds of uptime for which a removed sink keeps its cursor
FLUSH_SECONDS = 0.5  # maximum delay of writing a cursor; a cursor lost in a crash only causes duplicates
_HOUSEKEEPING_SECONDS = 60
_RELEASE_BATCH_RECORDS = 512
_log = structlog.get_logger(__name__)


class ReadCache:
    """The newest stored records, as many as ``max_bytes`` of data allow.

    Args:
        end: The position after the last stored record; the cache starts empty.
        end_offset: The offset of that position.
        max_bytes: Maximum bytes of record data.
    """

    def __init__(self, end: int, end_offset: int, max_bytes: int) -> None:
        self.end = end
        self.end_offset = end_offset
        self._max_bytes = max_bytes
        self._records: list[Record] = []
        self._size = 0

    @property
    def first(self) -> int:
        """The position of the oldest cached record."""
        return self.end - len(self._records)

    def extend(self, records: Sequence[Record], size: int) -> None:
        """Add records of ``size`` bytes, and evict the oldest beyond the limit."""
        self._records += records
        self.end += len(records)
        self.end_offset += size
        self._size += size
        evicted, excess = 0, self._size - self._max_bytes
        while excess > 0:
            excess -= len(self._records[evicted].data)
            evicted += 1
        self._evict(evicted)

    def evict(self, before: int) -> None:
        """Evict the records before a position."""
        if before > self.first:
            self._evict(before - self.first)

    def get(self, first: int, end: int) -> Sequence[Record]:
        """Return cached records from ``first`` to before ``end``."""
        return self._records[first - self.first : end - self.first]

    def _evict(self, count: int) -> None:
        self._size -= sum(len(record.data) for record in self._records[:count])
        del self._records[:count]


class _Append(NamedTuple):
    records: Sequence[Record]
    checkpoint: Mapping[str, bytes | None]
    done: asyncio.Future[None]


class Writer:
    """Write appends and cursors to the file, and keep each queue within its limits.

    Args:
        worker: Runs jobs on the store.
        cache: Receives the written records; its ``end`` is the position after the last record on the disk.
        queues: The queues of the sinks.
        removed: The queues of removed sinks, until they expire.
        clock: Source of time and random numbers.
        limits: Limits of each queue.
        uptime_origin: The moment (monotonic) at which the uptime would have been 0, had the bridge run without a break.

    ``commits``: the durations of all transactions, with their retries.
    """

    def __init__(
        self,
        worker: DatabaseWorker | MemoryStore,
        cache: ReadCache,
        queues: Mapping[str, SinkQueue],
        removed: dict[str, SinkQueue],
        clock: Clock,
        limits: Limits,
        uptime_origin: int,
    ) -> None:
        self._worker = worker
        self._cache = cache
        self._queues = queues
        self._removed = removed
        self._clock = clock
        self._limits = limits
        self._uptime_origin = uptime_origin
        self.commits = Histogram()
        self._last_housekeeping = self.uptime
        self._pending: list[_Append] = []
        self._in_flight: list[_Append] = []
        self._moved_cursors: set[str] = set()  # sinks whose cursors are not written yet
        self._progress_at_release = 0  # sum of all cursors when records were last released
        self._nothing_appended = True
        self._rate_limiter = RateLimiter(clock)
        self._wake_up = asyncio.Event()
        self._flush_timer: asyncio.TimerHandle | None = None

    @property
    def uptime(self) -> int:
        """The bridge's total uptime in seconds; setting the system's clock does not change it."""
        return (self._clock.now().monotonic - self._uptime_origin) // SECOND

    def append(self, records: Sequence[Record], checkpoint: Mapping[str, bytes | None]) -> asyncio.Future[None]:
        """Queue an append; the future completes when the append is on the disk."""
        done = asyncio.get_running_loop().create_future()
        self._pending.append(_Append(records, checkpoint, done))
        self._wake_up.set()
        return done

    def cursor_moved(self, sink: str) -> None:
        """Schedule a write of a sink's cursor."""
        self._moved_cursors.add(sink)
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._wake_up.set)

    async def run(self) -> None:
        """Write until canceled.

        Raises:
            FatalError: The file can no longer be written.
        """
        while True:
            await self._wake_up.wait()
            self._wake_up.clear()
            self._in_flight, self._pending = self._pending, []
            try:
                await self._write()
            except Exception as error:
                for append in [*self._in_flight, *self._pending]:
                    if not append.done.done():
                        append.done.set_exception(error)
                raise

    async def finish(self) -> None:
        """Try once to write everything that is pending.

        Raises:
            BridgeError: The write failed.
        """
        self._in_flight += self._pending
        self._pending = []
        self._moved_cursors |= set(self._queues)  # includes the cursors of a transaction that was interrupted
        records = [record for append in self._in_flight for record in append.records]
        batch = self._build_batch(records, _size(records))
        await self._worker.run_once(lambda store: store.write(batch))

    # --- one transaction ---

    async def _write(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        records = [record for append in self._in_flight for record in append.records]
        size = _size(records)
        now = self._clock.now().monotonic
        await self._enforce_limits(len(records), size)
        batch = self._build_batch(records, size)
        began = self._clock.now().monotonic
        for sink, uptime in (await self._worker.run_until_done(lambda store: store.write(batch))).items():
            self._queues[sink].oldest_since = self._uptime_origin + uptime * SECOND
        self.commits.observe(to_seconds(self._clock.now().monotonic - began))
        self._nothing_appended = self._nothing_appended and not records
        for queue in self._queues.values():
            if not queue.depth(self._cache.end):
                queue.oldest_since = now
                queue.offset = self._cache.end_offset  # a migrated one is inexact
        self._cache.extend(records, size)
        for queue in self._queues.values():
            queue.not_empty.set()
        done, self._in_flight = self._in_flight, []
        for append in done:
            if not append.done.done():
                append.done.set_result(None)
        if not records and await self._worker.run_until_done(lambda store: store.release_space()):
            self._schedule_flush()

    def _build_batch(self, records: Sequence[Record], size: int) -> WriteBatch:
        checkpoint: dict[str, bytes | None] = {}
        for append in self._in_flight:
            checkpoint.update(append.checkpoint)
        moved, self._moved_cursors = self._moved_cursors, set()
        return WriteBatch(
            chunks=list(split_into_chunks(records, self._cache.end, self.uptime)),
            end_offset=self._cache.end_offset + size,
            checkpoint=checkpoint,
            cursors=self._cursors(moved),
            released_positions=self._take_released_positions(min_advance=1 if not records else _RELEASE_BATCH_RECORDS),
            is_first_append=self._nothing_appended and bool(records),
        )

    def _cursors(self, sinks: Iterable[str]) -> dict[str, tuple[int, int]]:
        return {sink: (self._queues[sink].cursor, self._queues[sink].offset) for sink in sinks}

    def _take_released_positions(self, min_advance: int) -> Sequence[PositionRange]:
        """Return the ranges to delete, once the cursors have advanced enough; few large deletes are cheaper."""
        queues = [*self._queues.values(), *self._removed.values()]
        progress = sum(queue.cursor for queue in queues)
        if progress - self._progress_at_release < min_advance:
            return ()
        self._progress_at_release = progress
        return released_by_all(queues)

    # --- limits ---

    async def _enforce_limits(self, records: int, size: int) -> None:
        uptime = self.uptime
        is_due = uptime >= self._last_housekeeping + _HOUSEKEEPING_SECONDS
        if is_due:
            self._last_housekeeping = uptime
            await self._expire_removed_sinks(uptime - REMOVED_SINK_RETENTION_SECONDS)
            await self._worker.run_until_done(lambda store: store.save_uptime(uptime))
        for queue in self._removed.values():
            if any(self._overflow(queue, records, size)):
                await self._expire_removed_sinks(uptime)
                break
        for sink, queue in self._queues.items():
            overflow = self._overflow(queue, records, size)
            if any(overflow) or (is_due and queue.depth(self._cache.end)):
                await self._drop(sink, queue, *overflow)

    def _overflow(self, queue: SinkQueue, records: int, size: int) -> tuple[int, int]:
        backlog, backlog_size = queue.depth(self._cache.end), queue.size(self._cache.end_offset)
        return self._limits.overflow(backlog + records, backlog_size + size)

    async def _expire_removed_sinks(self, removed_before: int) -> None:
        if not self._removed:
            return
        for sink in await self._worker.run_until_done(lambda store: store.expire_removed_sinks(removed_before)):
            queue = self._removed.pop(sink, None)
            _log.warning(
                "removed_sink_expired", sink=sink, backlog=queue.depth(self._cache.end) if queue is not None else 0
            )

    async def _drop(self, sink: str, queue: SinkQueue, records: int, size: int) -> None:
        """Replace a queue's oldest records that are not in flight by loss records."""
        async with queue.selection_lock:
            start, written_before = queue.first_droppable, self.uptime - self._limits.max_age
            released_by_others = released_by_all(
                other for other in [*self._queues.values(), *self._removed.values()] if other is not queue
            )
            cursors, now = self._cursors(self._moved_cursors), self._clock.now().wall
            built: list[list[LossRange]] = []

            def job(store: Store) -> list[LossRange]:
                if not built:  # only once: a retry can write the losses again, but no longer read deleted records
                    headers = _headers_to_drop(store, start, records, size, written_before)
                    built.append(_build_losses(store, queue, headers, now))
                losses = built[0]
                if losses:
                    ranges = [PositionRange(loss.first, loss.end) for loss in losses]
                    released = list(intersection(ranges, released_by_others))
                    store.save_losses(sink, losses, released, cursors)
                return losses

            losses = await self._worker.run_until_done(job)
            if losses:
                queue.drop(losses)
                lost = sum(loss.end - loss.first for loss in losses)
                backlog = queue.depth(self._cache.end)
                self._rate_limiter.log(
                    _log.warning, sink, "outbox_records_dropped", sink=sink, dropped=lost, backlog=backlog
                )
                queue.not_empty.set()


# --- selection of the records to drop ---


def _headers_to_drop(store: Store, start: int, records: int, size: int, written_before: int) -> Iterator[ChunkHeader]:
    """Iterate over the oldest chunks from position ``start`` on; the first one without its records before ``start``.

    They have at least ``records`` records and ``size`` bytes, and all records written before ``written_before``
    (uptime). Only whole chunks are dropped, so they may have a little more.
    """
    for header in store.headers(start):
        if records <= 0 and size <= 0 and header.uptime >= written_before:
            return
        dropped = header
        if (kept := start - header.position) > 0:
            dropped = ChunkHeader(
                start,
                header.record_count - kept,
                header.epoch,
                header.sequence + kept,
                header.uptime,
                header.size - sum(store.record_sizes(header)[:kept]),
            )
        records -= dropped.record_count
        size -= dropped.size
        yield dropped


def _build_losses(store: Store, queue: SinkQueue, headers: Iterable[ChunkHeader], now: int) -> list[LossRange]:
    """Build the losses for dropped chunks, in order, one per epoch; the first may extend a loss of the queue."""
    runs: list[ChunkHeader] = []
    for header in headers:
        if not runs and (loss := queue.open_loss(header.epoch, header.sequence)) is not None:
            runs = [ChunkHeader(loss.first, loss.end - loss.first, header.epoch, loss.sequence, 0, loss.size)]
        last = runs[-1] if runs else None
        if last is not None and (header.epoch, header.sequence) == (last.epoch, last.sequence + last.record_count):
            runs[-1] = last._replace(record_count=last.record_count + header.record_count, size=last.size + header.size)
        else:
            runs.append(header)
    losses = []
    for run in runs:
        end = run.position + run.record_count
        lost = lost_record(store.read(end - 1, end, 1, 0)[0], run.sequence, "overflow", now)
        losses.append(LossRange(run.position, end, run.sequence, run.size, "overflow", lost))
    return losses


def _size(records: Iterable[Record]) -> int:
    return sum(len(record.data) for record in records)
