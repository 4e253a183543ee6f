"""Selection of the records to drop from a sink's backlog, and their loss records."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct

from bridge.core.encode import lost_record
from bridge.outbox.database import Database
from bridge.outbox.lane import Cover
from bridge.outbox.rows import Header


class Excess(Struct, frozen=True):
    """What to drop from position ``start`` on: at least this many records and bytes, and records written before
    ``written_before`` (uptime).

    Only whole chunks are dropped, so the result may be a little more.
    """

    start: int
    records: int
    size: int
    age: int


def losses(
    database: Database, excess: Excess, extends: Callable[[int, int], Cover | None], now: int
) -> tuple[list[Cover], int]:
    """Build the losses for a plan, one per epoch.

    ``find_open_loss`` returns the loss that a first record with this epoch and sequence extends.

    Returns:
        The losses, in order, and the number of dropped bytes.
    """
    runs = [_Run(excess.start, header) for header in _runs(list(_dropped(database, excess)))]
    if not runs:
        return [], 0
    first = runs[0].headers[0]
    runs[0].shorten(database.sizes(first)[: max(0, excess.start - first.position)])
    dropped = sum(run.size for run in runs)
    covers = [run.cover(database, now) for run in runs]
    known = extends(covers[0].record.epoch, covers[0].sequence)
    if known is not None:
        covers[0] = runs[0].cover(database, now, known)
    return covers, dropped


def _dropped(database: Database, excess: Excess) -> Iterator[Header]:
    records = size = 0
    for header in database.headers(excess.start):
        if records >= excess.records and size >= excess.size and header.age >= excess.age:
            return
        records += header.position + header.number - max(header.position, excess.start)
        size += header.size
        yield header


def _runs(headers: list[Header]) -> Iterator[list[Header]]:
    """Split chunks where a new epoch begins."""
    run: list[Header] = []
    for header in headers:
        if run and (header.epoch, header.sequence) != (run[-1].epoch, run[-1].sequence + run[-1].number):
            yield run
            run = []
        run.append(header)
    if run:
        yield run


class _Run:
    """Chunks of one epoch to drop; records before ``start`` in the first chunk are excluded."""

    def __init__(self, start: int, headers: list[Header]) -> None:
        self.headers = headers
        first = headers[0]
        self._first = max(first.position, start)
        self._sequence = first.sequence + self._first - first.position
        self.size = sum(header.size - header.number + 1 for header in headers)  # without line feeds

    def shorten(self, sizes: list[int]) -> None:
        """Exclude records of these sizes from the dropped bytes."""
        self.size -= sum(sizes)

    def cover(self, database: Database, now: int, known: Cover | None = None) -> Cover:
        last = self.headers[-1]
        end = last.position + last.number
        record = database.read(end - 1, end, 1, 0)[0]
        first, sequence, size = self._first, self._sequence, self.size
        if known is not None:
            first, sequence, size = known.first, known.sequence, known.size + size
        return Cover(first, end, sequence, size, "overflow", lost_record(record, sequence, "overflow", now))
