"""What was refused: counted, and told at a bounded rate."""

from __future__ import annotations

import structlog

from bridge.core.ports import Clock
from bridge.telemetry.sparingly import Sparingly
from bridge.telemetry.text import printable

_SHOWN = 120  # characters of a method's name, which is whatever a client has sent
_log = structlog.get_logger(__name__)


class Refusals:
    """Counts refused calls; one line a method and minute."""

    def __init__(self, clock: Clock) -> None:
        self.count = 0
        self._sparingly = Sparingly(clock)

    def add(self, method: str, status: str, reason: str) -> None:
        """Count a call that was refused."""
        self.count += 1
        name = printable(method[:_SHOWN])
        self._sparingly.say(
            _log.warning,
            (name, status),
            "call_denied",
            method=name,
            status=status,
            reason=reason,
            denied_total=self.count,
        )


class Rate:
    """Lets ``burst`` pass at once, and ``per_second`` in the long run."""

    def __init__(self, clock: Clock, *, per_second: float, burst: int) -> None:
        self._clock = clock
        self._per_second = per_second
        self._burst = burst
        self._left = float(burst)
        self._at = clock.now().monotonic

    def passes(self) -> bool:
        """Tell whether one more may pass now; if so, it counts."""
        now = self._clock.now().monotonic
        self._left = min(self._burst, self._left + (now - self._at) / 1e9 * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
