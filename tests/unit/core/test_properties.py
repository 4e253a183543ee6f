"""DESIGN's promises about lives, held against made-up histories of a containerd that is the truth."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.core.reconcile import unproven
from tests.scale import scaled
from tests.unit.core.follower import Follower
from tests.unit.core.world import Faults, Happening, World

# In CI hypothesis is deterministic of itself (its profile "ci").
histories = settings(
    max_examples=scaled(part=25, full=1000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
chances = st.randoms(use_true_random=False)
lengths = st.integers(1, 80)

RESTLESS = Faults(duplicates=True, late=True, lag=True, witnessed=True)
ANYTHING = Faults(
    duplicates=True, late=True, lost=True, gaps=True, silence=True, dead_shims=True, lag=True, witnessed=True
)


def live_through(
    chance: Random, length: int, faults: Faults, *, before: int = 0, audits: bool = True, reloads: bool = False
) -> Follower:
    """Follow a world with whatever may go wrong: from its empty beginning, or after some things have happened."""
    world = World(chance)
    follower = Follower(world)
    if not before:
        follower.connect()
    world.faults = faults
    follower.judge.filtered = faults.clock != "steady"
    for _ in range(before):
        world.move()
    if before:
        follower.connect()
    for _ in range(length):
        if faults.gaps and world.flip(0.1):
            if world.subscribed:
                follower.disconnect()
            else:
                follower.connect()
        elif reloads and world.flip(0.1):
            follower.rescope()
        elif audits and world.subscribed and world.flip(0.05):
            follower.audit()
        else:
            world.move()
            if world.subscribed:
                follower.follow()
    follower.settle_down()
    return follower


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(), id="at once"),
        pytest.param(Faults(duplicates=True, witnessed=True), id="repeated"),
        pytest.param(Faults(clock="stepping"), id="clock set"),
        pytest.param(Faults(lag=True), id="after a while"),
    ],
)
@histories
@given(chance=chances, length=lengths)
def test_where_nothing_is_lost_or_late_what_is_told_is_what_happened(
    faults: Faults, chance: Random, length: int
) -> None:
    follower = live_through(chance, length, faults, audits=not faults.lag)
    told, happened = follower.judge.told, follower.world.history
    if faults.duplicates:  # a repeated OOM event cannot be told from another process's being killed
        told, happened = _without_oom(told), _without_oom(happened)
    assert told == happened
    assert follower.judge.adoptions == 0


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(RESTLESS, id="late"),
        pytest.param(Faults(gaps=True, lag=True, witnessed=True), id="gaps"),
        pytest.param(Faults(gaps=True, silence=True, lag=True), id="silent shims"),
        pytest.param(Faults(lost=True, dead_shims=True, lag=True, witnessed=True), id="lost"),
        pytest.param(ANYTHING, id="anything"),
    ],
)
@pytest.mark.parametrize("clock", ["steady", "stepping", "mad"])
@histories
@given(chance=chances, length=lengths, before=st.integers(0, 20))
def test_whatever_goes_wrong_lives_are_well_formed_and_the_records_converge(
    faults: Faults, clock: str, chance: Random, length: int, before: int
) -> None:
    faults = Faults(**{**vars(faults), "clock": clock})
    follower = live_through(chance, length, faults, before=before)
    follower.audit()
    follower.settle_down()
    world, judge, tracker = follower.world, follower.judge, follower.tracker
    assert judge.fold == world.alive()
    assert judge.adoptions <= tracker.adopted
    assert not unproven(tracker)
    for each in judge.told:
        if each.type == "exited" and not faults.duplicates:  # else a made-up exit may overtake the true one
            without_pid = 255 if faults.dead_shims else None  # whose status may be taken for that of the life before
            assert each.status in (None, without_pid, world.statuses[each.pid])


@pytest.mark.parametrize("faults", [Faults(late=True, lag=True), Faults(gaps=True, lag=True)], ids=["late", "gaps"])
@histories
@given(chance=chances, length=lengths, before=st.integers(0, 20))
def test_records_are_known_as_they_are_now(faults: Faults, chance: Random, length: int, before: int) -> None:
    follower = live_through(chance, length, faults, before=before)
    for key, record in follower.world.records.items():
        entry = follower.tracker.find(key)
        assert entry is not None
        assert entry.metadata == record
        assert not entry.deleted


@histories
@given(chance=chances, length=lengths)
def test_everything_twice_tells_nothing_more(chance: Random, length: int) -> None:
    follower = live_through(chance, length, Faults(duplicates=True, silence=True, lag=True, witnessed=True))
    follower.audit()
    told = list(follower.judge.told)
    follower.repeat()
    assert follower.judge.told == told


@pytest.mark.parametrize("faults", [Faults(), Faults(gaps=True, lag=True), ANYTHING], ids=["none", "gaps", "anything"])
@histories
@given(chance=chances, length=lengths, before=st.integers(0, 20))
def test_other_filters_leave_well_formed_lives_and_the_records_converge(
    faults: Faults, chance: Random, length: int, before: int
) -> None:
    follower = live_through(chance, length, faults, before=before, reloads=True)
    follower.rescope()
    follower.settle_down()
    follower.audit()
    world = follower.world
    assert follower.judge.fold == {key: value for key, value in world.alive().items() if key in world.scope}


@pytest.mark.parametrize("faults", [Faults(), RESTLESS, ANYTHING], ids=["none", "late", "anything"])
@histories
@given(chance=chances, length=lengths, before=st.integers(0, 20))
def test_whoever_wants_to_know_of_records_knows_which_there_are(
    faults: Faults, chance: Random, length: int, before: int
) -> None:
    follower = live_through(chance, length, faults, before=before)
    if follower.world.subscribed:
        follower.disconnect()
    follower.settle_down()
    assert follower.judge.names == {key: record.name for key, record in follower.world.records.items()}


def _without_oom(happenings: list[Happening]) -> list[Happening]:
    return [each._replace(oom=None) for each in happenings]
