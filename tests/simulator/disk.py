"""Model of the disk under the outbox: what is committed survives, and jobs can be slow, hang or fail.

The simulated database has the methods of the real one, without SQL. A job that fails may have been committed, and a job
that is interrupted by the end of the process either happens as a whole or not at all, as with SQLite.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import msgspec

from bridge.core import checkpoint
from bridge.core.checkpoint import EXITS_KEY
from bridge.core.exit_counts import Exits
from bridge.core.ports import Clock
from bridge.core.records import Record
from bridge.outbox import dead_letters
from bridge.outbox.chunks import Chunk, LoadedState, StoredQueue, WriteBatch
from bridge.outbox.database_worker import DatabaseWorker
from bridge.outbox.memory_store import MemoryStore
from bridge.outbox.outbox import StoredOutbox
from bridge.outbox.sink_queue import Limits, LossRange, PositionRange, SinkQueue
from bridge.outbox.state_directory import StateDirectory

T = TypeVar("T")
OnCommit = Callable[[list[bytes]], None]
NO_CHANGES: Mapping[str, bytes | None] = {}


@dataclass
class Content:
    """The committed content of the database; a sink is stored as cursor, offset, and when it was removed."""

    chunks: list[Chunk] = field(default_factory=list)
    sinks: dict[str, tuple[int, int, int | None]] = field(default_factory=dict)
    losses: dict[str, dict[int, LossRange]] = field(default_factory=dict)
    checkpoint: dict[str, bytes] = field(default_factory=dict)
    end: int = 0
    end_offset: int = 0
    uptime: int = 0

    def copy(self) -> Content:
        losses = {sink: dict(each) for sink, each in self.losses.items()}
        return Content(
            list(self.chunks),
            dict(self.sinks),
            losses,
            dict(self.checkpoint),
            self.end,
            self.end_offset,
            self.uptime,
        )


class Disk:
    """A disk with the database and the dead letters; ``full`` and ``hung`` are its faults, beside single errors."""

    def __init__(self, rng: Random) -> None:
        self.content = Content()
        self.dead_letters: list[bytes] = []
        self.full = self.hung = False
        self.error_probability = 0.0
        self._rng = rng

    def latency(self) -> float:
        return self._rng.choice((0.0, 0.0002, 0.002, 0.03))

    @contextlib.contextmanager
    def transaction(self, *, needs_space: bool = False) -> Iterator[Content]:
        """Change a copy of the content, and commit it; an error may come before or after the commit."""
        if self.full and needs_space:
            raise OSError(errno.ENOSPC, "No space left on device")
        fails = self._rng.random() < self.error_probability
        if fails and self._rng.random() < 0.5:
            raise OSError(errno.EIO, "Input/output error")
        changed = self.content.copy()
        yield changed
        self.content = changed
        if fails:
            raise OSError(errno.EIO, "Input/output error of fsync")


class SimulatedDatabase(MemoryStore):
    """The content of a disk as a store."""

    def __init__(self, disk: Disk, on_commit: OnCommit) -> None:
        self._disk = disk
        self._on_commit = on_commit

    @property
    def _chunks(self) -> list[Chunk]:  # type: ignore[override] # read by the methods of MemoryStore
        return self._disk.content.chunks

    def load(self) -> LoadedState:
        content = self._disk.content
        queues = {
            name: StoredQueue(
                cursor,
                offset,
                [each for _, each in sorted(content.losses.get(name, {}).items())],
                self.oldest_uptime(cursor) or 0,
            )
            for name, (cursor, offset, _) in content.sinks.items()
        }
        return LoadedState(content.end, content.end_offset, content.uptime, queues, dict(content.checkpoint))

    def close(self) -> None:  # type: ignore[override] # as in Database
        """Do nothing: there is no connection."""

    def register_sinks(self, queues: Mapping[str, SinkQueue], uptime: int) -> None:
        with self._disk.transaction() as content:
            for name, (cursor, offset, removed) in content.sinks.items():
                content.sinks[name] = (cursor, offset, uptime if removed is None else removed)
            for name, queue in queues.items():
                cursor, offset, _ = content.sinks.get(name, (queue.cursor, queue.offset, None))
                content.sinks[name] = (cursor, offset, None)

    def expire_removed_sinks(self, removed_before: int) -> list[str]:
        with self._disk.transaction() as content:
            names = [n for n, (*_, at) in content.sinks.items() if at is not None and at <= removed_before]
            for name in names:
                del content.sinks[name]
                content.losses.pop(name, None)
        return names

    def save_uptime(self, uptime: int) -> None:
        with self._disk.transaction() as content:
            content.uptime = uptime

    def write(self, batch: WriteBatch) -> dict[str, int]:
        with self._disk.transaction(needs_space=bool(batch.chunks)) as content:
            replaced = {chunk.position for chunk in batch.chunks}
            content.chunks = [each for each in content.chunks if each.position not in replaced] + list(batch.chunks)
            if batch.chunks:
                content.end_offset = batch.end_offset
            for key, value in batch.checkpoint.items():
                if value is None:
                    content.checkpoint.pop(key, None)
                else:
                    content.checkpoint[key] = value
            _save_cursors(content, batch.cursors)
            _delete(content, batch.released_positions)
            new, end = [], content.end
            for chunk in batch.chunks:  # some are committed already if the transaction is repeated
                new += chunk.documents.split(b"\n")[max(0, end - chunk.position) :]
                content.end = max(content.end, chunk.position + chunk.record_count)
            self._on_commit(new)
        return self.oldest_uptimes(batch.cursors)

    def save_losses(
        self,
        sink: str,
        losses: Sequence[LossRange],
        released: Sequence[PositionRange],
        cursors: Mapping[str, tuple[int, int]],
    ) -> None:
        with self._disk.transaction() as content:
            _save_cursors(content, cursors)
            stored = content.losses.setdefault(sink, {})
            for loss in losses:
                stored[loss.first] = loss
            _delete(content, released)


def _save_cursors(content: Content, cursors: Mapping[str, tuple[int, int]]) -> None:
    for name, (cursor, offset) in cursors.items():
        if name in content.sinks:
            content.sinks[name] = (cursor, offset, content.sinks[name][2])
        losses = content.losses.get(name, {})
        for first in [first for first in losses if first < cursor]:
            del losses[first]


def _delete(content: Content, released: Sequence[PositionRange]) -> None:
    content.chunks = [
        chunk
        for chunk in content.chunks
        if not any(first <= chunk.position and chunk.position + chunk.record_count <= end for first, end in released)
    ]


class _SimulatedThread:
    """Runs blocking calls one after another, as the thread of the database does, until the process is killed."""

    def __init__(self, disk: Disk, clock: Clock) -> None:
        self._disk = disk
        self._clock = clock
        self._calls: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._working: asyncio.Task[None] | None = None
        self.killed = False

    async def run(self, call: Callable[[], T]) -> T:
        done = asyncio.get_running_loop().create_future()
        self._calls.append((call, done))
        if self._working is None and not self.killed:
            self._working = asyncio.create_task(self._work())
        result: T = await asyncio.shield(done)
        return result

    async def close(self) -> None:
        """Do nothing: the thread ends when it has nothing to do."""

    def kill(self, rng: Random) -> None:
        """Stop; the call in progress happens as a whole or not at all."""
        self.killed = True
        if self._working is not None:
            self._working.cancel()
            if self._calls and rng.random() < 0.5:
                with contextlib.suppress(Exception):
                    self._calls[0][0]()

    async def _work(self) -> None:
        while self._calls:
            await self._clock.sleep(self._disk.latency())
            while self._disk.hung:
                await self._clock.sleep(0.5)
            call, done = self._calls[0]
            try:
                result = call()
            except Exception as error:  # noqa: BLE001 (raised again where the caller waits)
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(result)
            self._calls.popleft()
        self._working = None


class _SimulatedDirectory(StateDirectory):
    """A directory that no other process uses."""

    def lock(self) -> None:
        pass

    def unlock(self) -> None:
        pass


class _SimulatedWorker(DatabaseWorker):
    """The real worker, with its retries, on a simulated thread and database."""

    def __init__(self, disk: Disk, directory: StateDirectory, clock: Clock, on_commit: OnCommit) -> None:
        super().__init__(directory, clock, lambda: None)
        self.thread = _SimulatedThread(disk, clock)
        self._worker = self.thread  # type: ignore[assignment] # has the methods that are used
        self._simulated = SimulatedDatabase(disk, on_commit)

    def _load_or_replace(self) -> LoadedState:
        return self._simulated.load()

    def _run_job(self, job: Callable[[Any], T]) -> T:
        self._database = self._simulated  # type: ignore[assignment]
        return super()._run_job(job)


class SimulatedOutbox(StoredOutbox):
    """The real outbox on a simulated disk, or in memory if ``disk`` is None.

    ``on_commit`` is called with the documents that are stored.
    """

    def __init__(
        self, disk: Disk | None, sinks: Sequence[str], clock: Clock, limits: Limits, on_commit: OnCommit
    ) -> None:
        super().__init__(None, sinks, clock, limits)
        self._killed = False
        self._on_commit = on_commit
        if disk is not None:
            self._directory = _SimulatedDirectory(Path("/simulated"))
            self._worker = _SimulatedWorker(disk, self._directory, clock, on_commit)

    async def append(self, records: Sequence[Record], checkpoint: Mapping[str, bytes | None] = NO_CHANGES) -> None:
        if self._killed:
            await asyncio.Event().wait()
        if self._directory is None:
            self._on_commit([record.data for record in records])
        await super().append(records, checkpoint)

    def kill(self, rng: Random) -> None:
        """End the process: nothing is written any more."""
        self._killed = True
        if isinstance(self._worker, _SimulatedWorker):
            self._worker.thread.kill(rng)


@contextlib.contextmanager
def dead_letters_on(disk: Disk) -> Iterator[None]:
    """Write dead letters to a simulated disk."""

    def write(_path: object, sink: str, records: Any, reason: str, now: int) -> None:  # noqa: ARG001
        disk.dead_letters += [record.data for record in records]

    real, dead_letters.write = dead_letters.write, write  # type: ignore[assignment]
    try:
        yield
    finally:
        dead_letters.write = real


def stored_bytes(disk: Disk) -> Iterator[bytes]:
    """Return everything that is on the disk."""
    content = disk.content
    yield from (chunk.documents for chunk in content.chunks)
    yield from content.checkpoint.values()
    yield from disk.dead_letters
    yield msgspec.json.encode([loss.record.data.decode() for each in content.losses.values() for loss in each.values()])


def stored_exits(disk: Disk) -> Exits:
    """Return the counts of exits in the checkpoint on the disk."""
    stored = disk.content.checkpoint.get(EXITS_KEY)
    return {} if stored is None else checkpoint.decode({EXITS_KEY: stored}).exits
