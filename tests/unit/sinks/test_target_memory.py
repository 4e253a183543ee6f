"""Test how a sink notices that a stream or partition has lost what was published."""

from __future__ import annotations

import pytest

from sinks.target_memory import TargetMemory, TargetState


def memory_of_ten_records() -> TargetMemory:
    """Return the memory of records 1 to 10, of which 1 to 6 end with a snapshot."""
    memory = TargetMemory()
    memory.observe(TargetState("first", 1, 0))
    memory.acknowledge(6)
    memory.complete_snapshot()
    memory.acknowledge(10)
    return memory


@pytest.mark.parametrize(
    ("state", "is_loss"),
    [
        (TargetState("first", 1, 10), False),
        (TargetState("first", 1, 50), False),  # a second bridge publishes, too
        (TargetState("first", 6, 50), False),  # the retention has removed only a part of the snapshot
        (TargetState("first", 7, 50), True),
        (TargetState("first", 51, 50), True),  # empty
        (TargetState("first", 1, 9), True),
        (TargetState("second", 1, 0), True),
        (TargetState("second", 1, 50), True),
        (TargetState("", 1, 50), False),  # a broker that does not report ids
        (TargetState("", 1, 9), True),
    ],
)
def test_loss_is_found_by_comparison(state: TargetState, is_loss: bool) -> None:
    memory = memory_of_ten_records()
    memory.observe(state)
    memory.observe(state)
    assert [memory.take_loss(), memory.take_loss()] == [is_loss, False]
    memory.observe(state)
    assert not memory.take_loss()  # nothing was published since


@pytest.mark.parametrize(("position", "is_loss"), [(11, False), (10, True), (1, True)])
def test_loss_is_found_by_acknowledgment(position: int, is_loss: bool) -> None:
    memory = memory_of_ten_records()
    memory.acknowledge(position)
    assert memory.take_loss() == is_loss


def test_nothing_is_lost_before_anything_was_published() -> None:
    memory = TargetMemory()
    for identity in ("first", "second"):
        memory.observe(TargetState(identity, 1, 0))
    memory.acknowledge(1)
    memory.complete_snapshot()
    assert not memory.take_loss()


def test_new_target_is_remembered_after_loss() -> None:
    memory = memory_of_ten_records()
    memory.observe(TargetState("second", 1, 0))
    assert memory.take_loss()
    memory.acknowledge(3)
    memory.complete_snapshot()
    memory.observe(TargetState("second", 1, 3))
    assert not memory.take_loss()
    memory.observe(TargetState("second", 4, 3))
    assert memory.take_loss()
