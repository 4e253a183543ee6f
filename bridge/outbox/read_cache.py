"""Cache of the newest records, so that sinks that keep up cause no disk reads. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.records import Record

_COMPACTION_THRESHOLD = 1024  # evicted records are removed from the list in batches of this size


class ReadCache:
    """Hold the newest records, as many as ``max_bytes`` allow.

    Args:
        end: The position after the last stored record; the cache starts empty.
        max_bytes: Maximum bytes of record data.
    """

    def __init__(self, end: int, max_bytes: int) -> None:
        self.end = end
        self._max_bytes = max_bytes
        self._records: list[Record] = []
        self._evicted = 0  # evicted records at the beginning of the list
        self._size = 0

    @property
    def first(self) -> int:
        """The position of the oldest cached record."""
        return self.end - len(self._records) + self._evicted

    def extend(self, records: Sequence[Record]) -> None:
        """Add records, and evict the oldest beyond the limit."""
        self._records += records
        self.end += len(records)
        self._size += sum(len(record.data) for record in records)
        while self._size > self._max_bytes:
            self._evict_first()
        self._compact()

    def evict(self, before: int) -> None:
        """Evict the records before a position."""
        if before >= self.end:
            self._records, self._evicted, self._size = [], 0, 0
        else:
            while self.first < before:
                self._evict_first()
            self._compact()

    def get(self, first: int, end: int) -> Sequence[Record]:
        """Return cached records from ``first`` to before ``end``."""
        start = self._evicted + first - self.first
        return self._records[start : start + end - first]

    def _evict_first(self) -> None:
        self._size -= len(self._records[self._evicted].data)
        self._evicted += 1

    def _compact(self) -> None:
        if self._evicted > _COMPACTION_THRESHOLD:
            del self._records[: self._evicted]
            self._evicted = 0
