"""What a sink remembers of a stream or a partition, to detect that it has lost what was published. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

RESET_DETAIL = "created again or emptied; a snapshot follows"
RESET_HINT = "if this was not intended, check the disks of the broker and the retention"


class TargetState(NamedTuple):
    """A stream or partition: its identity, which changes when it is created again, and its first and last position.

    The identity is "" if the server does not report it. An empty target has a first position above the last.
    """

    identity: str
    first: int
    last: int


class TargetMemory:
    """The positions of published records in a target.

    Args:
        identity: The identity of the target; "" if it is not known yet.
    """

    def __init__(self, identity: str = "") -> None:
        self._identity = identity
        self._last: int | None = None  # of the records that were published
        self._snapshot: int | None = None  # up to which the last complete snapshot is stored
        self._lost = False

    def acknowledge(self, position: int) -> None:
        """Remember that a new record is stored at ``position``."""
        self._lost |= self._last is not None and position <= self._last
        self._last = position

    def complete_snapshot(self) -> None:
        """Remember that the records published so far end with a complete snapshot."""
        self._snapshot = self._last

    def observe(self, state: TargetState) -> None:
        """Compare the target with what was published."""
        if self._last is not None:
            self._lost |= (
                len({self._identity, state.identity} - {""}) > 1
                or state.last < self._last
                or (self._snapshot is not None and state.first > self._snapshot)
            )
        self._identity = state.identity or self._identity

    def take_loss(self) -> bool:
        """Return whether the target has lost what was published, once per loss."""
        lost, self._lost = self._lost, False
        if lost:
            self._last = self._snapshot = None
        return lost


def describe_short_retention(setting: str, retention: timedelta, snapshot_interval: timedelta) -> str:
    """Return the warning for a retention, set by ``setting`` at the broker, that is shorter than the interval."""
    return (
        f"{setting} ({retention.total_seconds():g} s) is shorter than snapshot.interval "
        f"({snapshot_interval.total_seconds():g} s): consumers that start late find no complete snapshot; raise the "
        "former, or lower the latter"
    )
