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

from bridge.consumer.projection import Projection
from bridge.consumer.schema import Source, decode
from tests.scale import scaled

EVENTS = (Path(__file__).parents[3] / "docs" / "events.md").read_text()
SOURCE = Source("node-1", "engine")

RecordFields = dict[str, Any]
RunningBySource = dict[Source, dict[str, str]]


class RecordHistory:
    """What a bridge tells of a containerd, in its order; `failed` namespaces are those that are not listed."""

    def __init__(self, host: str = "node-1") -> None:
        self.records: list[RecordFields] = []
        self.running: dict[str, str] = {}
        self._host = host
        self._epoch, self._sequence, self._snapshots, self._runs = 1, 0, 0, 0

    def publish(self, type_: str, id_: str) -> None:
        namespace, _, bare = id_.rpartition("/")
        container = {"id": bare, "namespace": namespace or "default", "name": bare}
        container["incarnation"] = self.running.get(id_, "gone")
        self._add(type_, id=id_, container=container)

    def start(self, id_: str) -> None:
        self._runs += 1
        self.running[id_] = f"life-{self._runs}"
        self.publish("started", id_)

    def exit(self, id_: str) -> None:
        self.publish("exited", id_)
        del self.running[id_]

    def snapshot(self, *, failed: Sequence[str] = (), completed: bool = True) -> None:
        self._snapshots += 1
        body = {"id": f"{self._epoch}-{self._snapshots}", "reason": "start", "failed": failed, "a_new_field": 1}
        self._add("snapshot_started", snapshot=body)
        for id_ in self.running:
            if id_.rpartition("/")[0] not in failed:
                self.publish("present", id_)
        if completed:
            self._add("snapshot_completed", snapshot=body)

    def restart(self) -> None:
        self._epoch, self._sequence = self._epoch + 1, 0

    def drop(self, *numbers: int) -> None:
        """Have records of a row replaced by one that stands for them."""
        first, last = self.records[numbers[0]], self.records[numbers[-1]]
        lost = {"epoch": last["epoch"], "first": first["sequence"], "last": last["sequence"], "reason": "overflow"}
        self.records[numbers[0] : numbers[-1] + 1] = [
            {**last, "type": "lost", "container": None, "id": None, "snapshot": None, "lost": lost}
        ]

    def _add(self, type_: str, **more: Any) -> None:
        self._sequence += 1
        place = {"host": self._host, "engine": {"id": "engine"}, "epoch": self._epoch, "sequence": self._sequence}
        empty: RecordFields = {"id": None, "container": None, "snapshot": None, "lost": None}
        self.records.append(
            {"version": 1, "type": type_, "timestamp": "2026-11-23T15:21:08Z", **empty, **more, **place}
        )


def project(records: Sequence[RecordFields]) -> RunningBySource:
    fold = Projection()
    for each in records:
        fold.apply(decode(msgspec.json.encode(each))[0])
    return {
        source: {id_: container.incarnation for id_, container in here.running.items()}
        for source, here in fold.sources.items()
    }


def reference_projection(records: Sequence[RecordFields]) -> RunningBySource:
    """The fold that docs/events.md gives to everybody."""
    (code,) = re.findall(r"^```python\n(.*?)^```", EVENTS, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 (it is ours)
    return {
        Source(*source): {id_: container["incarnation"] for id_, container in here.items()}
        for source, here in names["fold"](records).items()
    }


def random_history(chance: Random, length: int, host: str = "node-1") -> RecordHistory:
    """Anything that may happen."""
    made = RecordHistory(host)
    made.snapshot()
    for _ in range(length):
        id_ = chance.choice(["a", "b", "shop/c", "shop/d"])
        match chance.choice(["life", "life", "life", "pause", "unknown", "lost", "snapshot", "restart"]):
            case "life" if id_ in made.running:
                made.exit(id_)
            case "life":
                made.start(id_)
            case "pause" if id_ in made.running:
                made.publish(chance.choice(["paused", "unpaused", "present"]), id_)
            case "unknown":
                made.publish("sparkled", id_)
            case "lost" if made.records[-1]["container"]:
                made.drop(len(made.records) - 1)
            case "snapshot":
                failed = chance.sample(["", "shop"], chance.randrange(3))
                before = len(made.records)
                made.snapshot(failed=[name or "default" for name in failed], completed=chance.random() < 0.7)
                if chance.random() < 0.3:
                    first = chance.randrange(before, len(made.records))
                    made.drop(*range(first, chance.randint(first, len(made.records) - 1) + 1))
            case "restart":
                made.restart()
                made.running = {id_: life for id_, life in made.running.items() if chance.random() < 0.5}
                made.snapshot()
    return made


property_settings = settings(max_examples=scaled(reduced=50, full=2000), deadline=None)
chances = st.randoms(use_true_random=False)
lengths = st.integers(0, 60)


@property_settings
@given(chance=chances, length=lengths)
def test_projection_equals_reference_for_ordered_records(chance: Random, length: int) -> None:
    told = random_history(chance, length).records
    begin = chance.randrange(len(told))
    for part in (told, told[begin:], told[: begin + 1] + told[chance.randrange(begin + 1) :]):
        assert project(part) == reference_projection(part)


@property_settings
@given(chance=chances, length=lengths)
def test_projection_is_independent_of_order_and_duplicates(chance: Random, length: int) -> None:
    told = random_history(chance, length).records
    anyhow = told + chance.sample(told, len(told) // 2)
    chance.shuffle(anyhow)
    assert project(anyhow) == project(told)


@property_settings
@given(chance=chances, length=lengths)
def test_projection_converges_for_late_joiner_after_snapshot(chance: Random, length: int) -> None:
    made = random_history(chance, length)
    begin = chance.randint(0, len(made.records))
    made.snapshot()
    assert project(made.records[begin:]) == {SOURCE: made.running}


@pytest.mark.parametrize("fold", [project, reference_projection])
def test_projection_removes_nothing_when_snapshot_record_is_lost(
    fold: Callable[[Sequence[RecordFields]], RunningBySource],
) -> None:
    made = RecordHistory()
    made.start("a")
    made.start("b")
    made.snapshot()
    made.drop(len(made.records) - 2)
    assert fold(made.records) == {SOURCE: made.running}


def test_projection_keeps_sources_separate() -> None:
    one, two = RecordHistory("node-1"), RecordHistory("node-2")
    for each in (one, two):
        each.snapshot()
    one.start("a")
    two.start("b")
    two.snapshot()
    told = [each for pair in zip(one.records, two.records, strict=False) for each in pair] + two.records
    assert {source.host: set(here) for source, here in project(told).items()} == {"node-1": {"a"}, "node-2": {"b"}}


@pytest.mark.parametrize("failed", [["shop"], ["default"], ["default", "shop"], []])
def test_projection_keeps_containers_of_failed_namespaces(failed: list[str]) -> None:
    made = RecordHistory()
    for id_ in ("a", "shop/c"):
        made.start(id_)
    made.running.clear()  # and nobody has told of it
    made.snapshot(failed=failed)
    there = project(made.records)[SOURCE]
    assert set(there) == {id_ for id_, namespace in (("a", "default"), ("shop/c", "shop")) if namespace in failed}


def test_projection_reports_duplicates_as_not_new() -> None:
    made = RecordHistory()
    made.snapshot()
    made.start("a")
    fold = Projection()
    documents = [decode(msgspec.json.encode(each))[0] for each in made.records]
    assert [fold.apply(each) for each in documents + documents] == [True, True, True, False, False, False]
