"""Readiness: what makes a bridge unready, and what does not."""

from __future__ import annotations

from bridge.telemetry.status import judge
from tests.golden import Golden
from tests.unit.telemetry.http.bridges import note, sink, status


def test_a_bridge_that_is_well_is_ready() -> None:
    verdict = judge(status())
    assert (verdict.ready, verdict.reasons, verdict.complaints) == (True, [], [])


def test_a_first_snapshot_that_is_not_complete_makes_it_unready(golden: Golden) -> None:
    (reason,) = judge(status(live=False)).reasons
    golden.entry("readiness", "no snapshot yet", reason)


def test_an_old_or_missing_proof_makes_it_unready(golden: Golden) -> None:
    for age in (None, 20.5):
        (reason,) = judge(status(proof_age=age)).reasons
        assert "20 s" in reason
        golden.entry("readiness", "no proof", reason)
    assert judge(status(proof_age=19.5)).ready


def test_an_outbox_that_cannot_be_written_makes_it_unready(golden: Golden) -> None:
    (reason,) = judge(status(trouble="the disk is full")).reasons
    assert reason.endswith(": the disk is full")
    golden.entry("readiness", "outbox not written", reason)


def test_a_sink_that_is_down_is_complained_of_only(golden: Golden) -> None:
    verdict = judge(status(sinks=[sink("a", state="starting"), sink("b", state="failing", failure="away"), sink("c")]))
    starting, failing = verdict.complaints
    assert verdict.ready
    assert "a is starting" in starting
    assert "b is failing: away" in failing
    golden.entry("readiness", "sinks", f"{starting}\n{failing}")


def test_only_what_may_have_been_missed_is_a_gap() -> None:
    tally = status().tally
    tally.snapshot(note(reason="on_demand", since=0))
    tally.snapshot(note(reason="interval", since=0))
    tally.snapshot(note(reason="audit", since=0))
    assert not tally.gaps
    tally.snapshot(note(reason="audit", since=0, inferred=1))
    tally.snapshot(note(reason="overflow", since=500_000_000))
    assert tally.gaps == {"audit": 1, "overflow": 1}
    assert tally.gap_seconds == {"audit": 2.0, "overflow": 1.5}
