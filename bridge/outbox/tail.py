"""The newest records, in memory: sinks that keep up never make the disk read anything."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.events import Record

_SLACK = 1024  # records taken out are given back that many at a time


class Tail:
    """Holds the records from some position to the end, as many as ``max_bytes`` allow.

    Args:
        end: The position after the last record so far, none of which are held.
        max_bytes: How many bytes of data are held at the most.
    """

    def __init__(self, end: int, max_bytes: int) -> None:
        self.end = end
        self._max_bytes = max_bytes
        self._records: list[Record] = []
        self._gone = 0  # at the beginning of the list, and not to be used any more
        self._size = 0

    @property
    def first(self) -> int:
        """The position of the oldest record held."""
        return self.end - len(self._records) + self._gone

    def extend(self, records: Sequence[Record]) -> None:
        """Take in records, the oldest making room."""
        self._records += records
        self.end += len(records)
        self._size += sum(len(record.data) for record in records)
        while self._size > self._max_bytes:
            self._forget_first()
        self._give_back()

    def forget(self, before: int) -> None:
        """Let go of the records before a position."""
        if before >= self.end:
            self._records, self._gone, self._size = [], 0, 0
        else:
            while self.first < before:
                self._forget_first()
            self._give_back()

    def get(self, first: int, end: int) -> Sequence[Record]:
        """Return records that are held."""
        start = self._gone + first - self.first
        return self._records[start : start + end - first]

    def _forget_first(self) -> None:
        self._size -= len(self._records[self._gone].data)
        self._gone += 1

    def _give_back(self) -> None:
        if self._gone > _SLACK:
            del self._records[: self._gone]
            self._gone = 0
