"""The writer: combines pending appends and cursors into one transaction at a time (group commit)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import structlog

from bridge.core.ports import Clock
from bridge.core.records import Record
from bridge.core.time import SECOND
from bridge.outbox.database import Database
from bridge.outbox.database_types import WriteBatch, split_into_chunks
from bridge.outbox.database_worker import DatabaseWorker
from bridge.outbox.dropping import DropPlan, build_losses
from bridge.outbox.limits import Limits
from bridge.outbox.read_cache import ReadCache
from bridge.outbox.sink_queue import LossRange, PositionRange, SinkQueue, intersection, released_by_all
from bridge.telemetry.rate_limit import RateLimiter

REMOVED_SINK_RETENTION_SECONDS = 24 * 3600  # seconds of uptime for which a removed sink keeps its cursor
FLUSH_SECONDS = 0.5  # maximum delay of writing a cursor; a cursor lost in a crash only causes duplicates
_HOUSEKEEPING_SECONDS = 60
_RELEASE_BATCH_RECORDS = 512
_log = structlog.get_logger(__name__)


class _Append(NamedTuple):
    records: Sequence[Record]
    checkpoint: Mapping[str, bytes | None]
    done: asyncio.Future[None]


class Writer:
    """Write appends and cursors to the file, and keep each queue within its limits.

    Args:
        worker: Runs jobs on the database.
        cache: Receives the written records; its ``end`` is the position after the last record on the disk.
        queues: The queues of the sinks.
        removed: The queues of removed sinks, until they expire.
        clock: Source of time and random numbers.
        limits: Limits of each queue.
        uptime_origin: The moment (monotonic) at which the uptime would have been 0, had the bridge run without a break.
    """

    def __init__(
        self,
        worker: DatabaseWorker,
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
        self._last_housekeeping = self.uptime
        self._pending: list[_Append] = []
        self._in_flight: list[_Append] = []
        self._moved_cursors: set[str] = set()  # sinks whose cursors are not written yet
        self._passed_losses: set[str] = set()  # sinks of these whose cursors have passed losses
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

    def cursor_moved(self, sink: str, *, passed_losses: bool) -> None:
        """Schedule a write of a sink's cursor; ``passed_losses``: whether the cursor has passed losses."""
        self._moved_cursors.add(sink)
        if passed_losses:
            self._passed_losses.add(sink)
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
        self._passed_losses |= self._moved_cursors
        batch = self._build_batch([record for append in self._in_flight for record in append.records])
        await self._worker.run_once(lambda database: database.write(batch))

    # --- one transaction ---

    async def _write(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        records = [record for append in self._in_flight for record in append.records]
        size = sum(len(record.data) for record in records)
        now = self._clock.now().monotonic
        await self._enforce_limits(len(records), size)
        batch = self._build_batch(records)
        for sink, uptime in (await self._worker.run_until_done(lambda database: database.write(batch))).items():
            self._queues[sink].oldest_since = self._uptime_origin + uptime * SECOND
        self._nothing_appended = self._nothing_appended and not records
        for queue in self._queues.values():
            if not queue.depth(self._cache.end):
                queue.oldest_since = now
        self._cache.extend(records)
        for queue in self._queues.values():
            queue.size += size
            queue.not_empty.set()
        for queue in self._removed.values():
            queue.size += size
        done, self._in_flight = self._in_flight, []
        for append in done:
            if not append.done.done():
                append.done.set_result(None)
        if not records and await self._worker.run_until_done(Database.release_space):
            self._schedule_flush()

    def _build_batch(self, records: Sequence[Record]) -> WriteBatch:
        checkpoint: dict[str, bytes | None] = {}
        for append in self._in_flight:
            checkpoint.update(append.checkpoint)
        moved, self._moved_cursors = self._moved_cursors, set()
        passed, self._passed_losses = self._passed_losses, set()
        return WriteBatch(
            chunks=list(split_into_chunks(records, self._cache.end, self.uptime)),
            checkpoint=checkpoint,
            cursors=self._cursors(moved),
            passed_losses=self._cursors(passed),
            released_positions=self._take_released_positions(min_advance=1 if not records else _RELEASE_BATCH_RECORDS),
            is_first_append=self._nothing_appended and bool(records),
        )

    def _cursors(self, sinks: Iterable[str]) -> dict[str, int]:
        return {sink: self._queues[sink].cursor for sink in sinks}

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
            await self._worker.run_until_done(lambda database: database.save_uptime(uptime))
        for queue in self._removed.values():
            if any(self._overflow(queue, records, size)):
                await self._expire_removed_sinks(uptime)
                break
        for sink, queue in self._queues.items():
            overflow = self._overflow(queue, records, size)
            if any(overflow) or (is_due and queue.depth(self._cache.end)):
                await self._drop(sink, queue, *overflow)

    def _overflow(self, queue: SinkQueue, records: int, size: int) -> tuple[int, int]:
        return self._limits.overflow(queue.depth(self._cache.end) + records, queue.size + size)

    async def _expire_removed_sinks(self, removed_before: int) -> None:
        if not self._removed:
            return
        for sink in await self._worker.run_until_done(lambda database: database.expire_removed_sinks(removed_before)):
            queue = self._removed.pop(sink, None)
            _log.warning(
                "removed_sink_expired", sink=sink, backlog=queue.depth(self._cache.end) if queue is not None else 0
            )

    async def _drop(self, sink: str, queue: SinkQueue, records: int, size: int) -> None:
        """Replace a queue's oldest records that are not in flight by loss records."""
        async with queue.selection_lock:
            plan = DropPlan(queue.first_droppable, records, size, self.uptime - self._limits.max_age)
            released_by_others = released_by_all(
                other for other in [*self._queues.values(), *self._removed.values()] if other is not queue
            )
            cursors, passed = self._cursors(self._moved_cursors), self._cursors(self._passed_losses)
            now = self._clock.now().wall
            built: list[tuple[list[LossRange], int]] = []

            def job(database: Database) -> tuple[list[LossRange], int]:
                if not built:  # only once: a retry can write the losses again, but no longer read deleted records
                    built.append(build_losses(database, plan, queue.open_loss, now))
                losses, dropped = built[0]
                if losses:
                    ranges = [PositionRange(loss.first, loss.end) for loss in losses]
                    released = list(intersection(ranges, released_by_others))
                    database.save_losses(sink, losses, released, cursors, passed)
                return losses, dropped

            losses, dropped = await self._worker.run_until_done(job)
            if losses:
                queue.drop(losses, dropped)
                lost = sum(loss.end - loss.first for loss in losses)
                backlog = queue.depth(self._cache.end)
                self._rate_limiter.log(
                    _log.warning, sink, "outbox_records_dropped", sink=sink, dropped=lost, backlog=backlog
                )
                queue.not_empty.set()
