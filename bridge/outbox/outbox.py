"""The outbox: stores records until the sinks acknowledge them, on disk or in memory.

Invariants:
- A sink gets only records that are stored. It gets the appended records in order, or a ``lost`` record in their place,
  and it gets unacknowledged records again, byte for byte.
- At the limits, only the lagging sink loses records, its oldest first.

On disk, appended records survive crashes of the process and of the machine:
- Records, their sequence numbers and the checkpoint are written in one transaction, so they agree after a SIGKILL.
- Appends that arrive during a transaction share the next one.
- A failed write is never treated as done: appends wait until the disk works again.

A new sink starts with the records that are appended after its first start, which begin with a snapshot. A removed sink
keeps its cursor for a day of uptime, or until its space is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import structlog

from bridge.core.errors import BridgeError
from bridge.core.ports import Clock, Lag, StoredCheckpoint
from bridge.core.records import Record
from bridge.core.time import SECOND, to_seconds
from bridge.outbox import dead_letters
from bridge.outbox.chunks import LoadedState
from bridge.outbox.database import Store
from bridge.outbox.database_worker import DatabaseWorker
from bridge.outbox.memory_store import MemoryStore
from bridge.outbox.sink_queue import Batch, Limits, LossRange, PositionRange, SinkQueue, rejection_losses
from bridge.outbox.state_directory import StateDirectory
from bridge.outbox.writer import REMOVED_SINK_RETENTION_SECONDS, ReadCache, Writer
from bridge.task_groups import completes_within
from bridge.telemetry.counters import Histogram
from bridge.telemetry.rate_limit import RateLimiter

READ_BYTES = 1024 * 1024
READ_CACHE_BYTES = 8 * 1024 * 1024
FINISH_SECONDS = 1.5
RELEASE_SECONDS = 0.5
_NO_CHANGES: Mapping[str, bytes | None] = {}
_log = structlog.get_logger(__name__)


class StoredOutbox:
    """Implements ``bridge.core.ports.Outbox``; an async context manager, for use on one event loop, after ``open``.

    When the context ends, it writes pending changes once, within a timeout, and closes the file and the directory.

    Args:
        path: The directory, which is created if it does not exist; None for an outbox in memory. No other process may
            use it at the same time.
        sinks: The ids of the sinks, which identify their cursors after a restart.
        clock: Source of time and random numbers.
        limits: Limits of each sink's backlog.
        on_wait: Called when ``open`` or a write has to wait for the disk, or for another process.
    """

    def __init__(
        self,
        path: Path | None,
        sinks: Iterable[str],
        clock: Clock,
        limits: Limits,
        *,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory = None if path is None else StateDirectory(path)
        self._worker = MemoryStore() if self._directory is None else DatabaseWorker(self._directory, clock, on_wait)
        self._rate_limiter = RateLimiter(clock)
        self._sinks = list(sinks)
        self._clock = clock
        self._limits = limits
        self._writer_error: Exception | None = None
        self._tasks = asyncio.TaskGroup()
        self._writer_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._writer_task is not None:
                self._writer_task.cancel()
                await asyncio.wait([self._writer_task])
                await self._finish_writing()
        finally:  # also if this is canceled
            try:
                # It may be slow, or opening may be in progress: then the end of the process unlocks.
                await completes_within(RELEASE_SECONDS, self._clock, self._worker.close())
            finally:
                await self._tasks.__aexit__(None, None, None)

    async def open(self, on_locked: Callable[[Path], Awaitable[None]] | None = None) -> None:
        """Lock the directory, call ``on_locked`` with it, and open the database; in memory, there is no directory.

        This takes as long as another process uses the directory, or its disk is full or failing. The end of the context
        releases the directory, also if the call fails or is canceled.

        Raises:
            FatalError: The directory cannot be used; the message says why and what to do.
        """
        await self._worker.lock()
        if self._directory is not None and on_locked is not None:
            await on_locked(self._directory.path)
        self._load(await self._worker.open())
        await self._register_sinks()
        self._writer_task = self._tasks.create_task(self._run_writer())

    def _load(self, state: LoadedState) -> None:
        self._checkpoint = StoredCheckpoint(
            state.checkpoint,
            reset=state.quarantined_written_at is not None,
            last_written=state.quarantined_written_at or 0,
            copied=state.copied,
        )
        self._cache = ReadCache(state.end, state.end_offset, READ_CACHE_BYTES)
        uptime_origin = self._clock.now().monotonic - state.uptime * SECOND
        removed = {
            name: SinkQueue(
                stored.cursor,
                # The stored one can be inexact after a migration, and on a disk that ignores fsync.
                stored.offset if stored.cursor < state.end else state.end_offset,
                losses=stored.losses,
                oldest_since=uptime_origin + stored.oldest_uptime * SECOND,
            )
            for name, stored in state.queues.items()
        }
        self._queues = {
            name: removed.pop(name) if name in removed else SinkQueue(state.end, state.end_offset)
            for name in self._sinks
        }
        self._removed = removed
        self._writer = Writer(
            self._worker, self._cache, self._queues, removed, self._clock, self._limits, uptime_origin
        )

    async def _register_sinks(self) -> None:
        for name, queue in self._removed.items():
            _log.warning(
                "sink_removed",
                sink=name,
                backlog=queue.depth(self._cache.end),
                retention_seconds=REMOVED_SINK_RETENTION_SECONDS,
            )
        uptime = self._writer.uptime
        await self._worker.run_until_done(lambda store: store.register_sinks(self._queues, uptime))

    async def _run_writer(self) -> None:
        try:
            await self._writer.run()
        except Exception as error:  # noqa: BLE001 (raised again by append and read)
            self._writer_error = error
            for queue in self._queues.values():
                queue.not_empty.set()

    @property
    def last_error(self) -> str | None:
        """Why the file cannot be written at the moment, also because it is being opened; None if it can."""
        return self._worker.last_error

    @property
    def commits(self) -> Histogram:
        """The durations of all transactions since the outbox was opened."""
        return Histogram() if self._writer_task is None else self._writer.commits

    def load_checkpoint(self) -> StoredCheckpoint:
        """Return the checkpoint of the last run; later calls return an empty one."""
        checkpoint, self._checkpoint = self._checkpoint, StoredCheckpoint({})
        return checkpoint

    async def _finish_writing(self) -> None:
        if self._writer_error is not None:
            return
        try:
            async with self._clock.timeout(FINISH_SECONDS):
                await self._writer.finish()
        except (BridgeError, TimeoutError) as error:
            _log.error("outbox_close_failed", error=str(error) or f"not written within {FINISH_SECONDS:g} s")

    # --- for the watcher ---

    async def append(self, records: Sequence[Record], checkpoint: Mapping[str, bytes | None] = _NO_CHANGES) -> None:
        """Store records together with changes of the checkpoint, all or nothing.

        In memory, the checkpoint is not stored, because no later process could read it.
        """
        if self._writer_error is not None:
            raise self._writer_error
        await self._writer.append(records, _NO_CHANGES if self._directory is None else checkpoint)

    # --- for sinks ---

    async def read(self, sink: str, limit: int, max_bytes: int = READ_BYTES) -> Sequence[Record]:
        """Wait for records that a sink has not acknowledged, and return the oldest."""
        queue = self._queues[sink]
        while self._writer_error is None and not queue.depth(self._cache.end):
            queue.not_empty.clear()
            await queue.not_empty.wait()
        if self._writer_error is not None:
            raise self._writer_error
        async with queue.selection_lock:
            batch = await self._select_batch(queue, limit, max_bytes)
            queue.in_flight = batch.truncate(limit, max_bytes)
        return queue.in_flight.records

    async def acknowledge(self, sink: str, batch: Sequence[Record]) -> bool:
        """Advance a sink's cursor past the records of its last read, or past a prefix of them.

        Returns:
            Whether they include a loss due to an overflow.
        """
        queue = self._queues[sink]
        passed = queue.acknowledge(batch)
        self._writer.cursor_moved(sink)
        self._cache.evict(min(queue.cursor for queue in self._queues.values()))
        return any(loss.reason == "overflow" for loss in passed)

    async def reject(self, sink: str, positions: Collection[tuple[int, int]], reason: str) -> int:
        """Move records that a sink rejected to the dead-letter file, and replace them by loss records.

        In memory, there is no dead-letter file, so they are logged instead.
        """
        queue, now = self._queues[sink], self._clock.now().wall
        losses = rejection_losses(queue.in_flight, positions, now)
        if not losses:
            return 0
        ends = {loss.end for loss in losses}
        rejected = [record for record, end in zip(*queue.in_flight, strict=True) if end in ends]
        directory = self._directory

        def job(store: Store) -> None:
            if directory is not None:
                dead_letters.write(directory.dead_letters, sink, rejected, reason, now)
            store.save_losses(sink, losses, (), {})

        await self._worker.run_until_done(job)
        queue.mark_rejected(losses)
        if directory is None:
            self._log_discarded(sink, rejected, reason)
        return len(losses)

    def _log_discarded(self, sink: str, rejected: Iterable[Record], reason: str) -> None:
        for record in rejected:
            position = f"{record.epoch}-{record.sequence}"
            self._rate_limiter.log(
                _log.error, (sink, reason), "rejected_record_discarded", sink=sink, position=position, reason=reason
            )

    def depth(self, sink: str) -> int:
        """Return how many records a sink has not acknowledged."""
        return self._queues[sink].depth(self._cache.end)

    def lag(self, sink: str) -> Lag:
        """Return the depth, size and age of a sink's backlog, and its dropped records."""
        queue, depth = self._queues[sink], self.depth(sink)
        # After a restart, the oldest record can be ahead of the uptime, which is saved once a minute.
        age = to_seconds(max(0, self._clock.now().monotonic - queue.oldest_since)) if depth else 0.0
        return Lag(depth, queue.size(self._cache.end_offset), age, queue.dropped)

    async def _select_batch(self, queue: SinkQueue, limit: int, max_bytes: int) -> Batch:
        """Select the records to read from the cursor on: up to the limits, or a little more."""
        records: list[Record] = []
        ends: list[int] = []
        for step in queue.read_plan(self._cache.end):
            if isinstance(step, LossRange):
                records.append(step.record)
                ends.append(step.end)
            else:
                fetched = await self._fetch(step, limit - len(records), max_bytes)
                records += fetched
                ends += range(step.first + 1, step.first + len(fetched) + 1)
            if len(records) >= limit or ends[-1] < step.end:
                break
        return Batch(records, ends)

    async def _fetch(self, positions: PositionRange, limit: int, max_bytes: int) -> Sequence[Record]:
        first, end = positions.first, min(positions.end, positions.first + limit)
        if first >= self._cache.first:
            return self._cache.get(first, end)
        return await self._worker.run_until_done(lambda store: store.read(first, end, limit, max_bytes))
