from __future__ import annotations

from random import Random
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.events import EngineInfo, Record
from sinks.current import Row, State, fold, row_of, runs, source_of, without_labels
from tests.sample_records import ENGINE, EPOCH, frame, lost, record

SOURCE = Row("node-1", ENGINE.id)


def row(id_: str, namespace: str = "shop") -> Row:
    return SOURCE._replace(namespace=namespace, id=id_)


def folded(*records: Record, state: State | None = None) -> tuple[State, dict[Row, Any]]:
    state, changes = fold(state or State(), records)
    assert len({change.row for change in changes}) == len(changes)
    return state, {change.row: change.value and msgspec.json.decode(change.value) for change in changes}


def test_rows_are_named_by_namespace_and_id() -> None:
    assert row_of(record(1, id_="a/b")) == row("a/b")
    assert row_of(record(1, id_="a/b", namespace="default")) == row("a/b", "default")
    assert row_of(frame(1, "snapshot_started")) == SOURCE == source_of(record(1))


def test_a_row_is_the_last_record_with_the_snapshots_id_beside() -> None:
    state, changes = folded(
        frame(1, "snapshot_started"), record(2, "present"), frame(3, "snapshot_completed"), record(4, "paused")
    )
    assert changes[row("web-1")] == {**msgspec.json.decode(record(4, "paused").data), "snapshot_id": f"{EPOCH}-1"}
    assert changes[SOURCE]["snapshot_id"] == f"{EPOCH}-1"
    assert changes[SOURCE]["type"] == "snapshot_completed"
    assert state == State(frozenset({row("web-1")}), f"{EPOCH}-1", None)


def test_changes_stand_in_the_order_of_what_they_say_last() -> None:
    _, changes = fold(State(), [record(1, id_="a"), record(2, id_="b"), record(3, "exited", id_="a")])
    assert [(change.row.id, change.value is None, change.position[1]) for change in changes] == [
        ("b", False, 2),
        ("a", True, 3),
    ]


def test_a_completed_snapshot_removes_what_it_did_not_name_but_for_namespaces_that_failed() -> None:
    known = State(frozenset({row("a"), row("b"), row("c", "failed")}))
    state, changes = folded(
        frame(1, "snapshot_started"),
        record(2, "present", id_="a"),
        record(3, id_="d"),
        record(4, "exited", id_="d"),
        frame(5, "snapshot_completed", failed=["failed"]),
        state=known,
    )
    assert state.rows == {row("a"), row("c", "failed")}
    assert {each for each, value in changes.items() if value is None} == {row("b"), row("d")}


def test_an_unfinished_snapshot_is_void() -> None:
    known = State(frozenset({row("a")}))
    for records in (
        [frame(5, "snapshot_completed")],
        [frame(1, "snapshot_started"), lost(record(3), 2), frame(5, "snapshot_completed")],
        [frame(1, "snapshot_started", 1), frame(5, "snapshot_completed", 2)],
        [frame(1, "snapshot_started")],
    ):
        state, changes = folded(*records, state=known)
        assert state.rows == known.rows
        assert changes == {}


def test_what_is_no_state_changes_nothing() -> None:
    assert folded(record(1, "created"), record(2, "deleted"), record(3, "oom"), record(4, "renamed"))[1] == {}


def test_runs_are_of_one_source_each_and_in_order() -> None:
    other = EngineInfo("other", "containerd.io", "2", "/", 1)
    batch = [record(1), record(2), record(3, engine=other), record(4, host="node-2"), record(5)]
    assert [(each.host, each.engine, len(part)) for each, part in runs(batch)] == [
        ("node-1", ENGINE.id, 2),
        ("node-1", "other", 1),
        ("node-2", ENGINE.id, 1),
        ("node-1", ENGINE.id, 1),
    ]
    assert list(runs([])) == []


def test_a_row_without_labels_says_so() -> None:
    value = msgspec.json.decode(without_labels(record(1, labels={"a": "b"}).data))
    assert (value["container"]["labels"], value["container"]["labels_dropped"]) == (None, True)
    assert msgspec.json.decode(without_labels(frame(1, "snapshot_completed").data))["container"] is None
    pod = {"name": "p", "labels": {"a": "b"}}
    value["container"]["pod"] = pod
    assert msgspec.json.decode(without_labels(msgspec.json.encode(value)))["container"]["pod"]["labels"] is None


# --- any history ---

LIVING = st.sets(st.sampled_from("abcdef"))


class History:
    """Makes records as a bridge does: lives are well formed, a snapshot names all that live."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.living: set[str] = set()
        self.snapshots = 0

    def tell(self, type_: Any, id_: str) -> None:
        self.records.append(record(len(self.records) + 1, type_, id_=id_))
        (self.living.discard if type_ == "exited" else self.living.add)(id_)

    def change_to(self, living: set[str]) -> None:
        for id_ in sorted(self.living ^ living):
            self.tell("exited" if id_ in self.living else "started", id_)

    def snapshot(self, living: set[str]) -> None:
        """After a gap: what vanished unseen is not named."""
        self.snapshots += 1
        self.living = set(living)
        self.records.append(frame(len(self.records) + 1, "snapshot_started", self.snapshots))
        for id_ in sorted(living):
            self.tell("present", id_)
        self.records.append(frame(len(self.records) + 1, "snapshot_completed", self.snapshots))


@given(st.lists(st.tuples(LIVING, LIVING), min_size=1, max_size=4), LIVING, st.randoms(use_true_random=False))
def test_the_table_is_what_lives_however_batches_are_cut_and_repeated(
    living: list[tuple[set[str], set[str]]], left: set[str], random: Random
) -> None:
    history = History()
    for at_the_snapshot, afterwards in living:
        history.snapshot(at_the_snapshot)
        history.change_to(afterwards)
    state = State(frozenset(map(row, left)))
    table: dict[Row, bytes] = {row(id_): b"" for id_ in left}
    start = 0
    while start < len(history.records):
        end = random.randint(start + 1, len(history.records))
        after, changes = fold(state, history.records[start:end])
        stored = len(changes) - random.randint(0, len(changes))
        for change in changes[:stored]:  # the rest was lost on the way
            table.pop(change.row, None)
            if change.value is not None:
                table[change.row] = change.value
        if stored == len(changes):
            state, start = after, end
    assert table.keys() - {SOURCE} == set(map(row, history.living)) == state.rows
    assert all(msgspec.json.decode(value)["snapshot_id"] for value in table.values())
