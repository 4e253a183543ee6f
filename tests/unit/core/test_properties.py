"""Properties of incarnations, checked on random histories of a containerd model."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.core.containerd_model import TaskStatus
from bridge.core.reconcile import has_unconfirmed
from tests.scale import scaled
from tests.unit.core.containerd_model import ContainerdModel, Faults, TrueTransition
from tests.unit.core.harness import Harness

# In CI hypothesis selects its deterministic profile "ci" by itself.
hypothesis_settings = settings(
    max_examples=scaled(reduced=25, full=1000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
rngs = st.randoms(use_true_random=False)
lengths = st.integers(1, 80)

EVENT_FAULTS = Faults(duplicates=True, late=True, lag=True, task_waits=True)
ALL_FAULTS = Faults(
    duplicates=True,
    late=True,
    lost=True,
    gaps=True,
    query_failures=True,
    dead_shims=True,
    lag=True,
    silent=True,
    falling_silent=True,
    task_waits=True,
)


def run_history(
    rng: Random,
    length: int,
    faults: Faults,
    *,
    before: int = 0,
    audits: bool = True,
    start_checks: bool = True,
    reloads: bool = False,
) -> Harness:
    """Run a history of ``length`` moves with faults, after ``before`` moves that happen before the first connection."""
    containerd = ContainerdModel(rng)
    harness = Harness(containerd)
    harness.start_checks = start_checks
    late = faults.gaps or faults.late
    harness.ambiguous_times = faults.clock == "random" or (faults.clock == "stepping" and late)
    if not before:
        harness.connect()
    containerd.faults = faults
    harness.consumer.filtered = faults.clock != "steady"
    for _ in range(before):
        containerd.step()
    if before:
        harness.connect()
    for _ in range(length):
        if faults.gaps and containerd.flip(0.1):
            if containerd.subscribed:
                harness.disconnect()
            else:
                harness.connect()
        elif reloads and containerd.flip(0.1):
            harness.change_filters()
        elif audits and containerd.subscribed and containerd.flip(0.05):
            harness.audit()
        else:
            containerd.step()
            if containerd.subscribed:
                harness.follow()
    harness.quiesce()
    return harness


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(), id="none"),
        pytest.param(Faults(duplicates=True, task_waits=True), id="duplicates"),
        pytest.param(Faults(clock="stepping", pids="growing"), id="clock steps"),
        pytest.param(Faults(lag=True), id="lag"),
    ],
)
@hypothesis_settings
@given(rng=rngs, length=lengths)
def test_records_equal_history_when_nothing_is_lost_or_late(faults: Faults, rng: Random, length: int) -> None:
    # A query that is caused by neither event nor fault may overtake events that lag behind.
    harness = run_history(rng, length, faults, audits=not faults.lag, start_checks=not faults.lag)
    published, history = _by_container(harness.consumer.received), _by_container(harness.containerd.history)
    assert _without_oom(published) == _without_oom(history)
    for each, true in zip(published, history, strict=True):
        if not faults.duplicates:  # a repeated OOM event looks like an OOM kill of another process
            assert each.oom in ((True,) if true.oom else (None, False)), (each, true)
    assert harness.consumer.preexisting_count == 0


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(EVENT_FAULTS, id="late"),
        pytest.param(Faults(gaps=True, lag=True, task_waits=True), id="gaps"),
        pytest.param(Faults(gaps=True, query_failures=True, lag=True), id="hung shims"),
        pytest.param(Faults(lost=True, dead_shims=True, lag=True, task_waits=True), id="lost"),
        pytest.param(Faults(silent=True, falling_silent=True, gaps=True, lag=True), id="silent"),
        pytest.param(ALL_FAULTS, id="all"),
    ],
)
@pytest.mark.parametrize("clock", ["steady", "stepping", "random"])
@hypothesis_settings
@given(rng=rngs, length=lengths, before=st.integers(0, 20))
def test_incarnations_are_consistent_and_converge_despite_faults(
    faults: Faults, clock: Literal["steady", "stepping", "random"], rng: Random, length: int, before: int
) -> None:
    faults = replace(faults, clock=clock, pids="growing" if clock == "random" else "returning")
    harness = run_history(rng, length, faults, before=before)
    harness.audit()
    harness.quiesce()
    containerd, consumer, tracker = harness.containerd, harness.consumer, harness.tracker
    assert consumer.running == containerd.running()
    assert consumer.preexisting_count <= tracker.preexisting_count
    assert not has_unconfirmed(tracker)
    for each in consumer.received:
        tasks = containerd.ended[each.key, each.pid]
        if each.type == "exited" and not faults.duplicates:  # a duplicate may precede the true exit
            without_pid = 255 if faults.dead_shims else None  # an exit without pid may end an earlier incarnation
            assert each.status in (None, without_pid, *(task.exit_status for task in tasks))
        if each.oom is False and not (faults.lost or faults.late or faults.falling_silent or clock == "random"):
            assert any(not task.oom for task in tasks)


@hypothesis_settings
@given(rng=rngs, length=lengths)
def test_returning_pids_need_no_audit_when_clock_steps(rng: Random, length: int) -> None:
    harness = run_history(rng, length, Faults(clock="stepping"), audits=False)
    assert harness.consumer.running == harness.containerd.running()


@hypothesis_settings
@given(rng=rngs, length=st.integers(1, 30))  # shorter than the start checks of a container
def test_silent_containers_are_published_without_audit(rng: Random, length: int) -> None:
    harness = run_history(rng, length, Faults(silent=True), audits=False)
    containerd, consumer = harness.containerd, harness.consumer
    assert {key: pid for key, (pid, _) in consumer.running.items()} == {
        key: pid for key, (pid, _) in containerd.running().items()
    }
    exits = [each for each in consumer.received if each.type == "exited"]
    for key, task in containerd.tasks.items():
        if task.status is TaskStatus.STOPPED and task.started:
            assert task.pid == [each.pid for each in exits if each.key == key][-1]
    for each in exits:
        assert each.status in (None, *(task.exit_status for task in containerd.ended[each.key, each.pid]))


@pytest.mark.parametrize("faults", [Faults(late=True, lag=True), Faults(gaps=True, lag=True)], ids=["late", "gaps"])
@hypothesis_settings
@given(rng=rngs, length=lengths, before=st.integers(0, 20))
def test_metadata_is_current_after_faults(faults: Faults, rng: Random, length: int, before: int) -> None:
    harness = run_history(rng, length, faults, before=before)
    for key, metadata in harness.containerd.metadata.items():
        entry = harness.tracker.find(key)
        assert entry is not None
        assert entry.metadata == metadata
        assert not entry.deleted


@hypothesis_settings
@given(rng=rngs, length=lengths)
def test_replayed_events_emit_nothing_new(rng: Random, length: int) -> None:
    harness = run_history(rng, length, Faults(duplicates=True, query_failures=True, lag=True, task_waits=True))
    harness.audit()
    published = list(harness.consumer.received)
    harness.replay()
    assert harness.consumer.received == published


@pytest.mark.parametrize("faults", [Faults(), Faults(gaps=True, lag=True), ALL_FAULTS], ids=["none", "gaps", "all"])
@hypothesis_settings
@given(rng=rngs, length=lengths, before=st.integers(0, 20))
def test_filter_change_keeps_incarnations_consistent(faults: Faults, rng: Random, length: int, before: int) -> None:
    harness = run_history(rng, length, faults, before=before, reloads=True)
    harness.change_filters()
    harness.quiesce()
    harness.audit()
    containerd = harness.containerd
    assert harness.consumer.running == {
        key: value for key, value in containerd.running().items() if key in containerd.in_scope
    }


@pytest.mark.parametrize("faults", [Faults(), EVENT_FAULTS, ALL_FAULTS], ids=["none", "late", "all"])
@hypothesis_settings
@given(rng=rngs, length=lengths, before=st.integers(0, 20))
def test_additional_events_maintain_existing_containers(faults: Faults, rng: Random, length: int, before: int) -> None:
    harness = run_history(rng, length, faults, before=before)
    if harness.containerd.subscribed:
        harness.disconnect()
    harness.quiesce()
    assert harness.consumer.known_names == {key: metadata.name for key, metadata in harness.containerd.metadata.items()}


def _by_container(transitions: list[TrueTransition]) -> list[TrueTransition]:
    """Sort by container: an exit that is held is published after later transitions of other containers."""
    return sorted(transitions, key=lambda each: each.key)


def _without_oom(transitions: list[TrueTransition]) -> list[TrueTransition]:
    return [each._replace(oom=None) for each in transitions]
