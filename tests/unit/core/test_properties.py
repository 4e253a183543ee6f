"""DESIGN's promises about lives, held against made-up histories of a containerd that is the truth."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.core.reconcile import has_unconfirmed
from tests.scale import scaled
from tests.unit.core.containerd_model import ContainerdModel, Faults, TrueTransition
from tests.unit.core.harness import Harness

# In CI hypothesis is deterministic of itself (its profile "ci").
hypothesis_settings = settings(
    max_examples=scaled(reduced=25, full=1000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
chances = st.randoms(use_true_random=False)
lengths = st.integers(1, 80)

EVENT_FAULTS = Faults(duplicates=True, late=True, lag=True, task_waits=True)
ALL_FAULTS = Faults(
    duplicates=True, late=True, lost=True, gaps=True, query_failures=True, dead_shims=True, lag=True, task_waits=True
)


def run_history(
    chance: Random, length: int, faults: Faults, *, before: int = 0, audits: bool = True, reloads: bool = False
) -> Harness:
    """Follow a world with whatever may go wrong: from its empty beginning, or after some things have happened."""
    world = ContainerdModel(chance)
    follower = Harness(world)
    if not before:
        follower.connect()
    world.faults = faults
    follower.consumer.filtered = faults.clock != "steady"
    for _ in range(before):
        world.step()
    if before:
        follower.connect()
    for _ in range(length):
        if faults.gaps and world.flip(0.1):
            if world.subscribed:
                follower.disconnect()
            else:
                follower.connect()
        elif reloads and world.flip(0.1):
            follower.change_filters()
        elif audits and world.subscribed and world.flip(0.05):
            follower.audit()
        else:
            world.step()
            if world.subscribed:
                follower.follow()
    follower.quiesce()
    return follower


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(), id="at once"),
        pytest.param(Faults(duplicates=True, task_waits=True), id="repeated"),
        pytest.param(Faults(clock="stepping"), id="clock set"),
        pytest.param(Faults(lag=True), id="after a while"),
    ],
)
@hypothesis_settings
@given(chance=chances, length=lengths)
def test_records_equal_history_when_nothing_is_lost_or_late(faults: Faults, chance: Random, length: int) -> None:
    follower = run_history(chance, length, faults, audits=not faults.lag)
    told, happened = follower.consumer.received, follower.containerd.history
    if faults.duplicates:  # a repeated OOM event cannot be told from another process's being killed
        told, happened = _without_oom(told), _without_oom(happened)
    assert told == happened
    assert follower.consumer.preexisting_count == 0


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(EVENT_FAULTS, id="late"),
        pytest.param(Faults(gaps=True, lag=True, task_waits=True), id="gaps"),
        pytest.param(Faults(gaps=True, query_failures=True, lag=True), id="silent shims"),
        pytest.param(Faults(lost=True, dead_shims=True, lag=True, task_waits=True), id="lost"),
        pytest.param(ALL_FAULTS, id="anything"),
    ],
)
@pytest.mark.parametrize("clock", ["steady", "stepping", "mad"])
@hypothesis_settings
@given(chance=chances, length=lengths, before=st.integers(0, 20))
def test_incarnations_are_consistent_and_converge_despite_faults(
    faults: Faults, clock: str, chance: Random, length: int, before: int
) -> None:
    faults = Faults(**{**vars(faults), "clock": clock})
    follower = run_history(chance, length, faults, before=before)
    follower.audit()
    follower.quiesce()
    world, judge, tracker = follower.containerd, follower.consumer, follower.tracker
    assert judge.running == world.running()
    assert judge.preexisting_count <= tracker.preexisting_count
    assert not has_unconfirmed(tracker)
    for each in judge.received:
        if each.type == "exited" and not faults.duplicates:  # else a made-up exit may overtake the true one
            without_pid = 255 if faults.dead_shims else None  # whose status may be taken for that of the life before
            assert each.status in (None, without_pid, world.exit_statuses[each.pid])


@pytest.mark.parametrize("faults", [Faults(late=True, lag=True), Faults(gaps=True, lag=True)], ids=["late", "gaps"])
@hypothesis_settings
@given(chance=chances, length=lengths, before=st.integers(0, 20))
def test_metadata_is_current_after_faults(faults: Faults, chance: Random, length: int, before: int) -> None:
    follower = run_history(chance, length, faults, before=before)
    for key, record in follower.containerd.metadata.items():
        entry = follower.tracker.find(key)
        assert entry is not None
        assert entry.metadata == record
        assert not entry.deleted


@hypothesis_settings
@given(chance=chances, length=lengths)
def test_replayed_events_emit_nothing_new(chance: Random, length: int) -> None:
    follower = run_history(chance, length, Faults(duplicates=True, query_failures=True, lag=True, task_waits=True))
    follower.audit()
    told = list(follower.consumer.received)
    follower.replay()
    assert follower.consumer.received == told


@pytest.mark.parametrize(
    "faults", [Faults(), Faults(gaps=True, lag=True), ALL_FAULTS], ids=["none", "gaps", "anything"]
)
@hypothesis_settings
@given(chance=chances, length=lengths, before=st.integers(0, 20))
def test_filter_change_keeps_incarnations_consistent(faults: Faults, chance: Random, length: int, before: int) -> None:
    follower = run_history(chance, length, faults, before=before, reloads=True)
    follower.change_filters()
    follower.quiesce()
    follower.audit()
    world = follower.containerd
    assert follower.consumer.running == {key: value for key, value in world.running().items() if key in world.in_scope}


@pytest.mark.parametrize("faults", [Faults(), EVENT_FAULTS, ALL_FAULTS], ids=["none", "late", "anything"])
@hypothesis_settings
@given(chance=chances, length=lengths, before=st.integers(0, 20))
def test_additional_events_maintain_existing_containers(
    faults: Faults, chance: Random, length: int, before: int
) -> None:
    follower = run_history(chance, length, faults, before=before)
    if follower.containerd.subscribed:
        follower.disconnect()
    follower.quiesce()
    assert follower.consumer.known_names == {key: record.name for key, record in follower.containerd.metadata.items()}


def _without_oom(transitions: list[TrueTransition]) -> list[TrueTransition]:
    return [each._replace(oom=None) for each in transitions]
