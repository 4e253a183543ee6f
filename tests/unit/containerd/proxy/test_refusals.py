"""Refused calls are counted, and told at a bounded rate; marks have a rate of their own."""

from __future__ import annotations

from structlog.testing import capture_logs

from bridge.containerd.proxy.refusals import Rate, Refusals
from tests.clocks import ManualClock


def test_all_are_counted_and_one_a_minute_is_told() -> None:
    clock = ManualClock()
    refusals = Refusals(clock)
    with capture_logs() as lines:
        for _ in range(50):
            refusals.add("/a.B/C", "PERMISSION_DENIED", "why")
        clock.pass_time(60)
        refusals.add("/a.B/C", "PERMISSION_DENIED", "why")
    assert [(line["method"], line["denied_total"], line.get("suppressed")) for line in lines] == [
        ("/a.B/C", 1, None),
        ("/a.B/C", 51, 49),
    ]


def test_names_are_whatever_a_client_sends() -> None:
    refusals = Refusals(ManualClock())
    with capture_logs() as lines:
        for number in range(1000):
            refusals.add(f"/{number}\x1b[2J{'x' * 9999}", "PERMISSION_DENIED", "why")
    assert refusals.count == 1000
    assert len(lines) <= 101
    assert all(line["method"].isprintable() and len(line["method"]) < 200 for line in lines)


def test_a_rate_lets_a_burst_pass_and_then_so_many_a_second() -> None:
    clock = ManualClock()
    rate = Rate(clock, per_second=2, burst=5)
    assert [rate.passes() for _ in range(7)] == [True] * 5 + [False] * 2
    clock.pass_time(1)
    assert [rate.passes() for _ in range(3)] == [True, True, False]
    clock.pass_time(3600)
    assert [rate.passes() for _ in range(6)] == [True] * 5 + [False]
