"""A clock that tests advance manually."""

from __future__ import annotations

import asyncio

from bridge.clock import SystemClock
from bridge.core.containerd_model import Instant
from bridge.core.time import SECOND, from_seconds

START = 1_795_447_267 * SECOND


class ManualClock(SystemClock):
    """Time passes only in `advance`, which wakes up all sleepers that are due."""

    def __init__(self, chance: float = 0.5) -> None:
        self.chance = chance
        self.slept: list[float] = []
        self._wall = START
        self._monotonic = 1_000 * SECOND
        self._sleepers: list[tuple[int, asyncio.Future[None]]] = []

    def now(self) -> Instant:
        return Instant(self._wall, self._monotonic)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        wakeup = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._monotonic + from_seconds(seconds), wakeup))
        await wakeup

    def random(self) -> float:
        return self.chance

    def set_wall(self, wall: int) -> None:
        """Set the wall clock, as an operator or NTP does."""
        self._wall = wall

    def advance(self, seconds: float) -> None:
        """Advance both clocks, and wake up the sleepers that are due."""
        self._wall += from_seconds(seconds)
        self._monotonic += from_seconds(seconds)
        for due, wakeup in self._sleepers:
            if due <= self._monotonic and not wakeup.done():
                wakeup.set_result(None)
        self._sleepers = [(due, wakeup) for due, wakeup in self._sleepers if not wakeup.done()]

    @property
    def sleeper_count(self) -> int:
        """Return the number of tasks that sleep."""
        return sum(not wakeup.done() for _, wakeup in self._sleepers)
