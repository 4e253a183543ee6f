"""Chunks: one SQL row stores many records, because writing a row costs about as much as writing a record. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bridge.core.events import Record
from bridge.outbox.rows import Chunk

MOST_RECORDS = 512
MOST_BYTES = 512 * 1024


def chunked(records: Sequence[Record], position: int, age: int) -> Iterator[Chunk]:
    """Split records, the first of which has ``position``, by size and where sequences are not consecutive."""
    start = size = 0
    for index, record in enumerate(records):
        first = records[start]
        is_next = record.sequence - first.sequence == index - start and record.epoch == first.epoch
        if index > start and (not is_next or index - start == MOST_RECORDS or size + len(record.data) > MOST_BYTES):
            yield _chunk(records[start:index], position + start, age)
            start = index
            size = 0
        size += len(record.data)
    if records:
        yield _chunk(records[start:], position + start, age)


def _chunk(records: Sequence[Record], position: int, age: int) -> Chunk:
    first = records[0]
    documents = b"\n".join([record.data for record in records])
    return Chunk(position, len(records), first.epoch, first.sequence, age, documents)
