"""The outbox on disk: what it took survives whatever ends the process, or the machine.

Invariants:
- Records, their sequence and the memory that goes with them are one transaction: after a SIGKILL they agree.
- No sink gets a record that is not on the disk. Each gets what was appended in order, or a ``lost`` record in its
  place; and what it has not acknowledged it gets again, byte for byte.
- Appends that arrive while a transaction is under way share the next one.
- Where the disk fails nothing is taken for written: appends wait, and are written when it works again.

A sink that is new begins with what is appended after it came: the snapshot of that start. One that is not among the
sinks any more keeps its place for a day of running, or until that space is needed.
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
from bridge.outbox import dead_letters
from bridge.outbox.ages import Ages
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
_SECOND = 1_000_000_000
_NOTHING: Mapping[str, bytes | None] = {}
_log = structlog.get_logger(__name__)


class SqliteOutbox:
    """Implements ``bridge.core.ports.Outbox``; made by ``open``, for use on one event loop."""

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
        absent = {
            name: Lane(stored.cursor, covers=stored.covers, size=stored.size) for name, stored in content.lanes.items()
        }
        self._lanes = {name: absent.pop(name) if name in absent else Lane(content.end) for name in sinks}
        self._absent = absent
        self._ages = Ages()
        began = clock.now().monotonic - content.age * _SECOND
        for stored in sorted(content.lanes.values(), key=lambda lane: lane.cursor):
            self._ages.note(stored.cursor, began + stored.since * _SECOND)
        self._writer = Writer(store, self._tail, self._lanes, absent, clock, bounds, self._ages, content.age)
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
        """Open the outbox in a directory, which is made where it is missing.

        Args:
            path: The directory; no other process may use it at the same time.
            sinks: Their names, by which they are known again after a restart.
            clock: Time and chance.
            bounds: How much may wait for a sink.
            on_loss: Called when a sink has been told of an overflow: a snapshot has to follow.

        Raises:
            FatalError: The directory cannot be used; the text says why and what to do.
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
        except Exception as error:  # noqa: BLE001 (whoever reads or appends gets it)
            self._failure = error
            for lane in self._lanes.values():
                lane.filled.set()

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written down at the moment, if that is so."""
        return self._store.trouble

    def recall(self) -> Recollection:
        """Hand over the memory as it was left."""
        memory, self._memory = self._memory, Recollection({})
        return memory

    async def close(self) -> None:
        """Write down what can be, and let go of everything."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._failure is None:
                    await self._writer.finish()
                await self._store.close()
        except (BridgeError, TimeoutError) as error:
            _log.error("outbox_close_failed", error=str(error))

    # --- for whoever appends ---

    async def append(self, records: Sequence[Record], memory: Mapping[str, bytes | None] = _NOTHING) -> None:
        """Write down records and what changes in the memory with them, all or nothing."""
        if self._failure is not None:
            raise self._failure
        await self._writer.append(records, memory)

    # --- for sinks ---

    async def read(self, sink: str, limit: int, max_bytes: int = READ_BYTES) -> Sequence[Record]:
        """Wait for records that a sink has not acknowledged; return the oldest."""
        lane = self._lanes[sink]
        while self._failure is None and not lane.depth(self._tail.end):
            lane.filled.clear()
            await lane.filled.wait()
        if self._failure is not None:
            raise self._failure
        async with lane.changing:
            found = await self._waiting(lane, limit, max_bytes)
            lane.handed = found.within(limit, max_bytes)
        return lane.handed.records

    async def acknowledge(self, sink: str, batch: Sequence[Record]) -> None:
        """The sink has what was read last, or its beginning: forget it."""
        lane = self._lanes[sink]
        told = lane.acknowledge(batch)
        self._writer.moved(sink, told=bool(told))
        first = min(lane.cursor for lane in self._lanes.values())
        self._tail.forget(first)
        self._ages.forget(first)
        if any(cover.reason == "overflow" for cover in told):
            self._on_loss()

    async def refuse(self, sink: str, positions: Collection[tuple[int, int]], reason: str) -> int:
        """Set records aside that a sink will never have, and have their loss told in their place."""
        lane, now = self._lanes[sink], self._clock.now().wall
        covers = refusals(lane.handed, positions, now)
        if not covers:
            return 0
        ends = {cover.end for cover in covers}
        refused = [record for record, end in zip(*lane.handed, strict=True) if end in ends]

        def job(database: Database) -> None:
            dead_letters.write(self._folder.dead_letters, sink, refused, reason, now)
            database.cover(sink, covers)

        await self._store.insist(job)
        lane.replace(covers)
        return len(covers)

    def depth(self, sink: str) -> int:
        """Return how many records a sink has not acknowledged."""
        return self._lanes[sink].depth(self._tail.end)

    def lag(self, sink: str) -> Lag:
        """Tell more of what a sink has not acknowledged."""
        lane, depth = self._lanes[sink], self.depth(sink)
        age = self._ages.seconds(lane.cursor, self._clock.now().monotonic) if depth else 0.0
        return Lag(depth, lane.size, age, lane.lost)

    async def _waiting(self, lane: Lane, limit: int, max_bytes: int) -> Batch:
        """Return what is to be handed out from the cursor on, as far as there is need for it, or a little further."""
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
