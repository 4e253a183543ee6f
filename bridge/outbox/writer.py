"""The one that writes: whatever waits shares one transaction, and the next waits until that is on the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import structlog

from bridge.core.events import Record
from bridge.core.ports import Clock
from bridge.outbox.ages import Ages
from bridge.outbox.bounds import Bounds
from bridge.outbox.chunks import chunked
from bridge.outbox.database import Database
from bridge.outbox.lane import Cover, Lane, Stretch, intersection, unneeded_by_all
from bridge.outbox.losses import Excess, losses
from bridge.outbox.rows import Writing
from bridge.outbox.store import Store
from bridge.outbox.tail import Tail
from bridge.telemetry.sparingly import Sparingly

ABSENT_KEPT = 24 * 3600  # seconds of running for which a sink that is gone keeps its place
FLUSH_SECONDS = 0.5  # an acknowledgement waits that long for a transaction to share; lost, it makes duplicates only
_HOUSEKEEPING = 60  # seconds
_FREED_AT_ONCE = 512  # records
_SECOND = 1_000_000_000
_log = structlog.get_logger(__name__)


class _Append(NamedTuple):
    records: Sequence[Record]
    memory: Mapping[str, bytes | None]
    written: asyncio.Future[None]


class Writer:
    """Writes appends and cursors to the file, and keeps what waits for each lane within its bounds.

    Args:
        store: The file.
        tail: Gets what was written; its end is the position after the last record on the disk.
        lanes: The sinks'.
        absent: Those of sinks that are gone; they are forgotten after a while.
        clock: Time and chance.
        bounds: How much may wait for a lane.
        ages: Gets when records were appended.
        age: For how many seconds the bridge has run in all.
    """

    def __init__(
        self,
        store: Store,
        tail: Tail,
        lanes: Mapping[str, Lane],
        absent: dict[str, Lane],
        clock: Clock,
        bounds: Bounds,
        ages: Ages,
        age: int,
    ) -> None:
        self._store = store
        self._tail = tail
        self._lanes = lanes
        self._absent = absent
        self._clock = clock
        self._bounds = bounds
        self._ages = ages
        self._began = clock.now().monotonic - age * _SECOND
        self._house_kept = age
        self._waiting: list[_Append] = []
        self._under_way: list[_Append] = []
        self._moved: set[str] = set()  # lanes whose cursor is not written down yet
        self._told: set[str] = set()  # those of them that have passed covers
        self._freed = 0  # how far the lanes had moved when records were freed last
        self._first = True
        self._sparingly = Sparingly(clock)
        self._wanted = asyncio.Event()
        self._flush: asyncio.TimerHandle | None = None

    @property
    def age(self) -> int:
        """For how many seconds the bridge has run in all; a clock that is set changes nothing about it."""
        return (self._clock.now().monotonic - self._began) // _SECOND

    def append(self, records: Sequence[Record], memory: Mapping[str, bytes | None]) -> asyncio.Future[None]:
        """Take over what is to be written; the future ends when it is."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append(_Append(records, memory, written))
        self._wanted.set()
        return written

    def moved(self, sink: str, *, told: bool) -> None:
        """Take note that a lane's cursor has moved; ``told``: past covers."""
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
            FatalError: The file cannot be written any more.
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
        """Write what is left, once.

        Raises:
            BridgeError: That did not work.
        """
        self._under_way += self._waiting
        self._waiting = []
        self._moved |= set(self._lanes)  # also what a transaction was about to write down
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
        if records:
            self._ages.note(self._tail.end, self._clock.now().monotonic)
        await self._make_room(len(records), size)
        writing = self._transaction(records)
        await self._store.insist(lambda database: database.write(writing))
        self._first = self._first and not records
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
        told, self._told = self._told, set()
        return Writing(
            chunks=list(chunked(records, self._tail.end, self.age)),
            memory=memory,
            cursors={sink: self._lanes[sink].cursor for sink in moved},
            passed={sink: self._lanes[sink].cursor for sink in told},
            unneeded=self._to_free(at_once=1 if not records else _FREED_AT_ONCE),
            first=self._first and bool(records),
        )

    def _to_free(self, at_once: int) -> Sequence[Stretch]:
        """Say now and then which records can be removed: it costs less for many at a time."""
        lanes = [*self._lanes.values(), *self._absent.values()]
        moved = sum(lane.cursor for lane in lanes)
        if moved - self._freed < at_once:
            return ()
        self._freed = moved
        return unneeded_by_all(lanes)

    # --- bounds ---

    async def _make_room(self, records: int, size: int) -> None:
        age = self.age
        keeping_house = age >= self._house_kept + _HOUSEKEEPING
        if keeping_house:
            self._house_kept = age
            await self._forget_absent(age - ABSENT_KEPT)
            await self._store.insist(lambda database: database.note_age(age))
        for lane in self._absent.values():
            if any(self._excess(lane, records, size)):
                await self._forget_absent(age)
                break
        for sink, lane in self._lanes.items():
            excess = self._excess(lane, records, size)
            if any(excess) or (keeping_house and lane.depth(self._tail.end)):
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
        """Drop a lane's oldest records, but for those that were handed out; they are told as lost."""
        async with lane.changing:
            excess = Excess(lane.open, records, size, self.age - self._bounds.max_age)
            others = unneeded_by_all(
                each for each in [*self._lanes.values(), *self._absent.values()] if each is not lane
            )
            now = self._clock.now().wall

            found: list[tuple[list[Cover], int]] = []

            def job(database: Database) -> tuple[list[Cover], int]:
                if not found:  # once: what is written may be written again, what is gone cannot be read again
                    found.append(losses(database, excess, lane.loss_to_extend, now))
                covers, dropped = found[0]
                if covers:
                    mine = [Stretch(cover.first, cover.end) for cover in covers]
                    database.cover(sink, covers, list(intersection(mine, others)))
                return covers, dropped

            covers, dropped = await self._store.insist(job)
            if covers:
                lane.lose(covers, dropped)
                lost = sum(cover.end - cover.first for cover in covers)
                waiting = lane.depth(self._tail.end)
                self._sparingly.say(
                    _log.warning, sink, "outbox_records_dropped", sink=sink, dropped=lost, backlog=waiting
                )
                lane.filled.set()
