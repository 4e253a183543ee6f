"""How much may wait for a sink. Pure."""

from __future__ import annotations

from msgspec import Struct

_RESERVE = 16  # one part in so many is made free at a time, for what is said of the loss and for what comes next


class Bounds(Struct, frozen=True, kw_only=True):
    """What waits for one sink at the most; ``max_age`` in seconds for which the bridge ran.

    What is being appended is never dropped at once, however large: a snapshot would never get through.
    """

    max_records: int
    max_bytes: int
    max_age: int

    def excess(self, records: int, size: int) -> tuple[int, int]:
        """Return how many records and bytes are to be dropped where so much would wait."""
        if records <= self.max_records and size <= self.max_bytes:
            return (0, 0)
        return (
            max(0, records - self.max_records + self.max_records // _RESERVE),
            max(0, size - self.max_bytes + self.max_bytes // _RESERVE),
        )
