"""Chunks of records, in which both stores keep them, and the data that the stores exchange with the writer.

A chunk holds many records, because an SQL row costs about as much as a record.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, NamedTuple, TypeAlias

from msgspec import Meta, Struct, field

from bridge.core.record_encoder import parse_record
from bridge.core.records import Record
from bridge.outbox.sink_queue import LossRange, PositionRange

MAX_CHUNK_RECORDS = 512
MAX_CHUNK_BYTES = 512 * 1024
_MAX_NUMBER = 1 << 53  # beyond any number of records, bytes, seconds or milliseconds; sums of two fit into SQLite

Number: TypeAlias = Annotated[int, Meta(ge=0, le=_MAX_NUMBER)]
"""A number in a row, to be checked when the row is read."""
Offset: TypeAlias = Annotated[int, Meta(ge=-_MAX_NUMBER, le=_MAX_NUMBER)]
"""An offset or a difference of offsets, which can be negative after a migration."""


class CorruptDatabaseError(Exception):
    """The file is corrupt, so none of its content can be trusted."""


class Chunk(NamedTuple):
    """The documents of consecutive records of one epoch, one per line; ``sequence`` is the first one's.

    ``uptime`` is the bridge's total uptime in seconds at the time of writing. ``checksum`` is None in chunks that were
    written by format 2 and earlier.
    """

    position: Number
    record_count: Number
    epoch: Number
    sequence: Number
    uptime: Number
    documents: bytes
    checksum: Number | None


class ChunkHeader(NamedTuple):
    """Consecutive records of one epoch, as in a chunk; ``size`` is the bytes of their documents."""

    position: Number
    record_count: Number
    epoch: Number
    sequence: Number
    uptime: Number
    size: Number


class WriteBatch(Struct):
    """The changes of one transaction.

    ``end_offset``: the bytes of all records, including those in ``chunks``. ``cursors``: by sink, the position and the
    offset up to which records are acknowledged. ``released_positions``: the positions of records that no sink needs any
    more, to be deleted. ``is_first_append``: the transaction appends the first records since the file was opened.
    """

    chunks: Sequence[Chunk] = ()
    end_offset: int = 0
    checkpoint: Mapping[str, bytes | None] = field(default_factory=dict)
    cursors: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    released_positions: Sequence[PositionRange] = ()
    is_first_append: bool = False


class StoredQueue(NamedTuple):
    """A sink's stored queue; ``oldest_uptime`` is the ``uptime`` of the oldest chunk in its backlog."""

    cursor: int
    offset: int
    losses: list[LossRange]
    oldest_uptime: int


class LoadedState(NamedTuple):
    """The content of the database without records.

    ``end``, ``end_offset``: the position and the offset after the last record. ``quarantined_written_at``: if a corrupt
    file was quarantined, the time of its last write, in nanoseconds since the epoch; otherwise None. ``copied``: the
    file is a copy of the one that the last process opened.
    """

    end: int = 0
    end_offset: int = 0
    uptime: int = 0
    queues: Mapping[str, StoredQueue] = MappingProxyType({})
    checkpoint: Mapping[str, bytes] = MappingProxyType({})
    quarantined_written_at: int | None = None
    copied: bool = False


class ChunkReader(ABC):
    """Reads records from chunks."""

    @abstractmethod
    def headers(self, first: int) -> Iterator[ChunkHeader]:
        """Iterate over the chunks without their documents, from the chunk that contains position ``first`` on."""

    @abstractmethod
    def chunks(self, first: int, end: int) -> Iterator[Chunk]:
        """Iterate over the chunks with records from position ``first`` to before ``end``."""

    def oldest_uptime(self, cursor: int) -> int | None:
        """Return the uptime at which the oldest chunk behind a cursor was written; None if there is none."""
        return next((header.uptime for header in self.headers(cursor)), None)

    def oldest_uptimes(self, cursors: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """Return for each sink the uptime of its oldest chunk, if there is one."""
        uptimes = {sink: self.oldest_uptime(cursor) for sink, (cursor, _) in cursors.items()}
        return {sink: uptime for sink, uptime in uptimes.items() if uptime is not None}

    def read(self, first: int, end: int, limit: int, max_bytes: int) -> list[Record]:
        """Read records from position ``first`` to before ``end``: at most ``limit`` and ``max_bytes``, at least one.

        Raises:
            CorruptDatabaseError: The records are missing or incomplete.
        """
        records: list[Record] = []
        size = 0
        position = first
        for chunk in self.chunks(first, end):
            if chunk.position > position:
                break
            for document in _documents(chunk)[position - chunk.position : end - chunk.position]:
                size += len(document)
                if records and (len(records) == limit or size > max_bytes):
                    return records
                records.append(parse_stored_record(document))
            position = chunk.position + chunk.record_count
        if not records:
            raise CorruptDatabaseError(f"record at position {first} is missing")
        return records

    def record_sizes(self, header: ChunkHeader) -> list[int]:
        """Return the size of each record in a chunk."""
        (chunk,) = self.chunks(header.position, header.position + 1)
        return [len(document) for document in _documents(chunk)]


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
    chunk = Chunk(position, len(records), first.epoch, first.sequence, uptime, documents, None)
    return chunk._replace(checksum=_checksum(chunk))


def _checksum(chunk: Chunk) -> int:
    """Return a checksum of the documents and of what identifies them."""
    return zlib.crc32(chunk.documents, zlib.crc32(b"%d %d %d" % (chunk.position, chunk.epoch, chunk.sequence)))


def _documents(chunk: Chunk) -> list[bytes]:
    documents = chunk.documents.split(b"\n")
    if len(documents) != chunk.record_count:
        raise CorruptDatabaseError(f"chunk at position {chunk.position} is incomplete")
    if chunk.checksum not in (None, _checksum(chunk)):
        raise CorruptDatabaseError(f"chunk at position {chunk.position} has another checksum")
    return documents


def parse_stored_record(document: bytes) -> Record:
    """Restore a record.

    Raises:
        CorruptDatabaseError: The document is not a record.
    """
    try:
        return parse_record(document)
    except ValueError as error:
        raise CorruptDatabaseError(f"record cannot be decoded: {error}") from error
