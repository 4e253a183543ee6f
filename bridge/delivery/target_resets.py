"""Snapshots for sinks whose target has lost what was published, such as a stream that was deleted and created again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import structlog

from bridge.core.ports import Clock
from bridge.core.time import SECOND

PAUSE = 60 * SECOND
MAX_PAUSE = 3600 * SECOND
_log = structlog.get_logger(__name__)


@runtime_checkable
class DetectsReset(Protocol):
    """A sink that detects that its target has lost what was published: created again, or emptied."""

    @property
    def resets(self) -> int:
        """How often the target has lost what was published."""

    async def check_target(self) -> None:
        """Look for a reset, and create the target again if it is gone.

        Raises:
            TransientError: The target cannot be reached now.
            FatalError: A retry cannot succeed until an operator changes something.
        """


class ResetReporter:
    """Reports resets, at once if the last report is long enough ago.

    If the target loses the snapshot that follows a report again and again (its retention is too short for one), the
    pause between reports grows.
    """

    def __init__(self, sink: DetectsReset, clock: Clock, report: Callable[[], None]) -> None:
        self._sink = sink
        self._clock = clock
        self._report = report
        self._reported = sink.resets
        self._pause = PAUSE
        self._next_at = 0
        self._delayed = False

    async def check(self) -> None:
        """Look for a reset, and report it."""
        await self._sink.check_target()
        self.report()

    def report(self) -> None:
        """Report resets that are not reported yet, unless the last report is too recent; then the next call does."""
        if self._sink.resets == self._reported:
            return
        now = self._clock.now().monotonic
        if now < self._next_at:
            self._delayed = True
            return
        self._pause = min(2 * self._pause, MAX_PAUSE) if self._delayed else PAUSE
        self._reported, self._next_at, self._delayed = self._sink.resets, now + self._pause, False
        self._report()
