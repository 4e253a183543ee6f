"""What is stored, as it goes to the outbox' file and comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct, field

from bridge.outbox.lane import Cover, Stretch


class Chunk(NamedTuple):
    """Records as they are stored: see the schema."""

    position: int
    number: int
    epoch: int
    sequence: int
    age: int
    documents: bytes


class Header(NamedTuple):
    """A chunk, but for its documents; ``size`` is theirs."""

    position: int
    number: int
    epoch: int
    sequence: int
    age: int
    size: int


class Writing(Struct):
    """What one transaction writes down.

    ``passed``: up to which position covers of a sink are done with. ``first``: nothing was appended to this file since
    it was opened.
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
    """What is in the file: see the schema. ``reset`` is when another one, which was set aside, was written to last."""

    end: int
    age: int
    lanes: dict[str, StoredLane]
    memory: dict[str, bytes]
    reset: int | None
