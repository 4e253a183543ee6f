from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.fleet.documents import Source, decode
from bridge.fleet.fold import Fold
from tests.scale import scaled

EVENTS = (Path(__file__).parents[3] / "docs" / "events.md").read_text()
SOURCE = Source("node-1", "engine")

Made = dict[str, Any]
Living = dict[Source, dict[str, str]]


class Story:
    """What a bridge tells of a containerd, in its order; `failed` namespaces are those that are not listed."""

    def __init__(self, host: str = "node-1") -> None:
        self.told: list[Made] = []
        self.alive: dict[str, str] = {}
        self._host = host
        self._epoch, self._sequence, self._snapshots, self._lives = 1, 0, 0, 0

    def tell(self, type_: str, id_: str) -> None:
        namespace, _, bare = id_.rpartition("/")
        container = {"id": bare, "namespace": namespace or "default", "name": bare}
        container["incarnation"] = self.alive.get(id_, "gone")
        self._add(type_, id=id_, container=container)

    def start(self, id_: str) -> None:
        self._lives += 1
        self.alive[id_] = f"life-{self._lives}"
        self.tell("started", id_)

    def exit(self, id_: str) -> None:
        self.tell("exited", id_)
        del self.alive[id_]

    def snapshot(self, *, failed: Sequence[str] = (), completed: bool = True) -> None:
        self._snapshots += 1
        body = {"id": f"{self._epoch}-{self._snapshots}", "reason": "start", "failed": failed, "a_new_field": 1}
        self._add("snapshot_started", snapshot=body)
        for id_ in self.alive:
            if id_.rpartition("/")[0] not in failed:
                self.tell("present", id_)
        if completed:
            self._add("snapshot_completed", snapshot=body)

    def restart(self) -> None:
        self._epoch, self._sequence = self._epoch + 1, 0

    def lose(self, *numbers: int) -> None:
        """Have records of a row replaced by one that stands for them."""
        first, last = self.told[numbers[0]], self.told[numbers[-1]]
        lost = {"epoch": last["epoch"], "first": first["sequence"], "last": last["sequence"], "reason": "overflow"}
        self.told[numbers[0] : numbers[-1] + 1] = [
            {**last, "type": "lost", "container": None, "id": None, "snapshot": None, "lost": lost}
        ]

    def _add(self, type_: str, **more: Any) -> None:
        self._sequence += 1
        place = {"host": self._host, "engine": {"id": "engine"}, "epoch": self._epoch, "sequence": self._sequence}
        empty: Made = {"id": None, "container": None, "snapshot": None, "lost": None}
        self.told.append({"version": 1, "type": type_, "timestamp": "2026-11-23T15:21:08Z", **empty, **more, **place})


def folded(told: Sequence[Made]) -> Living:
    fold = Fold()
    for each in told:
        fold.take(decode(msgspec.json.encode(each))[0])
    return {
        source: {id_: container.incarnation for id_, container in here.living.items()}
        for source, here in fold.sources.items()
    }


def reference(told: Sequence[Made]) -> Living:
    """The fold that docs/events.md gives to everybody."""
    (code,) = re.findall(r"^```python\n(.*?)^```", EVENTS, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 (it is ours)
    return {
        Source(*source): {id_: container["incarnation"] for id_, container in here.items()}
        for source, here in names["fold"](told).items()
    }


def story(chance: Random, length: int, host: str = "node-1") -> Story:
    """Anything that may happen."""
    made = Story(host)
    made.snapshot()
    for _ in range(length):
        id_ = chance.choice(["a", "b", "shop/c", "shop/d"])
        match chance.choice(["life", "life", "life", "pause", "unknown", "lost", "snapshot", "restart"]):
            case "life" if id_ in made.alive:
                made.exit(id_)
            case "life":
                made.start(id_)
            case "pause" if id_ in made.alive:
                made.tell(chance.choice(["paused", "unpaused", "present"]), id_)
            case "unknown":
                made.tell("sparkled", id_)
            case "lost" if made.told[-1]["container"]:
                made.lose(len(made.told) - 1)
            case "snapshot":
                failed = chance.sample(["", "shop"], chance.randrange(3))
                before = len(made.told)
                made.snapshot(failed=[name or "default" for name in failed], completed=chance.random() < 0.7)
                if chance.random() < 0.3:
                    first = chance.randrange(before, len(made.told))
                    made.lose(*range(first, chance.randint(first, len(made.told) - 1) + 1))
            case "restart":
                made.restart()
                made.alive = {id_: life for id_, life in made.alive.items() if chance.random() < 0.5}
                made.snapshot()
    return made


stories = settings(max_examples=scaled(part=50, full=2000), deadline=None)
chances = st.randoms(use_true_random=False)
lengths = st.integers(0, 60)


@stories
@given(chance=chances, length=lengths)
def test_in_order_it_is_the_reference_fold(chance: Random, length: int) -> None:
    told = story(chance, length).told
    begin = chance.randrange(len(told))
    for part in (told, told[begin:], told[: begin + 1] + told[chance.randrange(begin + 1) :]):
        assert folded(part) == reference(part)


@stories
@given(chance=chances, length=lengths)
def test_neither_order_nor_repetitions_matter(chance: Random, length: int) -> None:
    told = story(chance, length).told
    anyhow = told + chance.sample(told, len(told) // 2)
    chance.shuffle(anyhow)
    assert folded(anyhow) == folded(told)


@stories
@given(chance=chances, length=lengths)
def test_whoever_joins_in_the_middle_is_right_after_the_next_snapshot(chance: Random, length: int) -> None:
    made = story(chance, length)
    begin = chance.randint(0, len(made.told))
    made.snapshot()
    assert folded(made.told[begin:]) == {SOURCE: made.alive}


@pytest.mark.parametrize("fold", [folded, reference])
def test_a_snapshot_of_which_a_row_was_lost_removes_nothing(fold: Callable[[Sequence[Made]], Living]) -> None:
    made = Story()
    made.start("a")
    made.start("b")
    made.snapshot()
    made.lose(len(made.told) - 2)
    assert fold(made.told) == {SOURCE: made.alive}


def test_sources_do_not_mix() -> None:
    one, two = Story("node-1"), Story("node-2")
    for each in (one, two):
        each.snapshot()
    one.start("a")
    two.start("b")
    two.snapshot()
    told = [each for pair in zip(one.told, two.told, strict=False) for each in pair] + two.told
    assert {source.host: set(here) for source, here in folded(told).items()} == {"node-1": {"a"}, "node-2": {"b"}}


@pytest.mark.parametrize("failed", [["shop"], ["default"], ["default", "shop"], []])
def test_what_was_not_listed_stays(failed: list[str]) -> None:
    made = Story()
    for id_ in ("a", "shop/c"):
        made.start(id_)
    made.alive.clear()  # and nobody has told of it
    made.snapshot(failed=failed)
    there = folded(made.told)[SOURCE]
    assert set(there) == {id_ for id_, namespace in (("a", "default"), ("shop/c", "shop")) if namespace in failed}


def test_new_records_are_told_from_repetitions() -> None:
    made = Story()
    made.snapshot()
    made.start("a")
    fold = Fold()
    documents = [decode(msgspec.json.encode(each))[0] for each in made.told]
    assert [fold.take(each) for each in documents + documents] == [True, True, True, False, False, False]
