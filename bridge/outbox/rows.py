"""Types of the data that the database writes and loads; see the schema.

Records are stored in chunks, many in one SQL row, because a row costs about as much as a record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct, field

from bridge.core.events import Record
from bridge.outbox.lane import Cover, Stretch

MOST_RECORDS = 512
MOST_BYTES = 512 * 1024


class Chunk(NamedTuple):
    """A row of the table of chunks: the documents of consecutive records."""

    position: int
    number: int
    epoch: int
    sequence: int
    age: int
    documents: bytes


class Header(NamedTuple):
    """A chunk without its documents; ``size`` is their size in bytes."""

    position: int
    number: int
    epoch: int
    sequence: int
    age: int
    size: int


class Writing(Struct):
    """The changes of one transaction.

    ``passed_losses``: for each sink, the position up to which losses are acknowledged. ``is_first_append``: the
    transaction appends the first records since the file was opened.
    """

    chunks: Sequence[Chunk] = ()
    memory: Mapping[str, bytes | None] = field(default_factory=dict)
    cursors: Mapping[str, int] = field(default_factory=dict)
    passed: Mapping[str, int] = field(default_factory=dict)
    unneeded: Sequence[Stretch] = ()
    first: bool = False


class StoredLane(NamedTuple):
    """A sink as it was left; ``age_of_oldest`` is the ``age`` of the oldest chunk that waits for it."""

    cursor: int
    covers: list[Cover]
    size: int
    age_of_oldest: int


class Content(NamedTuple):
    """The content of the file without records; ``quarantined_written_at`` is when the quarantined file that this file
    replaces was last written, in nanoseconds since the epoch.
    """

    end: int
    age: int
    lanes: dict[str, StoredLane]
    memory: dict[str, bytes]
    reset: int | None


def chunked(records: Sequence[Record], position: int, age: int) -> Iterator[Chunk]:
    """Part records, of which the first has ``position``: by size, and where sequences do not follow each other."""
    start = size = 0
    for index, record in enumerate(records):
        first = records[start]
        follows = record.sequence - first.sequence == index - start and record.epoch == first.epoch
        if index > start and (not follows or index - start == MOST_RECORDS or size + len(record.data) > MOST_BYTES):
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
