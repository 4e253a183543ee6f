"""Wait for conditions. Standard library only, because the testbed uses it before a virtual environment exists."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_MAX_PAUSE = 0.5


def eventually(predicate: Callable[[], object], what: str = "a condition", *, within: float = 60) -> None:
    """Wait until `predicate` holds.

    Raises:
        TimeoutError: It does not hold within `within` seconds; the message names `what`.
    """
    started_at = time.monotonic()
    while not predicate():
        elapsed = time.monotonic() - started_at
        if elapsed > within:
            raise TimeoutError(f"timed out after {within:g} s waiting for {what}")
        time.sleep(pause(elapsed))


async def eventually_async(predicate: Callable[[], object], what: str = "a condition", *, within: float = 60) -> None:
    """Wait until `predicate` holds, in the time of the event loop.

    Raises:
        TimeoutError: See `eventually`.
    """
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    while not predicate():
        elapsed = loop.time() - started_at
        if elapsed > within:
            raise TimeoutError(f"timed out after {within:g} s waiting for {what}")
        await asyncio.sleep(pause(elapsed))


def pause(elapsed: float) -> float:
    """Return the seconds until the next check: a tenth of the elapsed time, within limits."""
    return min(max(elapsed / 10, 0.001), _MAX_PAUSE)
