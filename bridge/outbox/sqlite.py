"""The outbox on disk: appended records survive crashes of the process and of the machine.

Invariants:
- Records, their sequence numbers and the checkpoint are written in one transaction, so they agree after a SIGKILL.
- A sink gets only records that are on the disk. It gets the appended records in order, or a ``lost`` record in their
  place, and it gets unacknowledged records again, byte for byte.
- Appends that arrive during a transaction share the next one.
- A failed write is never treated as done: appends wait until the disk works again.

A new sink starts with the records that are appended after its first start, which begin with a snapshot. A removed sink
keeps its cursor for a day of uptime, or until its space is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import structlog

from bridge.core.errors import BridgeError
from bridge.core.events import Record
from bridge.core.ports import Clock, Lag, Recollection
from bridge.core.time import SECOND, to_seconds
from bridge.outbox import dead_letters
from bridge.outbox.bounds import Bounds
from bridge.outbox.database import Database
from bridge.outbox.folder import StateFolder
from bridge.outbox.lane import Batch, Cover, Lane, Stretch, refusals
from bridge.outbox.rows import Content
from bridge.outbox.store import Store
from bridge.outbox.tail import Tail
from bridge.outbox.writer import ABSENT_KEPT, Writer

READ_BYTES = 1024 * 1024
TAIL_BYTES = 8 * 1024 * 1024
CLOSE_SECONDS = 2.0
_NOTHING: Mapping[str, bytes | None] = {}
_log = structlog.get_logger(__name__)


class SqliteOutbox:
    """Implements ``bridge.core.ports.Outbox``; created with ``open``, for use on one event loop."""

    def __init__(
        self,
        store: Store,
        folder: StateFolder,
        content: Content,
        sinks: Iterable[str],
        clock: Clock,
        bounds: Bounds,
        on_loss: Callable[[], None],
    ) -> None:
        self._store = store
        self._folder = folder
        self._clock = clock
        self._on_loss = on_loss
        self._memory = Recollection(content.memory, reset=content.reset is not None, last_written=content.reset or 0)
        self._tail = Tail(content.end, TAIL_BYTES)
        began = clock.now().monotonic - content.age * SECOND
        absent = {
            name: Lane(
                stored.cursor, covers=stored.covers, size=stored.size, since=began + stored.age_of_oldest * SECOND
            )
            for name, stored in content.lanes.items()
        }
        self._lanes = {name: absent.pop(name) if name in absent else Lane(content.end) for name in sinks}
        self._absent = absent
        self._writer = Writer(store, self._tail, self._lanes, absent, clock, bounds, began)
        self._failure: Exception | None = None
        self._writing: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        path: Path,
        sinks: Iterable[str],
        clock: Clock,
        bounds: Bounds,
        *,
        on_loss: Callable[[], None] = lambda: None,
    ) -> SqliteOutbox:
        """Open the outbox in a directory, which is created if it does not exist.

        Args:
            path: The directory; no other process may use it at the same time.
            sinks: The ids of the sinks, which identify their cursors after a restart.
            clock: Source of time and random numbers.
            limits: Limits of each sink's backlog.
            on_loss: Called when a sink has acknowledged the loss of an overflow, so that a snapshot can follow.

        Raises:
            FatalError: The directory cannot be used; the message says why and what to do.
        """
        folder = StateFolder(path)
        store = Store(folder, clock)
        try:
            outbox = cls(store, folder, await store.open(), sinks, clock, bounds, on_loss)
            await outbox._settle()
        except BaseException:
            await store.close()
            raise
        outbox._writing = asyncio.create_task(outbox._write())
        return outbox

    async def _settle(self) -> None:
        for name, lane in self._absent.items():
            _log.warning("sink_removed", sink=name, backlog=lane.depth(self._tail.end), retention_seconds=ABSENT_KEPT)
        cursors = {name: lane.cursor for name, lane in self._lanes.items()}
        await self._store.insist(lambda database: database.settle(cursors, self._writer.age))

    async def _write(self) -> None:
        try:
            await self._writer.run()
        except Exception as error:  # noqa: BLE001 (raised again by append and read)
            self._failure = error
            for lane in self._lanes.values():
                lane.filled.set()

    @property
    def trouble(self) -> str | None:
        """Why the file cannot be written at the moment; None if it can."""
        return self._store.trouble

    def recall(self) -> Recollection:
        """Return the checkpoint of the last run; later calls return an empty one."""
        checkpoint, self._memory = self._memory, Recollection({})
        return checkpoint

    async def close(self) -> None:
        """Write pending changes once, within a timeout, and close the file and the directory."""
        writer_task, self._writing = self._writing, None
        if writer_task is None:
            return
        writer_task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writer_task
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._failure is None:
                    await self._writer.finish()
                await self._store.close()
        except (BridgeError, TimeoutError) as error:
            _log.error("outbox_close_failed", error=str(error))

    # --- for the watcher ---

    async def append(self, records: Sequence[Record], memory: Mapping[str, bytes | None] = _NOTHING) -> None:
        """Persist records together with changes of the checkpoint, all or nothing."""
        if self._failure is not None:
            raise self._failure
        await self._writer.append(records, memory)

    # --- for sinks ---

    async def read(self, sink: str, limit: int, max_bytes: int = READ_BYTES) -> Sequence[Record]:
        """Wait for records that a sink has not acknowledged, and return the oldest."""
        lane = self._lanes[sink]
        while self._failure is None and not lane.depth(self._tail.end):
            lane.filled.clear()
            await lane.filled.wait()
        if self._failure is not None:
            raise self._failure
        async with lane.changing:
            batch = await self._waiting(lane, limit, max_bytes)
            lane.handed = batch.within(limit, max_bytes)
        return lane.handed.records

    async def acknowledge(self, sink: str, batch: Sequence[Record]) -> None:
        """Advance a sink's cursor past the records of its last read, or the first of them."""
        lane = self._lanes[sink]
        passed = lane.acknowledge(batch)
        self._writer.moved(sink, told=bool(passed))
        first = min(lane.cursor for lane in self._lanes.values())
        self._tail.forget(first)
        if any(loss.reason == "overflow" for loss in passed):
            self._on_loss()

    async def refuse(self, sink: str, positions: Collection[tuple[int, int]], reason: str) -> int:
        """Move records that a sink rejected to the dead-letter file, and replace them by loss records."""
        lane, now = self._lanes[sink], self._clock.now().wall
        losses = refusals(lane.handed, positions, now)
        if not losses:
            return 0
        ends = {loss.end for loss in losses}
        rejected = [record for record, end in zip(*lane.handed, strict=True) if end in ends]

        def job(database: Database) -> None:
            dead_letters.write(self._folder.dead_letters, sink, rejected, reason, now)
            database.cover(sink, losses)

        await self._store.insist(job)
        lane.replace(losses)
        return len(losses)

    def depth(self, sink: str) -> int:
        """Return how many records a sink has not acknowledged."""
        return self._lanes[sink].depth(self._tail.end)

    def lag(self, sink: str) -> Lag:
        """Return the depth, size and age of a sink's backlog, and its dropped records."""
        lane, depth = self._lanes[sink], self.depth(sink)
        age = to_seconds(self._clock.now().monotonic - lane.since) if depth else 0.0
        return Lag(depth, lane.size, age, lane.lost)

    async def _waiting(self, lane: Lane, limit: int, max_bytes: int) -> Batch:
        """Return the records to read from the cursor on: up to the limits, or a little more."""
        records: list[Record] = []
        ends: list[int] = []
        for step in lane.plan(self._tail.end):
            if isinstance(step, Cover):
                records.append(step.record)
                ends.append(step.end)
            else:
                found = await self._fetch(step, limit - len(records), max_bytes)
                records += found
                ends += range(step.first + 1, step.first + len(found) + 1)
            if len(records) >= limit or ends[-1] < step.end:
                break
        return Batch(records, ends)

    async def _fetch(self, stretch: Stretch, limit: int, max_bytes: int) -> Sequence[Record]:
        first, end = stretch.first, min(stretch.end, stretch.first + limit)
        if first >= self._tail.first:
            return self._tail.get(first, end)
        return await self._store.insist(lambda database: database.read(first, end, limit, max_bytes))
