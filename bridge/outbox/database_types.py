"""Types of the data that the database writes and loads; see the schema.

Records are stored in chunks, many in one SQL row, because an SQL row costs about as much as a record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct, field

from bridge.core.records import Record
from bridge.outbox.sink_queue import LossRange, PositionRange

MAX_CHUNK_RECORDS = 512
MAX_CHUNK_BYTES = 512 * 1024


class Chunk(NamedTuple):
    """A row of the table ``chunks``: the documents of consecutive records."""

    position: int
    record_count: int
    epoch: int
    sequence: int
    uptime: int
    documents: bytes


class ChunkHeader(NamedTuple):
    """A chunk without its documents; ``size`` is their size in bytes."""

    position: int
    record_count: int
    epoch: int
    sequence: int
    uptime: int
    size: int


class WriteBatch(Struct):
    """The changes of one transaction.

    ``passed_losses``: for each sink, the position up to which losses are acknowledged. ``released_positions``: the
    positions of records that no sink needs any more, to be deleted. ``is_first_append``: the transaction appends the
    first records since the file was opened.
    """

    chunks: Sequence[Chunk] = ()
    checkpoint: Mapping[str, bytes | None] = field(default_factory=dict)
    cursors: Mapping[str, int] = field(default_factory=dict)
    passed_losses: Mapping[str, int] = field(default_factory=dict)
    released_positions: Sequence[PositionRange] = ()
    is_first_append: bool = False


class StoredQueue(NamedTuple):
    """A sink's stored queue; ``size`` is the backlog in bytes, ``oldest_uptime`` the ``uptime`` of its oldest chunk."""

    cursor: int
    losses: list[LossRange]
    size: int
    oldest_uptime: int


class LoadedState(NamedTuple):
    """The content of the file without records.

    ``quarantined_written_at``: if a corrupt file was quarantined, the time of its last write, in nanoseconds since the
    epoch; otherwise None. ``copied``: the file is a copy of the one that the last process opened.
    """

    end: int
    uptime: int
    queues: dict[str, StoredQueue]
    checkpoint: dict[str, bytes]
    quarantined_written_at: int | None
    copied: bool


def split_into_chunks(records: Sequence[Record], position: int, uptime: int) -> Iterator[Chunk]:
    """Split records into chunks by size, and where the sequence is interrupted; the first record is at ``position``."""
    start = size = 0
    for index, record in enumerate(records):
        first = records[start]
        follows = record.sequence - first.sequence == index - start and record.epoch == first.epoch
        if index > start and (
            not follows or index - start == MAX_CHUNK_RECORDS or size + len(record.data) > MAX_CHUNK_BYTES
        ):
            yield _build_chunk(records[start:index], position + start, uptime)
            start = index
            size = 0
        size += len(record.data)
    if records:
        yield _build_chunk(records[start:], position + start, uptime)


def _build_chunk(records: Sequence[Record], position: int, uptime: int) -> Chunk:
    first = records[0]
    documents = b"\n".join([record.data for record in records])
    return Chunk(position, len(records), first.epoch, first.sequence, uptime, documents)
