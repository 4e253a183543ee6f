"""Test how often snapshots are requested for targets that lose records."""

from __future__ import annotations

import itertools

from bridge.core.time import SECOND
from bridge.delivery.target_resets import ResetReporter
from tests.clocks import ManualClock

START = ManualClock().now().monotonic


class Target:
    """A sink whose target has lost its records ``resets`` times."""

    resets = 0

    async def check_target(self) -> None:
        """Find nothing."""


def report_times(target: Target, clock: ManualClock, *, lost_again: bool, minutes: int) -> list[int]:
    """Return the seconds at which resets are reported; with ``lost_again``, the target loses each snapshot at once."""
    reports: list[int] = []

    def report() -> None:
        reports.append((clock.now().monotonic - START) // SECOND)
        target.resets += lost_again

    reporter = ResetReporter(target, clock, report)
    target.resets += 1
    for _ in range(2 * minutes):
        reporter.report()
        clock.advance(30)
    return reports


def test_reset_is_reported_once_at_once() -> None:
    assert report_times(Target(), ManualClock(), lost_again=False, minutes=60) == [0]


def test_pause_grows_when_target_loses_each_snapshot() -> None:
    reports = report_times(Target(), ManualClock(), lost_again=True, minutes=24 * 60)
    pauses = [after - before for before, after in itertools.pairwise(reports)]
    assert pauses[:7] == [60, 120, 240, 480, 960, 1920, 3600]
    assert set(pauses[6:]) == {3600}


def test_pause_is_short_again_after_snapshot_lasted() -> None:
    target, clock, reports = Target(), ManualClock(), []
    reporter = ResetReporter(target, clock, lambda: reports.append((clock.now().monotonic - START) // SECOND))
    for at in (0, 400, 430, 460):
        clock.advance(at - (clock.now().monotonic - START) // SECOND)
        target.resets += 1
        reporter.report()
    assert reports == [0, 400, 460]
