"""The limits of a sink's backlog. Pure."""

from __future__ import annotations

from msgspec import Struct

_HEADROOM_DIVISOR = 16  # a drop frees another 1/16 of the limit, for the loss record and for the next records


class Limits(Struct, frozen=True, kw_only=True):
    """The maximum backlog of one sink; ``max_age`` is in seconds of the bridge's uptime.

    Records of the append in progress are never dropped; otherwise a large snapshot could never be delivered.
    """

    max_records: int
    max_bytes: int
    max_age: int

    def overflow(self, records: int, size: int) -> tuple[int, int]:
        """Return how many records and bytes to drop from a backlog of this size; (0, 0) within the limits."""
        if records <= self.max_records and size <= self.max_bytes:
            return (0, 0)
        return (
            max(0, records - self.max_records + self.max_records // _HEADROOM_DIVISOR),
            max(0, size - self.max_bytes + self.max_bytes // _HEADROOM_DIVISOR),
        )
