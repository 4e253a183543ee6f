from __future__ import annotations

from typing import Any

from bridge.core.model import Instant
from bridge.telemetry.sparingly import Sparingly


class FakeClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> Instant:
        return Instant(0, int(self.seconds * 1_000_000_000))

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    def random(self) -> float:
        raise NotImplementedError


def test_the_same_is_said_once_in_a_while_with_a_count_of_what_was_left_unsaid() -> None:
    clock = FakeClock()
    sparingly = Sparingly(clock, seconds=10)
    turns = []
    for seconds in (0, 1, 9.9, 10, 11, 30, 40):
        clock.seconds = seconds
        turns.append(sparingly.turn("topic"))
    assert turns == [0, None, None, 2, None, 1, 0]


def test_different_things_have_turns_of_their_own() -> None:
    sparingly = Sparingly(FakeClock(), seconds=10)
    assert [sparingly.turn(key) for key in ("a", "b", "a", "b")] == [0, 0, None, None]


def test_say_tells_the_count_only_where_there_is_one() -> None:
    clock = FakeClock()
    sparingly = Sparingly(clock, seconds=10)
    said: list[tuple[str, dict[str, Any]]] = []

    def log(event: str, **fields: Any) -> None:
        said.append((event, fields))

    for seconds in (0, 1, 10):
        clock.seconds = seconds
        assert sparingly.say(log, "key", "Unknown topic.", topic="/x") is (seconds != 1)
    assert said == [("Unknown topic.", {"topic": "/x"}), ("Unknown topic.", {"topic": "/x", "suppressed": 1})]


def test_invented_keys_neither_fill_the_memory_nor_raise_the_rate() -> None:
    clock = FakeClock()
    sparingly = Sparingly(clock, seconds=10, keys=5)
    said = [sparingly.turn(f"key-{number}") for number in range(1000)]
    assert len([unsaid for unsaid in said if unsaid is not None]) == 6  # five of their own, one for all others
    clock.seconds = 10
    assert sparingly.turn("another") == 0  # the five are forgotten, there is room again
    assert len(sparingly._said) <= 6


def test_what_stands_for_many_tells_how_many_were_left_unsaid() -> None:
    clock = FakeClock()
    sparingly = Sparingly(clock, seconds=10, keys=1)
    assert [sparingly.turn(key) for key in "abcd"] == [0, 0, None, None]
    sparingly.turn("a")  # so that it is not forgotten
    clock.seconds = 10
    assert sparingly.turn("e") == 2
