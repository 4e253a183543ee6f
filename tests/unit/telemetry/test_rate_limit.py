from __future__ import annotations

from typing import Any

from bridge.core.containerd_model import Instant
from bridge.core.time import from_seconds
from bridge.telemetry.rate_limit import RateLimiter


class FakeClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> Instant:
        return Instant(0, from_seconds(self.seconds))

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    def random(self) -> float:
        raise NotImplementedError


def test_rate_limiter_allows_once_per_interval_with_count() -> None:
    clock = FakeClock()
    limiter = RateLimiter(clock, seconds=10)
    allowed = []
    for seconds in (0, 1, 9.9, 10, 11, 30, 40):
        clock.seconds = seconds
        allowed.append(limiter.allow("topic"))
    assert allowed == [0, None, None, 2, None, 1, 0]


def test_rate_limiter_treats_keys_separately() -> None:
    limiter = RateLimiter(FakeClock(), seconds=10)
    assert [limiter.allow(key) for key in ("a", "b", "a", "b")] == [0, 0, None, None]


def test_rate_limiter_logs_suppressed_count_only_when_positive() -> None:
    clock = FakeClock()
    limiter = RateLimiter(clock, seconds=10)
    logged: list[tuple[str, dict[str, Any]]] = []

    def log(event: str, **fields: Any) -> None:
        logged.append((event, fields))

    for seconds in (0, 1, 10):
        clock.seconds = seconds
        assert limiter.log(log, "key", "Unknown topic.", topic="/x") is (seconds != 1)
    assert logged == [("Unknown topic.", {"topic": "/x"}), ("Unknown topic.", {"topic": "/x", "suppressed": 1})]


def test_rate_limiter_bounds_keys_and_rate() -> None:
    clock = FakeClock()
    limiter = RateLimiter(clock, seconds=10, keys=5)
    counts = [limiter.allow(f"key-{number}") for number in range(1000)]
    assert len([count for count in counts if count is not None]) == 6  # five keys, and one shared by all others
    clock.seconds = 10
    assert limiter.allow("another") == 0  # the five keys have expired
    assert len(limiter._last) <= 6


def test_rate_limiter_counts_suppressed_lines_of_overflow_keys() -> None:
    clock = FakeClock()
    limiter = RateLimiter(clock, seconds=10, keys=1)
    assert [limiter.allow(key) for key in "abcd"] == [0, 0, None, None]
    limiter.allow("a")  # keeps the key from expiring
    clock.seconds = 10
    assert limiter.allow("e") == 2
