"""Stores records in memory: the counterpart of the database, for an outbox without a directory.

It stores neither cursors nor losses nor the checkpoint, because no later process could load them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from bridge.outbox.chunks import Chunk, ChunkHeader, ChunkReader, LoadedState, WriteBatch
from bridge.outbox.sink_queue import LossRange, PositionRange, SinkQueue

T = TypeVar("T")


class MemoryStore(ChunkReader):
    """Has the methods of ``Database`` and of ``DatabaseWorker``: no job waits for a disk, so each runs at once."""

    last_error = None

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []

    async def lock(self) -> None:
        """Do nothing: no other process can use this memory."""

    async def open(self) -> LoadedState:
        """Return the state of an empty store."""
        return LoadedState()

    async def run_once(self, job: Callable[[MemoryStore], T]) -> T:
        """Run a job."""
        return job(self)

    run_until_done = run_once

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def register_sinks(self, queues: Mapping[str, SinkQueue], uptime: int) -> None:
        """Do nothing."""

    def expire_removed_sinks(self, removed_before: int) -> list[str]:  # noqa: ARG002 (the signature of Database)
        """Return nothing, because no sink was removed."""
        return []

    def save_uptime(self, uptime: int) -> None:
        """Do nothing."""

    def write(self, batch: WriteBatch) -> dict[str, int]:
        """Add and delete chunks; return for each sink whose cursor moved the uptime of its oldest chunk."""
        self._chunks += batch.chunks
        self._delete(batch.released_positions)
        return self.oldest_uptimes(batch.cursors)

    def save_losses(
        self,
        sink: str,  # noqa: ARG002
        losses: Sequence[LossRange],  # noqa: ARG002
        released: Sequence[PositionRange],
        cursors: Mapping[str, tuple[int, int]],  # noqa: ARG002
    ) -> None:
        """Delete records that no sink needs any more."""
        self._delete(released)

    def release_space(self) -> bool:
        """Return False: deleted chunks need no space."""
        return False

    def headers(self, first: int) -> Iterator[ChunkHeader]:
        """Iterate over the chunks without their documents, from the chunk that contains position ``first`` on."""
        for index in range(bisect_right(self._chunks, first, key=_end), len(self._chunks)):
            chunk = self._chunks[index]
            size = len(chunk.documents) - chunk.record_count + 1  # without line feeds
            yield ChunkHeader(chunk.position, chunk.record_count, chunk.epoch, chunk.sequence, chunk.uptime, size)

    def chunks(self, first: int, end: int) -> Iterator[Chunk]:
        """Iterate over the chunks with records from position ``first`` to before ``end``."""
        start, stop = bisect_right(self._chunks, first, key=_end), bisect_left(self._chunks, end, key=_position)
        return iter(self._chunks[start:stop])

    def _delete(self, released: Sequence[PositionRange]) -> None:
        for first, end in released:
            start, stop = bisect_left(self._chunks, first, key=_position), bisect_right(self._chunks, end, key=_end)
            del self._chunks[start:stop]


def _position(chunk: Chunk) -> int:
    return chunk.position


def _end(chunk: Chunk) -> int:
    return chunk.position + chunk.record_count
