"""Units of the clock: every instant and duration is an integer number of nanoseconds."""

from __future__ import annotations

MILLISECOND = 1_000_000
SECOND = 1_000 * MILLISECOND


def to_seconds(nanoseconds: int) -> float:
    """Convert nanoseconds to seconds."""
    return nanoseconds / SECOND


def from_seconds(seconds: float) -> int:
    """Convert seconds to nanoseconds."""
    return int(seconds * SECOND)
