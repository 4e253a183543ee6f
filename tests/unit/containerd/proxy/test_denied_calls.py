"""Test that denied calls are counted and logged at a limited rate, and that markers have a separate limit."""

from __future__ import annotations

from structlog.testing import capture_logs

from bridge.containerd.proxy.relay import DeniedCalls, TokenBucket
from tests.clocks import ManualClock


def test_denied_calls_are_counted_and_logged_once_per_minute() -> None:
    clock = ManualClock()
    denied_calls = DeniedCalls(clock)
    with capture_logs() as lines:
        for _ in range(50):
            denied_calls.add("/a.B/C", "PERMISSION_DENIED", "why")
        clock.advance(60)
        denied_calls.add("/a.B/C", "PERMISSION_DENIED", "why")
    assert [(line["method"], line["denied_total"], line.get("suppressed")) for line in lines] == [
        ("/a.B/C", 1, None),
        ("/a.B/C", 51, 49),
    ]


def test_denied_method_names_are_escaped_and_bounded() -> None:
    denied_calls = DeniedCalls(ManualClock())
    with capture_logs() as lines:
        for number in range(1000):
            denied_calls.add(f"/{number}\x1b[2J{'x' * 9999}", "PERMISSION_DENIED", "why")
    assert denied_calls.count == 1000
    assert len(lines) <= 101
    assert all(line["method"].isprintable() and len(line["method"]) < 200 for line in lines)


def test_token_bucket_allows_burst_and_then_fixed_rate() -> None:
    clock = ManualClock()
    rate = TokenBucket(clock, per_second=2, burst=5)
    assert [rate.try_take() for _ in range(7)] == [True] * 5 + [False] * 2
    clock.advance(1)
    assert [rate.try_take() for _ in range(3)] == [True, True, False]
    clock.advance(3600)
    assert [rate.try_take() for _ in range(6)] == [True] * 5 + [False]
