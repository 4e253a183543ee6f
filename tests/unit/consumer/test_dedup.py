from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.consumer.dedup import Deduplicator
from bridge.consumer.record_decoder import DecodedRecord, Engine, Lost


def record_at(epoch: int, sequence: int, *, type_: str = "started", first: int | None = None) -> DecodedRecord:
    lost = None if first is None else Lost(epoch, first, sequence)
    return DecodedRecord(1, type_, "", Engine("engine"), "node-1", epoch, sequence, lost=lost)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 12)), max_size=40))
def test_deduplicator_accepts_each_position_once_in_any_order(positions: list[tuple[int, int]]) -> None:
    deduplicator, accepted = Deduplicator(), set()
    for position in positions:
        assert deduplicator.accept(record_at(*position)) is (position not in accepted)
        accepted.add(position)


@given(st.randoms(use_true_random=False))
def test_deduplicator_treats_loss_range_as_received(chance: Random) -> None:
    deduplicator, accepted = Deduplicator(), set()
    for _ in range(20):
        first = chance.randint(1, 20)
        last = chance.randint(first, 20)
        assert deduplicator.accept(record_at(1, last, first=first)) is (last not in accepted)
        if last not in accepted:
            accepted |= set(range(first, last + 1))
        other = chance.randint(1, 20)
        assert deduplicator.accept(record_at(1, other)) is (other not in accepted)
        accepted.add(other)


@pytest.mark.parametrize("lost", [Lost(9, 1, 5), Lost(1, 1, 5), Lost(2, 9, 5), Lost(2, 1, 4), Lost(2, 1, 6)])
def test_loss_with_invalid_range_counts_as_its_own_position(lost: Lost) -> None:
    deduplicator = Deduplicator()
    invalid = DecodedRecord(1, "lost", "", Engine("engine"), "node-1", 2, 5, lost=lost)
    assert [deduplicator.accept(invalid) for _ in range(2)] == [True, False]
    assert all(deduplicator.accept(record_at(epoch, 4)) for epoch in (1, 2, 9))


@pytest.mark.parametrize("type_", ["heartbeat", "source_retired"])
def test_deduplicator_accepts_records_without_own_position(type_: str) -> None:
    deduplicator = Deduplicator()
    assert deduplicator.accept(record_at(1, 1))
    assert [deduplicator.accept(record_at(1, 1, type_=type_)) for _ in range(2)] == [True, True]


def test_deduplicator_drops_oldest_gaps_when_limit_is_reached() -> None:
    deduplicator = Deduplicator(max_gaps=2)
    for sequence in (2, 4, 6, 8):
        assert deduplicator.accept(record_at(1, sequence))
    assert not deduplicator.accept(record_at(1, 1))  # older than the dropped gap
    assert [deduplicator.accept(record_at(1, sequence)) for sequence in (3, 5, 7)] == [True, True, True]
    assert not any(deduplicator.accept(record_at(1, sequence)) for sequence in range(1, 9))
