"""Denied calls: counted, and logged at a limited rate. Also the rate limit of published markers."""

from __future__ import annotations

import structlog

from bridge.core.ports import Clock
from bridge.core.time import to_seconds
from bridge.telemetry.rate_limit import RateLimiter
from bridge.telemetry.safe_text import printable

_MAX_METHOD_LENGTH = 120  # characters of a method's name, which can be any text that a client sends
_log = structlog.get_logger(__name__)


class DeniedCalls:
    """Counts denied calls, and logs at most one line per method and minute."""

    def __init__(self, clock: Clock) -> None:
        self.count = 0
        self._rate_limiter = RateLimiter(clock)

    def add(self, method: str, status: str, reason: str) -> None:
        """Count and log a denied call."""
        self.count += 1
        name = printable(method[:_MAX_METHOD_LENGTH])
        self._rate_limiter.log(
            _log.warning,
            (name, status),
            "call_denied",
            method=name,
            status=status,
            reason=reason,
            denied_total=self.count,
        )


class TokenBucket:
    """A rate limit: ``burst`` tokens at once, refilled with ``per_second``."""

    def __init__(self, clock: Clock, *, per_second: float, burst: int) -> None:
        self._clock = clock
        self._per_second = per_second
        self._burst = burst
        self._tokens = float(burst)
        self._refilled_at = clock.now().monotonic

    def try_take(self) -> bool:
        """Take a token if there is one; return whether there was."""
        now = self._clock.now().monotonic
        self._tokens = min(self._burst, self._tokens + to_seconds(now - self._refilled_at) * self._per_second)
        self._refilled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
