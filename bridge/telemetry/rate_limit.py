"""Log lines about a problem that lasts, at a bounded rate."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final

from bridge.core.ports import Clock
from bridge.core.time import from_seconds

_OTHERS: Final = object()


class RateLimiter:
    """Allows each key once in ``seconds``, and counts the calls that it suppresses. For use on one thread.

    At most ``keys`` keys are tracked, since some come from outside (an unknown topic); all others share one.
    """

    def __init__(self, clock: Clock, *, seconds: float = 60.0, keys: int = 100) -> None:
        self._clock = clock
        self._interval = from_seconds(seconds)
        self._keys = keys
        self._last: dict[Hashable, tuple[int, int]] = {}  # when it was allowed, and how many were suppressed since

    def log(self, log: Callable[..., Any], key: Hashable, event: str, /, **fields: Any) -> bool:
        """Call ``log(event, **fields)`` if ``key`` is allowed now; return whether it is.

        The number of lines that were suppressed before, where there are any, is added as the field ``unsaid``.
        """
        suppressed = self.allow(key)
        if suppressed is None:
            return False
        log(event, **fields, **({"suppressed": suppressed} if suppressed else {}))
        return True

    def allow(self, key: Hashable) -> int | None:
        """Return how often ``key`` was suppressed since it was allowed last; None if it is suppressed now."""
        now = self._clock.now().monotonic
        if key not in self._last and len(self._last) >= self._keys:
            # A key with a count is kept: the count would be lost.
            self._last = {k: last for k, last in self._last.items() if last[1] or now - last[0] < self._interval}
            key = key if len(self._last) < self._keys else _OTHERS
        at, suppressed = self._last.get(key, (now - self._interval, 0))
        if now - at < self._interval:
            self._last[key] = (at, suppressed + 1)
            return None
        self._last[key] = (now, 0)
        return suppressed
