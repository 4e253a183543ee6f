"""The system clock; tests and the simulator use others."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from bridge.core.containerd_model import Instant
from bridge.core.ports import Clock

T = TypeVar("T")


class SystemClock:
    """The machine's clocks and random numbers, and the timers of the event loop."""

    def now(self) -> Instant:
        """Return the current time of the wall clock and of the monotonic clock."""
        return Instant(wall=time.time_ns(), monotonic=time.monotonic_ns())

    async def sleep(self, seconds: float) -> None:
        """Sleep for a number of seconds."""
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        """Limit the duration of a block; None for no limit. A block that takes longer raises a TimeoutError."""
        return asyncio.timeout(seconds)

    def random(self) -> float:
        """Return a random number in the interval [0, 1)."""
        return random.random()  # noqa: S311 (used for jitter, not for secrets)


def shuffled(items: Iterable[T], clock: Clock) -> list[T]:
    """Return the items in random order."""
    return sorted(items, key=lambda _: clock.random())
