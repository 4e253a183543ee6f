from __future__ import annotations

from typing import Any

from bridge.telemetry.rate_limit import RateLimiter
from tests.virtual_time import VirtualClock


def test_rate_limiter_allows_once_per_interval_with_count() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(clock, seconds=10)
    allowed = []
    for seconds in (0, 1, 8.9, 0.1, 1, 19, 10):
        clock.advance(seconds)
        allowed.append(limiter.allow("topic"))
    assert allowed == [0, None, None, 2, None, 1, 0]


def test_rate_limiter_treats_keys_separately() -> None:
    limiter = RateLimiter(VirtualClock(), seconds=10)
    assert [limiter.allow(key) for key in ("a", "b", "a", "b")] == [0, 0, None, None]


def test_rate_limiter_logs_suppressed_count_only_when_positive() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(clock, seconds=10)
    logged: list[tuple[str, dict[str, Any]]] = []

    def log(event: str, **fields: Any) -> None:
        logged.append((event, fields))

    for seconds in (0, 1, 9):
        clock.advance(seconds)
        assert limiter.log(log, "key", "Unknown topic.", topic="/x") is (seconds != 1)
    assert logged == [("Unknown topic.", {"topic": "/x"}), ("Unknown topic.", {"topic": "/x", "suppressed": 1})]


def test_rate_limiter_bounds_keys_and_rate() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(clock, seconds=10, keys=5)
    counts = [limiter.allow(f"key-{number}") for number in range(1000)]
    assert len([count for count in counts if count is not None]) == 6  # five keys, and one shared by all others
    clock.advance(10)
    assert limiter.allow("another") == 0  # the five keys have expired
    assert len(limiter._last) <= 6


def test_rate_limiter_counts_suppressed_lines_of_overflow_keys() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(clock, seconds=10, keys=1)
    assert [limiter.allow(key) for key in "abcd"] == [0, 0, None, None]
    limiter.allow("a")  # keeps the key from expiring
    clock.advance(10)
    assert limiter.allow("e") == 2
