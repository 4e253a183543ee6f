"""Selection of the records to drop from a sink's backlog, and their loss records."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct

from bridge.core.record_encoder import lost_record
from bridge.outbox.database import Database
from bridge.outbox.database_types import ChunkHeader
from bridge.outbox.sink_queue import LossRange


class DropPlan(Struct, frozen=True):
    """Selection of records to drop, from position ``start`` on.

    At least ``records`` records and ``size`` bytes are dropped, and all records written before ``written_before``
    (uptime). Only whole chunks are dropped, so the result may be a little more.
    """

    start: int
    records: int
    size: int
    written_before: int


def build_losses(
    database: Database, plan: DropPlan, find_open_loss: Callable[[int, int], LossRange | None], now: int
) -> tuple[list[LossRange], int]:
    """Build the losses for a plan, one per epoch.

    ``find_open_loss`` returns the loss that a first record with this epoch and sequence extends.

    Returns:
        The losses, in order, and the number of dropped bytes.
    """
    runs = [_DroppedRun(plan.start, header) for header in _split_by_epoch(list(_headers_to_drop(database, plan)))]
    if not runs:
        return [], 0
    first = runs[0].headers[0]
    runs[0].exclude(database.record_sizes(first)[: max(0, plan.start - first.position)])
    dropped = sum(run.size for run in runs)
    losses = [run.build_loss(database, now) for run in runs]
    known = find_open_loss(losses[0].record.epoch, losses[0].sequence)
    if known is not None:
        losses[0] = runs[0].build_loss(database, now, known)
    return losses, dropped


def _headers_to_drop(database: Database, plan: DropPlan) -> Iterator[ChunkHeader]:
    records = size = 0
    for header in database.headers(plan.start):
        if records >= plan.records and size >= plan.size and header.uptime >= plan.written_before:
            return
        records += header.position + header.record_count - max(header.position, plan.start)
        size += header.size
        yield header


def _split_by_epoch(headers: list[ChunkHeader]) -> Iterator[list[ChunkHeader]]:
    """Split chunks where a new epoch begins."""
    run: list[ChunkHeader] = []
    for header in headers:
        if run and (header.epoch, header.sequence) != (run[-1].epoch, run[-1].sequence + run[-1].record_count):
            yield run
            run = []
        run.append(header)
    if run:
        yield run


class _DroppedRun:
    """Chunks of one epoch to drop; records before ``start`` in the first chunk are excluded."""

    def __init__(self, start: int, headers: list[ChunkHeader]) -> None:
        self.headers = headers
        first = headers[0]
        self._first_position = max(first.position, start)
        self._first_sequence = first.sequence + self._first_position - first.position
        self.size = sum(header.size - header.record_count + 1 for header in headers)  # without line feeds

    def exclude(self, sizes: list[int]) -> None:
        """Exclude records of these sizes from the dropped bytes."""
        self.size -= sum(sizes)

    def build_loss(self, database: Database, now: int, open_loss: LossRange | None = None) -> LossRange:
        last = self.headers[-1]
        end = last.position + last.record_count
        record = database.read(end - 1, end, 1, 0)[0]
        first, sequence, size = self._first_position, self._first_sequence, self.size
        if open_loss is not None:
            first, sequence, size = open_loss.first, open_loss.sequence, open_loss.size + size
        return LossRange(first, end, sequence, size, "overflow", lost_record(record, sequence, "overflow", now))
