"""The warning about a retention that is too short for consumers that start late. Pure."""

from __future__ import annotations

from datetime import timedelta


def describe_short_retention(setting: str, retention: timedelta, snapshot_interval: timedelta) -> str:
    """Return the warning for a retention, set by ``setting`` at the broker, that is shorter than the interval."""
    return (
        f"{setting} ({retention.total_seconds():g} s) is shorter than snapshot.interval "
        f"({snapshot_interval.total_seconds():g} s): consumers that start late find no complete snapshot; raise the "
        "former, or lower the latter"
    )
