"""The real clock; a simulator brings another one."""

from __future__ import annotations

import asyncio
import random
import time

from bridge.core.model import Instant


class SystemClock:
    """Time and chance as the machine has them."""

    def now(self) -> Instant:
        """Return this moment on both clocks."""
        return Instant(wall=time.time_ns(), monotonic=time.monotonic_ns())

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    def random(self) -> float:
        """Return a number of the interval [0, 1)."""
        return random.random()  # noqa: S311 (it spreads delays; nobody has to be unable to guess it)
