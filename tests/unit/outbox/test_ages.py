"""How old what waits is."""

from __future__ import annotations

from bridge.outbox.ages import Ages

SECOND = 1_000_000_000


def test_a_record_is_as_old_as_the_milestone_that_it_lies_behind() -> None:
    ages = Ages()
    ages.note(0, 10 * SECOND)
    ages.note(5, 10 * SECOND + 1)  # within the same second
    ages.note(8, 20 * SECOND)
    now = 30 * SECOND
    assert [ages.seconds(position, now) for position in (0, 5, 7, 8, 100)] == [20, 20, 20, 10, 10]


def test_of_what_was_never_noted_nothing_is_known() -> None:
    ages = Ages()
    assert ages.seconds(3, 5 * SECOND) == 0
    ages.note(4, SECOND)
    assert ages.seconds(3, 5 * SECOND) == 0


def test_what_is_gone_is_forgotten_but_for_the_milestone_in_use() -> None:
    ages = Ages()
    for number in range(5):
        ages.note(number * 10, number * 2 * SECOND)
    ages.forget(25)
    assert ages.seconds(25, 10 * SECOND) == 6
    assert ages.seconds(45, 10 * SECOND) == 2


def test_many_milestones_are_thinned_and_an_age_is_never_too_small() -> None:
    ages = Ages()
    for number in range(100_000):
        ages.note(number, number * SECOND)
    now = 100_000 * SECOND
    assert ages.seconds(0, now) == 100_000
    for position in (1, 777, 50_000, 99_999):
        true = 100_000 - position
        assert true <= ages.seconds(position, now) <= true + 256
    assert len(ages._positions) <= 1024
