"""Rate-limited logging, for errors that repeat."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final

from bridge.core.ports import Clock
from bridge.core.time import from_seconds

_OTHER_KEYS: Final = object()


class RateLimiter:
    """Allows each key once per ``seconds``, and counts the suppressed calls; for use on one thread.

    At most ``keys`` keys are tracked, because some have unbounded values (such as unknown topics); the others share
    one entry.
    """

    def __init__(self, clock: Clock, *, seconds: float = 60.0, keys: int = 100) -> None:
        self._clock = clock
        self._interval = from_seconds(seconds)
        self._keys = keys
        self._last: dict[Hashable, tuple[int, int]] = {}  # time of the last allowed call, calls suppressed since

    def log(self, log: Callable[..., Any], key: Hashable, event: str, /, **fields: Any) -> bool:
        """Call ``log(event, **fields)`` if ``key`` is allowed now; return whether it is.

        The field ``suppressed`` is added if lines were suppressed since the last call.
        """
        suppressed = self.allow(key)
        if suppressed is None:
            return False
        log(event, **fields, **({"suppressed": suppressed} if suppressed else {}))
        return True

    def allow(self, key: Hashable) -> int | None:
        """Return how often ``key`` was suppressed since it was last allowed; None if it is suppressed now."""
        now = self._clock.now().monotonic
        if key not in self._last and len(self._last) >= self._keys:
            # Keys with suppressed calls stay, so that no count is lost.
            self._last = {k: last for k, last in self._last.items() if last[1] or now - last[0] < self._interval}
            key = key if len(self._last) < self._keys else _OTHER_KEYS
        allowed_at, suppressed = self._last.get(key, (now - self._interval, 0))
        if now - allowed_at < self._interval:
            self._last[key] = (allowed_at, suppressed + 1)
            return None
        self._last[key] = (now, 0)
        return suppressed
