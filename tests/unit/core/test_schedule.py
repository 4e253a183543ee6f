"""Schedule: due times by container."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from bridge.core.containerd_model import ContainerKey
from bridge.core.schedule import Schedule

KEYS = [ContainerKey("default", name) for name in "abc"]


def test_schedule_returns_keys_in_order_of_time_and_insertion() -> None:
    schedule: Schedule[ContainerKey] = Schedule()
    for key, due in zip([*KEYS, KEYS[2]], [7, 5, 9, 5], strict=True):
        schedule.add(key, due)
    assert schedule.next_due() == 5
    assert schedule.pop_due(4) == []
    assert schedule.pop_due(6) == [KEYS[1], KEYS[2]]
    assert schedule.pop_due(7) == [KEYS[0]]
    assert schedule.next_due() is None


@given(rng=st.randoms(use_true_random=False), length=st.integers(1, 300))
def test_schedule_agrees_with_scanned_times(rng: Random, length: int) -> None:
    schedule: Schedule[ContainerKey] = Schedule()
    expected: dict[ContainerKey, int] = {}
    for _ in range(length):
        key, time = rng.choice(KEYS), rng.randrange(10)
        match rng.randrange(5):
            case 0:
                schedule.discard(key)
                expected.pop(key, None)
            case 1:
                due = sorted(each for each in expected if expected[each] <= time)
                assert sorted(schedule.pop_due(time)) == due
                for each in due:
                    del expected[each]
            case _:
                schedule.add(key, time)
                expected[key] = min(time, expected.get(key, time))
        assert schedule.next_due() == min(expected.values(), default=None)


def test_removed_times_do_not_accumulate() -> None:
    schedule: Schedule[ContainerKey] = Schedule()
    schedule.add(KEYS[0], 0)
    for number in range(1_000):
        schedule.add(KEYS[1], 1_000 + number)
        schedule.discard(KEYS[1])
    assert len(schedule._heap) < 100
