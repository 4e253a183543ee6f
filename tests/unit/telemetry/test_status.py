"""Readiness: what makes a bridge unready, and what does not."""

from __future__ import annotations

from bridge.telemetry.status import evaluate
from tests.golden import Golden
from tests.unit.telemetry.http.fake_bridge import bridge_status, sink_status, snapshot_summary


def test_bridge_is_ready_when_healthy() -> None:
    verdict = evaluate(bridge_status())
    assert (verdict.ready, verdict.reasons, verdict.degraded_reasons) == (True, [], [])


def test_bridge_is_not_ready_before_first_snapshot(golden: Golden) -> None:
    (reason,) = evaluate(bridge_status(synced=False)).reasons
    golden.entry("readiness", "no snapshot yet", reason)


def test_bridge_is_not_ready_when_watermark_is_old_or_missing(golden: Golden) -> None:
    for age in (None, 20.5):
        (reason,) = evaluate(bridge_status(watermark_age=age)).reasons
        assert "20 s" in reason
        golden.entry("readiness", "no proof", reason)
    assert evaluate(bridge_status(watermark_age=19.5)).ready


def test_bridge_is_not_ready_when_outbox_cannot_be_written(golden: Golden) -> None:
    (reason,) = evaluate(bridge_status(outbox_error="the disk is full")).reasons
    assert reason.endswith(": the disk is full")
    golden.entry("readiness", "outbox not written", reason)


def test_bridge_is_degraded_but_ready_when_sink_fails(golden: Golden) -> None:
    verdict = evaluate(
        bridge_status(
            sinks=[
                sink_status("a", state="starting"),
                sink_status("b", state="failing", last_error="away"),
                sink_status("c"),
            ]
        )
    )
    starting, failing = verdict.degraded_reasons
    assert verdict.ready
    assert "a is starting" in starting
    assert "b is failing: away" in failing
    golden.entry("readiness", "sinks", f"{starting}\n{failing}")


def test_gap_is_counted_only_when_events_may_be_missing() -> None:
    tally = bridge_status().counters
    tally.count_snapshot(snapshot_summary(reason="on_demand", since=0))
    tally.count_snapshot(snapshot_summary(reason="interval", since=0))
    tally.count_snapshot(snapshot_summary(reason="audit", since=0))
    assert not tally.gaps
    tally.count_snapshot(snapshot_summary(reason="audit", since=0, inferred=1))
    tally.count_snapshot(snapshot_summary(reason="overflow", since=500_000_000))
    assert tally.gaps == {"audit": 1, "overflow": 1}
    assert tally.gap_seconds == {"audit": 2.0, "overflow": 1.5}
