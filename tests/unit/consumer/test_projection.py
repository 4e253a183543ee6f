from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.consumer.projection import Projection
from bridge.consumer.record_decoder import Source, decode
from tests.documentation import documented_fold
from tests.scale import scaled

FOLD = documented_fold()
SOURCE = Source("node-1", "engine")

RecordFields = dict[str, Any]
RunningBySource = dict[Source, dict[str, str]]


class RecordHistory:
    """Create the records of one bridge in order; namespaces in `failed` could not be listed."""

    def __init__(self, host: str = "node-1") -> None:
        self.records: list[RecordFields] = []
        self.running: dict[str, str] = {}
        self._host = host
        self._epoch, self._sequence, self._snapshots, self._runs = 1, 0, 0, 0

    def publish(self, type_: str, id_: str) -> None:
        namespace, _, container_id = id_.rpartition("/")
        container = {"id": container_id, "namespace": namespace or "default", "name": container_id}
        container["incarnation"] = self.running.get(id_, "gone")
        self._add(type_, id=id_, container=container)

    def start(self, id_: str) -> None:
        self._runs += 1
        self.running[id_] = f"incarnation-{self._runs}"
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

    def retire(self, *, behind: int = 0) -> None:
        """Retire the source after its last record, or after one that is ``behind`` it."""
        last = self.records[-1 - behind]
        empty = {"type": "source_retired", "id": None, "container": None, "snapshot": None, "lost": None}
        self.records.append({**last, **empty, "retired": {"reason": "gone", "by": "test"}})
        if not behind:
            self.running.clear()

    def drop(self, *numbers: int) -> None:
        """Replace consecutive records with one loss record."""
        first, last = self.records[numbers[0]], self.records[numbers[-1]]
        lost = {"epoch": last["epoch"], "first": first["sequence"], "last": last["sequence"], "reason": "overflow"}
        self.records[numbers[0] : numbers[-1] + 1] = [
            {**last, "type": "lost", "container": None, "id": None, "snapshot": None, "lost": lost}
        ]

    def _add(self, type_: str, **fields: Any) -> None:
        self._sequence += 1
        position = {"host": self._host, "engine": {"id": "engine"}, "epoch": self._epoch, "sequence": self._sequence}
        empty: RecordFields = {"id": None, "container": None, "snapshot": None, "lost": None}
        self.records.append(
            {"version": 1, "type": type_, "timestamp": "2026-11-23T15:21:08Z", **empty, **fields, **position}
        )


def project(records: Sequence[RecordFields]) -> RunningBySource:
    projection = Projection()
    for record in records:
        projection.apply(decode(msgspec.json.encode(record))[0])
    return {
        source: {id_: container.incarnation for id_, container in state.running.items()}
        for source, state in projection.sources.items()
        if state.retired is None
    }


def reference_projection(records: Sequence[RecordFields]) -> RunningBySource:
    """Apply the projection function of docs/events.md."""
    return {
        Source(*source): {id_: container["incarnation"] for id_, container in running.items()}
        for source, running in FOLD(records).items()
    }


def random_history(chance: Random, length: int, host: str = "node-1", *, retired: bool = False) -> RecordHistory:
    """Return a random history of valid records, in which the source is ``retired`` at times."""
    history = RecordHistory(host)
    history.snapshot()
    for _ in range(length):
        id_ = chance.choice(["a", "b", "shop/c", "shop/d"])
        match chance.choice(["run", "run", "run", "pause", "unknown", "lost", "snapshot", "restart", "retire"]):
            case "run" if id_ in history.running:
                history.exit(id_)
            case "run":
                history.start(id_)
            case "pause" if id_ in history.running:
                history.publish(chance.choice(["paused", "unpaused", "present"]), id_)
            case "unknown":
                history.publish("sparkled", id_)
            case "lost" if history.records[-1]["container"]:
                history.drop(len(history.records) - 1)
            case "snapshot":
                failed = chance.sample(["", "shop"], chance.randrange(3))
                before = len(history.records)
                history.snapshot(failed=[name or "default" for name in failed], completed=chance.random() < 0.7)
                if chance.random() < 0.3:
                    first = chance.randrange(before, len(history.records))
                    history.drop(*range(first, chance.randint(first, len(history.records) - 1) + 1))
            case "retire" if retired:
                history.retire(behind=chance.choice([0, 0, 1]) if len(history.records) > 1 else 0)
            case "restart" | "retire":
                history.restart()
                history.running = {
                    id_: incarnation for id_, incarnation in history.running.items() if chance.random() < 0.5
                }
                history.snapshot()
    return history


