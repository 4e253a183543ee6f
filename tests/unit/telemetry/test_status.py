"""Test which conditions make a bridge not ready, and which degrade it."""

from __future__ import annotations

from bridge.telemetry.status import evaluate
from tests.golden import Golden
from tests.unit.telemetry.http.fake_bridge import bridge_status, sink_status, snapshot_summary


def test_bridge_is_ready_when_healthy() -> None:
    readiness = evaluate(bridge_status())
    assert (readiness.ready, readiness.reasons, readiness.degraded_reasons) == (True, [], [])


def test_bridge_is_not_ready_before_first_snapshot(golden: Golden) -> None:
    (reason,) = evaluate(bridge_status(synced=False)).reasons
    golden.entry("readiness", "no snapshot yet", reason)


def test_bridge_is_not_ready_when_watermark_is_old_or_missing(golden: Golden) -> None:
    for age in (None, 20.5):
        (reason,) = evaluate(bridge_status(watermark_age=age)).reasons
        assert "20 s" in reason
        golden.entry("readiness", "watermark too old", reason)
    assert evaluate(bridge_status(watermark_age=19.5)).ready


def test_bridge_is_not_ready_when_outbox_cannot_be_written(golden: Golden) -> None:
    (reason,) = evaluate(bridge_status(outbox_error="the disk is full")).reasons
    assert reason.endswith(": the disk is full")
    golden.entry("readiness", "outbox not writable", reason)


def test_bridge_is_degraded_but_ready_when_sink_fails(golden: Golden) -> None:
    readiness = evaluate(
        bridge_status(
            sinks=[
                sink_status("a", state="starting"),
                sink_status("b", state="failing", last_error="away"),
                sink_status("c"),
            ]
        )
    )
    starting, failing = readiness.degraded_reasons
    assert readiness.ready
    assert "a is starting" in starting
    assert "b is failing: away" in failing
    golden.entry("readiness", "sinks", f"{starting}\n{failing}")


def test_bridge_is_degraded_but_ready_with_settings_not_in_effect(golden: Golden) -> None:
    readiness = evaluate(bridge_status(settings_error="changes of outbox.max_records need a restart"))
    (reason,) = readiness.degraded_reasons
    assert readiness.ready
    assert "changes of outbox.max_records need a restart" in reason
    golden.entry("readiness", "settings not in effect", reason)


def test_gap_is_counted_only_when_events_may_be_missing() -> None:
    counters = bridge_status().counters
    counters.count_snapshot(snapshot_summary(reason="on_demand", since=0))
    counters.count_snapshot(snapshot_summary(reason="interval", since=0))
    counters.count_snapshot(snapshot_summary(reason="audit", since=0))
    assert not counters.gaps
    counters.count_snapshot(snapshot_summary(reason="audit", since=0, inferred=1))
    counters.count_snapshot(snapshot_summary(reason="overflow", since=500_000_000))
    assert counters.gaps == {"audit": 1, "overflow": 1}
    assert counters.gap_seconds == {"audit": 2.0, "overflow": 1.5}


def test_bridge_is_degraded_but_ready_beside_another_one(golden: Golden) -> None:
    readiness = evaluate(bridge_status(second_bridges=1))
    (reason,) = readiness.degraded_reasons
    assert readiness.ready
    assert "node-1" in reason
    golden.entry("readiness", "another bridge", reason)


def test_bridge_is_degraded_but_ready_when_no_namespace_matches(golden: Golden) -> None:
    readiness = evaluate(bridge_status(excluded_namespaces=[f"n{number}" for number in range(20)]))
    (reason,) = readiness.degraded_reasons
    assert readiness.ready
    assert reason.endswith("n9")
    golden.entry("readiness", "no namespace matches", reason)
