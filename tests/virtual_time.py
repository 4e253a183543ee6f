"""Virtual time: an event loop that never waits, and the clock that belongs to it."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

from bridge.clock import SystemClock
from bridge.core.containerd_model import Instant
from bridge.core.time import SECOND

START = 1_795_447_267 * SECOND  # of the wall clock
REAL_TIME = "real_time"
"""The pytest marker of tests that wait for threads, processes or sockets: they run on an ordinary event loop."""


class _Selector(selectors.DefaultSelector):
    """Where the event loop would wait for a timer, time passes; where it would wait for anything else, the test fails.

    After that, it waits in real time, so that the test can clean up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.uses_threads = False
        self._is_virtual = True

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0 if self._is_virtual else timeout)
        if self._is_virtual and (self.uses_threads or (timeout is None and not events)):
            self._is_virtual = False
            reason = "for a thread" if self.uses_threads else "without a timer, for something that may never happen"
            raise RuntimeError(f"the test waits {reason}; tests that have to are marked {REAL_TIME}")
        if timeout is not None and not events:
            self.seconds += max(timeout, 0)
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time moves to the next timer as soon as no task can run."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._virtual.seconds

    def call_soon_threadsafe(  # type: ignore[override] # passes all arguments on
        self, *args: Any, **options: Any
    ) -> asyncio.Handle:
        """Schedule a call, and let the test fail: how far time has moved when a thread returns is up to chance."""
        self._virtual.uses_threads = True
        return super().call_soon_threadsafe(*args, **options)


class VirtualClock(SystemClock):
    """Time passes with that of a `VirtualTimeLoop`, and in `advance`; on any other event loop only in `advance`."""

    def __init__(self, chance: float = 0.5) -> None:
        self.chance = chance
        self.slept: list[float] = []
        self._advanced = 0
        self._wall_offset = START

    def now(self) -> Instant:
        monotonic = self._monotonic()
        return Instant(monotonic + self._wall_offset, 1_000 * SECOND + monotonic)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await super().sleep(seconds)

    def random(self) -> float:
        return self.chance

    def set_wall(self, wall: int) -> None:
        """Set the wall clock, as an operator or NTP does."""
        self._wall_offset = wall - self._monotonic()

    def advance(self, seconds: float) -> None:
        """Advance both clocks; timers do not notice."""
        self._advanced += round(seconds * SECOND)

    def _monotonic(self) -> int:
        loop = asyncio._get_running_loop()
        return self._advanced + (round(loop.time() * SECOND) if isinstance(loop, VirtualTimeLoop) else 0)
