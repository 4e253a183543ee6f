"""Start checks: when to look for the task of a container whose start is not known.

A container is checked at growing intervals, because its shim may send no events. The checks end with an event of the
start, and begin again after a run for which an event was missing.
"""

from __future__ import annotations

from collections.abc import Iterable

from bridge.core.container_state import ContainerState
from bridge.core.containerd_model import ContainerKey, Instant
from bridge.core.schedule import Schedule
from bridge.core.time import SECOND

FIRST_START_CHECK_NS = 2 * SECOND  # after the creation of a container or task; the delay doubles from check to check
LAST_START_CHECK_NS = 128 * SECOND  # the next delay would be about the time between two audits, which find the rest
START_CHECKED_NS = 2 * LAST_START_CHECK_NS  # the age up to which a container without a task is checked, about


class StartChecks:
    """The start checks of all containers; ``ContainerState.check_delay`` has the state of each.

    ``schedule``: when the next check of each container is due.
    """

    def __init__(self) -> None:
        self.schedule: Schedule[ContainerKey] = Schedule()

    def begin(self, entry: ContainerState, now: Instant) -> None:
        """Check soon, and then at growing intervals."""
        entry.check_delay = FIRST_START_CHECK_NS
        self._add(entry, now)

    def continue_(self, entry: ContainerState, now: Instant) -> None:
        """Check again after a check that was not decisive, unless it was the last one."""
        if entry.check_delay < LAST_START_CHECK_NS:
            entry.check_delay *= 2
            self._add(entry, now)
        else:
            self.end(entry)

    def end(self, entry: ContainerState, *, resume: bool = False) -> None:
        """End the checks; ``resume``: they begin again after the current run, because an event of it is missing."""
        if entry.check_delay:
            self.schedule.discard(entry.key)
        entry.check_delay = FIRST_START_CHECK_NS if resume else 0

    def resume(self, entry: ContainerState, now: Instant) -> None:
        """Resume the checks after a run for which an event was missing: the next one may be silent as well."""
        if entry.check_delay and entry.metadata is not None and not entry.deleted:
            self._add(entry, now)

    def clear(self, entries: Iterable[ContainerState]) -> None:
        """End the checks of all containers."""
        self.schedule.clear()
        for entry in entries:
            entry.check_delay = 0

    def _add(self, entry: ContainerState, now: Instant) -> None:
        """Schedule the next check at a full quarter of its delay, so that many containers are checked together."""
        due, grid = now.monotonic + entry.check_delay, entry.check_delay // 4
        self.schedule.add(entry.key, due + -due % grid)
