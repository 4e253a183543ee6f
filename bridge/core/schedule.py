"""Schedule: containers or tasks with the time at which something is due for each, found without a scan."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Schedule(Generic[K]):
    """Due times (monotonic) by key; an earlier time replaces a later one.

    Removed and replaced times stay in the heap until they are the earliest, or until they are half of it.
    """

    def __init__(self) -> None:
        self._due: dict[K, int] = {}
        self._heap: list[tuple[int, int, K]] = []  # the number keeps the order of equal times
        self._number = 0

    def add(self, key: K, due: int) -> None:
        """Schedule a key at ``due``, unless it is scheduled earlier."""
        if due >= self._due.get(key, due + 1):
            return
        self._due[key] = due
        self._number += 1
        heapq.heappush(self._heap, (due, self._number, key))
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [entry for entry in self._heap if self._is_current(entry)]
            heapq.heapify(self._heap)

    def discard(self, key: K) -> None:
        """Remove a key, if it is scheduled."""
        self._due.pop(key, None)

    def clear(self) -> None:
        """Remove all keys."""
        self._due.clear()
        self._heap.clear()

    def next_due(self) -> int | None:
        """Return the earliest time; None if nothing is scheduled."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: int) -> list[K]:
        """Remove and return the keys that are due at ``now``, the earliest first."""
        keys: list[K] = []
        while (due := self.next_due()) is not None and due <= now:
            keys.append(heapq.heappop(self._heap)[2])
            del self._due[keys[-1]]
        return keys

    def _is_current(self, entry: tuple[int, int, K]) -> bool:
        return self._due.get(entry[2]) == entry[0]
