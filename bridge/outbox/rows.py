"""Types of the data that the database writes and loads; see the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct, field

from bridge.outbox.lane import Cover, Stretch


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
    """A sink as it was left; ``since`` is the age at which the oldest chunk that waits for it was written."""

    cursor: int
    covers: list[Cover]
    size: int
    since: int


class Content(NamedTuple):
    """The content of the file without records; ``quarantined_written_at`` is when the quarantined file that this file
    replaces was last written, in nanoseconds since the epoch.
    """

    end: int
    age: int
    lanes: dict[str, StoredLane]
    memory: dict[str, bytes]
    reset: int | None