property_settings = settings(max_examples=scaled(reduced=50, full=2000), deadline=None)
chances = st.randoms(use_true_random=False)
lengths = st.integers(0, 60)


@property_settings
@given(chance=chances, length=lengths)
def test_projection_equals_reference_for_ordered_records(chance: Random, length: int) -> None:
    records = random_history(chance, length, retired=True).records
    begin = chance.randrange(len(records))
    for part in (records, records[begin:], records[: begin + 1] + records[chance.randrange(begin + 1) :]):
        assert project(part) == reference_projection(part)


@property_settings
@given(chance=chances, length=lengths)
def test_projection_is_independent_of_order_and_duplicates(chance: Random, length: int) -> None:
    records = random_history(chance, length).records
    shuffled = records + chance.sample(records, len(records) // 2)
    chance.shuffle(shuffled)
    assert project(shuffled) == project(records)


@property_settings
@given(chance=chances, length=lengths)
def test_projection_converges_for_late_joiner_after_snapshot(chance: Random, length: int) -> None:
    history = random_history(chance, length, retired=True)
    begin = chance.randint(0, len(history.records))
    history.snapshot()
    assert project(history.records[begin:]) == {SOURCE: history.running}


@pytest.mark.parametrize("fold", [project, reference_projection])
def test_projection_removes_nothing_when_snapshot_record_is_lost(
    fold: Callable[[Sequence[RecordFields]], RunningBySource],
) -> None:
    history = RecordHistory()
    history.start("a")
    history.start("b")
    history.snapshot()
    history.drop(len(history.records) - 2)
    assert fold(history.records) == {SOURCE: history.running}


def test_projection_keeps_sources_separate() -> None:
    first, second = RecordHistory("node-1"), RecordHistory("node-2")
    for history in (first, second):
        history.snapshot()
    first.start("a")
    second.start("b")
    second.snapshot()
    records = [record for pair in zip(first.records, second.records, strict=False) for record in pair] + second.records
    assert {source.host: set(running) for source, running in project(records).items()} == {
        "node-1": {"a"},
        "node-2": {"b"},
    }


@pytest.mark.parametrize("failed", [["shop"], ["default"], ["default", "shop"], []])
def test_projection_keeps_containers_of_failed_namespaces(failed: list[str]) -> None:
    history = RecordHistory()
    for id_ in ("a", "shop/c"):
        history.start(id_)
    history.running.clear()  # without exit records
    history.snapshot(failed=failed)
    running = project(history.records)[SOURCE]
    assert set(running) == {id_ for id_, namespace in (("a", "default"), ("shop/c", "shop")) if namespace in failed}


@pytest.mark.parametrize("fold", [project, reference_projection])
def test_retired_source_returns_with_next_record(
    fold: Callable[[Sequence[RecordFields]], RunningBySource],
) -> None:
    history = RecordHistory()
    history.snapshot()
    history.start("a")
    history.retire()
    assert fold(history.records) == {}
    assert fold(history.records + history.records[:2]) == {}, "repeated records change nothing"
    history.start("b")  # the same epoch: the next snapshot completes the state
    assert fold(history.records) == {SOURCE: history.running}
    history.retire(behind=1)
    assert fold(history.records) == {SOURCE: history.running}, "the source is alive: a later record was known"
    history.retire()
    history.restart()
    history.running = {"a": "incarnation-1", "c": "incarnation-9"}
    history.snapshot()
    assert fold(history.records) == {SOURCE: history.running}


def test_projection_reports_duplicates_as_not_new() -> None:
    history = RecordHistory()
    history.snapshot()
    history.start("a")
    projection = Projection()
    documents = [decode(msgspec.json.encode(record))[0] for record in history.records]
    changes = [projection.apply(document) for document in documents + documents]
    assert [change and change.record for change in changes] == [*documents, None, None, None]
