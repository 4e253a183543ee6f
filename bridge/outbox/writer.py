"""The writer: combines pending appends and cursors into one transaction at a time (group commit)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import structlog

from bridge.core.events import Record
from bridge.core.ports import Clock
from bridge.core.time import SECOND
from bridge.outbox.bounds import Bounds
from bridge.outbox.database import Database
from bridge.outbox.lane import Cover, Lane, Stretch, intersection, unneeded_by_all
from bridge.outbox.losses import Excess, losses
from bridge.outbox.rows import Writing, chunked
from bridge.outbox.store import Store
from bridge.outbox.tail import Tail
from bridge.telemetry.rate_limit import RateLimiter

ABSENT_KEPT = 24 * 3600  # seconds of uptime for which a removed sink keeps its cursor
FLUSH_SECONDS = 0.5  # maximum delay of writing a cursor; a cursor lost in a crash only causes duplicates
_HOUSEKEEPING = 60  # seconds
_FREED_AT_ONCE = 512  # records
_log = structlog.get_logger(__name__)


class _Append(NamedTuple):
    records: Sequence[Record]
    memory: Mapping[str, bytes | None]
    written: asyncio.Future[None]


class Writer:
    """Writes appends and cursors to the file, and keeps each queue within its limits.

    Args:
        store: The file.
        cache: Gets the written records; its end is the position after the last record on the disk.
        queues: The queues of the sinks.
        removed: The queues of removed sinks, which expire.
        clock: Source of time and random numbers.
        limits: Limits of each queue.
        began: Time (monotonic) at which the bridge would have started, had it run for its whole uptime without a break.
    """

    def __init__(
        self,
        store: Store,
        tail: Tail,
        lanes: Mapping[str, Lane],
        absent: dict[str, Lane],
        clock: Clock,
        bounds: Bounds,
        began: int,
    ) -> None:
        self._store = store
        self._tail = tail
        self._lanes = lanes
        self._absent = absent
        self._clock = clock
        self._bounds = bounds
        self._began = began
        self._house_kept = self.age
        self._waiting: list[_Append] = []
        self._under_way: list[_Append] = []
        self._moved: set[str] = set()  # sinks whose cursors are not written yet
        self._told: set[str] = set()  # sinks of these whose cursors have passed losses
        self._freed = 0  # sum of all cursors when records were last released
        self._first = True
        self._limiter = RateLimiter(clock)
        self._wanted = asyncio.Event()
        self._flush: asyncio.TimerHandle | None = None

    @property
    def age(self) -> int:
        """The bridge's total uptime in seconds; setting the system's clock does not change it."""
        return (self._clock.now().monotonic - self._began) // SECOND

    def append(self, records: Sequence[Record], memory: Mapping[str, bytes | None]) -> asyncio.Future[None]:
        """Queue an append; the future completes when the append is on the disk."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append(_Append(records, memory, written))
        self._wanted.set()
        return written

    def moved(self, sink: str, *, told: bool) -> None:
        """Schedule a write of a sink's cursor; ``passed_losses`` says whether it has passed losses."""
        self._moved.add(sink)
        if told:
            self._told.add(sink)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._wanted.set)

    async def run(self) -> None:
        """Write until cancelled.

        Raises:
            FatalError: The file can no longer be written.
        """
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._under_way, self._waiting = self._waiting, []
            try:
                await self._write()
            except Exception as error:
                for append in [*self._under_way, *self._waiting]:
                    if not append.written.done():
                        append.written.set_exception(error)
                raise

    async def finish(self) -> None:
        """Try once to write everything that is pending.

        Raises:
            BridgeError: The write failed.
        """
        self._under_way += self._waiting
        self._waiting = []
        self._moved |= set(self._lanes)  # includes the cursors of a transaction that was interrupted
        self._told |= self._moved
        writing = self._transaction([each for append in self._under_way for each in append.records])
        await self._store.attempt(lambda database: database.write(writing))

    # --- one transaction ---

    async def _write(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        records = [each for append in self._under_way for each in append.records]
        size = sum(len(record.data) for record in records)
        now = self._clock.now().monotonic
        await self._make_room(len(records), size)
        writing = self._transaction(records)
        for sink, age in (await self._store.insist(lambda database: database.write(writing))).items():
            self._lanes[sink].since = self._began + age * SECOND
        self._first = self._first and not records
        for lane in self._lanes.values():
            if not lane.depth(self._tail.end):
                lane.since = now
        self._tail.extend(records)
        for lane in self._lanes.values():
            lane.size += size
            lane.filled.set()
        for lane in self._absent.values():
            lane.size += size
        done, self._under_way = self._under_way, []
        for append in done:
            if not append.written.done():
                append.written.set_result(None)
        if not records and await self._store.insist(Database.give_back):
            self._flush_soon()

    def _transaction(self, records: Sequence[Record]) -> Writing:
        memory: dict[str, bytes | None] = {}
        for append in self._under_way:
            memory.update(append.memory)
        moved, self._moved = self._moved, set()
        passed, self._told = self._told, set()
        return Writing(
            chunks=list(chunked(records, self._tail.end, self.age)),
            memory=memory,
            cursors={sink: self._lanes[sink].cursor for sink in moved},
            passed={sink: self._lanes[sink].cursor for sink in passed},
            unneeded=self._to_free(at_once=1 if not records else _FREED_AT_ONCE),
            first=self._first and bool(records),
        )

    def _to_free(self, at_once: int) -> Sequence[Stretch]:
        """Return the ranges to delete, once the cursors have advanced enough; few large deletes are cheaper."""
        lanes = [*self._lanes.values(), *self._absent.values()]
        moved = sum(lane.cursor for lane in lanes)
        if moved - self._freed < at_once:
            return ()
        self._freed = moved
        return unneeded_by_all(lanes)

    # --- limits ---

    async def _make_room(self, records: int, size: int) -> None:
        age = self.age
        is_due = age >= self._house_kept + _HOUSEKEEPING
        if is_due:
            self._house_kept = age
            await self._forget_absent(age - ABSENT_KEPT)
            await self._store.insist(lambda database: database.note_age(age))
        for lane in self._absent.values():
            if any(self._excess(lane, records, size)):
                await self._forget_absent(age)
                break
        for sink, lane in self._lanes.items():
            excess = self._excess(lane, records, size)
            if any(excess) or (is_due and lane.depth(self._tail.end)):
                await self._drop(sink, lane, *excess)

    def _excess(self, lane: Lane, records: int, size: int) -> tuple[int, int]:
        return self._bounds.excess(lane.depth(self._tail.end) + records, lane.size + size)

    async def _forget_absent(self, since: int) -> None:
        if not self._absent:
            return
        for sink in await self._store.insist(lambda database: database.forget_absent(since)):
            lane = self._absent.pop(sink, None)
            _log.warning(
                "removed_sink_expired", sink=sink, backlog=lane.depth(self._tail.end) if lane is not None else 0
            )

    async def _drop(self, sink: str, lane: Lane, records: int, size: int) -> None:
        """Replace a queue's oldest records by loss records, except those in flight."""
        async with lane.changing:
            excess = Excess(lane.open, records, size, self.age - self._bounds.max_age)
            others = unneeded_by_all(
                each for each in [*self._lanes.values(), *self._absent.values()] if each is not lane
            )
            now = self._clock.now().wall

            built: list[tuple[list[Cover], int]] = []

            def job(database: Database) -> tuple[list[Cover], int]:
                if not built:  # only once: a retry can write the losses again, but not read the deleted records again
                    built.append(losses(database, excess, lane.loss_to_extend, now))
                covers, dropped = built[0]
                if covers:
                    ranges = [Stretch(loss.first, loss.end) for loss in covers]
                    database.cover(sink, covers, list(intersection(ranges, others)))
                return covers, dropped

            covers, dropped = await self._store.insist(job)
            if covers:
                lane.lose(covers, dropped)
                lost = sum(cover.end - cover.first for cover in covers)
                waiting = lane.depth(self._tail.end)
                self._limiter.log(
                    _log.warning, sink, "outbox_records_dropped", sink=sink, dropped=lost, backlog=waiting
                )
                lane.filled.set()
