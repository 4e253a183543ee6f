"""The system clock; tests and the simulator use others."""

from __future__ import annotations

import asyncio
import random
import time

from bridge.core.containerd_model import Instant


class SystemClock:
    """The machine's clocks and random numbers."""

    def now(self) -> Instant:
        """Return the current time of the wall clock and of the monotonic clock."""
        return Instant(wall=time.time_ns(), monotonic=time.monotonic_ns())

    async def sleep(self, seconds: float) -> None:
        """Wait for ``seconds``."""
        await asyncio.sleep(seconds)

    def random(self) -> float:
        """Return a random number in the interval [0, 1)."""
        return random.random()  # noqa: S311 (used for jitter, not for secrets)
