"""Readiness: what makes a bridge unready, and what does not."""

from __future__ import annotations

from bridge.telemetry.status import judge
from tests.unit.telemetry.http.bridges import note, sink, status


def test_a_bridge_that_is_well_is_ready() -> None:
    verdict = judge(status())
    assert (verdict.ready, verdict.reasons, verdict.complaints) == (True, [], [])


def test_a_first_snapshot_that_is_not_complete_makes_it_unready() -> None:
    assert judge(status(live=False)).reasons == ["the first snapshot of this connection is not complete"]


def test_an_old_or_missing_proof_makes_it_unready() -> None:
    for age in (None, 20.5):
        (reason,) = judge(status(proof_age=age)).reasons
        assert reason == "the event stream has stalled: not verified for more than 20 s"
    assert judge(status(proof_age=19.5)).ready


def test_an_outbox_that_cannot_be_written_makes_it_unready() -> None:
    assert judge(status(trouble="the disk is full")).reasons == ["the outbox cannot be written: the disk is full"]


def test_a_sink_that_is_down_is_complained_of_only() -> None:
    verdict = judge(status(sinks=[sink("a", state="starting"), sink("b", state="failing", failure="away"), sink("c")]))
    assert (verdict.ready, verdict.complaints) == (True, ["sink a is starting", "sink b is failing: away"])


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
