"""Waiting until something is so. Standard library only, since the testbed uses it, too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_MAX_PAUSE = 0.5


def eventually(predicate: Callable[[], object], what: str = "a condition", *, within: float = 60) -> None:
    """Wait until `predicate` holds.

    Raises:
        TimeoutError: It does not within that many seconds; the text says what was waited for.
    """
    began = time.monotonic()
    while not predicate():
        passed = time.monotonic() - began
        if passed > within:
            raise TimeoutError(f"{what} did not come within {within:g} s")
        time.sleep(_pause(passed))


async def eventually_async(
    predicate: Callable[[], object],
    what: str = "a condition",
    *,
    within: float = 60,
    meanwhile: Callable[[], object] | None = None,
) -> None:
    """Wait until `predicate` holds, while the event loop goes on; `meanwhile` is called at each of its turns.

    Raises:
        TimeoutError: as above.
    """
    began = time.monotonic()
    while not predicate():
        passed = time.monotonic() - began
        if passed > within:
            raise TimeoutError(f"{what} did not come within {within:g} s")
        if meanwhile is not None:
            meanwhile()
        await asyncio.sleep(_pause(passed) if meanwhile is None else 0)


def _pause(passed: float) -> float:
    """How long to wait before the next look: a tenth of the time so far."""
    return min(max(passed / 10, 0.001), _MAX_PAUSE)
