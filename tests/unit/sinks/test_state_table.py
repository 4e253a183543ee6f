from __future__ import annotations

from random import Random
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.records import EngineInfo, Record
from sinks.state_table import StateKey, TableState, apply_records, drop_labels, group_by_source, record_key, source_key
from tests.sample_records import ENGINE, EPOCH, control_record, loss_record, record, retirement

SOURCE = StateKey("node-1", ENGINE.id)


def state_key(id_: str, namespace: str = "shop") -> StateKey:
    return SOURCE._replace(namespace=namespace, id=id_)


def apply_all(*records: Record, state: TableState | None = None) -> tuple[TableState, dict[StateKey, Any]]:
    state, changes = apply_records(state or TableState(), records)
    assert len({change.key for change in changes}) == len(changes)
    return state, {change.key: change.value and msgspec.json.decode(change.value) for change in changes}


def test_state_key_contains_source_namespace_and_id() -> None:
    assert record_key(record(1, id_="a/b")) == state_key("a/b")
    assert record_key(record(1, id_="a/b", namespace="default")) == state_key("a/b", "default")
    assert record_key(control_record(1, "snapshot_started")) == SOURCE == source_key(record(1))


def test_state_entry_is_last_record_with_snapshot_id() -> None:
    state, changes = apply_all(
        control_record(1, "snapshot_started"),
        record(2, "present"),
        control_record(3, "snapshot_completed"),
        record(4, "paused"),
    )
    assert changes[state_key("web-1")] == {**msgspec.json.decode(record(4, "paused").data), "snapshot_id": f"{EPOCH}-1"}
    assert changes[SOURCE]["snapshot_id"] == f"{EPOCH}-1"
    assert changes[SOURCE]["type"] == "snapshot_completed"
    assert state == TableState(frozenset({state_key("web-1")}), f"{EPOCH}-1", None)


def test_state_changes_are_ordered_by_last_record() -> None:
    _, changes = apply_records(TableState(), [record(1, id_="a"), record(2, id_="b"), record(3, "exited", id_="a")])
    assert [(change.key.id, change.value is None, change.position[1]) for change in changes] == [
        ("b", False, 2),
        ("a", True, 3),
    ]


def test_completed_snapshot_removes_entries_not_listed() -> None:
    known = TableState(frozenset({state_key("a"), state_key("b"), state_key("c", "failed")}))
    state, changes = apply_all(
        control_record(1, "snapshot_started"),
        record(2, "present", id_="a"),
        record(3, id_="d"),
        record(4, "exited", id_="d"),
        control_record(5, "snapshot_completed", failed=["failed"]),
        state=known,
    )
    assert state.keys == {state_key("a"), state_key("c", "failed")}
    assert {key for key, value in changes.items() if value is None} == {state_key("b"), state_key("d")}


def test_incomplete_snapshot_changes_no_state_entries() -> None:
    known = TableState(frozenset({state_key("a")}))
    for records in (
        [control_record(5, "snapshot_completed")],
        [control_record(1, "snapshot_started"), loss_record(record(3), 2), control_record(5, "snapshot_completed")],
        [control_record(1, "snapshot_started", 1), control_record(5, "snapshot_completed", 2)],
        [control_record(1, "snapshot_started")],
    ):
        state, changes = apply_all(*records, state=known)
        assert state.keys == known.keys
        assert changes == {}


def test_retirement_removes_all_entries_of_source() -> None:
    known = TableState(frozenset({state_key("a"), state_key("b", "default")}), f"{EPOCH}-1")
    state, changes = apply_all(control_record(3, "snapshot_started", 2), retirement(record(3)), state=known)
    assert changes == {state_key("a"): None, state_key("b", "default"): None, SOURCE: None}
    assert state == TableState()
    state, changes = apply_all(*[record(1, epoch=EPOCH + 1)], state=state)
    assert state.keys == set(changes) == {state_key("web-1")}, "the node came back"


def test_additional_events_change_no_state_entries() -> None:
    assert apply_all(record(1, "created"), record(2, "deleted"), record(3, "oom"), record(4, "renamed"))[1] == {}


def test_batch_is_grouped_by_consecutive_source() -> None:
    other = EngineInfo("other", "containerd.io", "2", "/", 1)
    batch = [record(1), record(2), record(3, engine=other), record(4, host="node-2"), record(5)]
    assert [(source.host, source.engine, len(part)) for source, part in group_by_source(batch)] == [
        ("node-1", ENGINE.id, 2),
        ("node-1", "other", 1),
        ("node-2", ENGINE.id, 1),
        ("node-1", ENGINE.id, 1),
    ]
    assert list(group_by_source([])) == []


def test_state_entry_without_labels_sets_labels_dropped() -> None:
    value = msgspec.json.decode(drop_labels(record(1, labels={"a": "b"}).data))
    assert (value["container"]["labels"], value["container"]["labels_dropped"]) == (None, True)
    assert msgspec.json.decode(drop_labels(control_record(1, "snapshot_completed").data))["container"] is None
    pod = {"name": "p", "labels": {"a": "b"}}
    value["container"]["pod"] = pod
    assert msgspec.json.decode(drop_labels(msgspec.json.encode(value)))["container"]["pod"]["labels"] is None


# --- any history ---

RUNNING_IDS = st.sets(st.sampled_from("abcdef"))


class RecordHistory:
    """Create records as the bridge does: starts and exits alternate, and a snapshot lists all running containers."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.running: set[str] = set()
        self.snapshots = 0

    def add(self, type_: Any, id_: str) -> None:
        self.records.append(record(len(self.records) + 1, type_, id_=id_))
        (self.running.discard if type_ == "exited" else self.running.add)(id_)

    def sync_to(self, running: set[str]) -> None:
        for id_ in sorted(self.running ^ running):
            self.add("exited" if id_ in self.running else "started", id_)

    def snapshot(self, running: set[str]) -> None:
        """Add a snapshot after a gap; containers that are no longer running have no exit record."""
        self.snapshots += 1
        self.running = set(running)
        self.records.append(control_record(len(self.records) + 1, "snapshot_started", self.snapshots))
        for id_ in sorted(running):
            self.add("present", id_)
        self.records.append(control_record(len(self.records) + 1, "snapshot_completed", self.snapshots))


@given(
    st.lists(st.tuples(RUNNING_IDS, RUNNING_IDS), min_size=1, max_size=4),
    RUNNING_IDS,
    st.randoms(use_true_random=False),
)
def test_state_table_equals_running_containers_for_any_batches(
    phases: list[tuple[set[str], set[str]]], leftover: set[str], random: Random
) -> None:
    history = RecordHistory()
    for snapshot_ids, later_ids in phases:
        history.snapshot(snapshot_ids)
        history.sync_to(later_ids)
    state = TableState(frozenset(map(state_key, leftover)))
    table: dict[StateKey, bytes] = {state_key(id_): b"" for id_ in leftover}
    start = 0
    while start < len(history.records):
        end = random.randint(start + 1, len(history.records))
        after, changes = apply_records(state, history.records[start:end])
        stored = len(changes) - random.randint(0, len(changes))
        for change in changes[:stored]:  # the remaining changes are lost
            table.pop(change.key, None)
            if change.value is not None:
                table[change.key] = change.value
        if stored == len(changes):
            state, start = after, end
    assert table.keys() - {SOURCE} == set(map(state_key, history.running)) == state.keys
    assert all(msgspec.json.decode(value)["snapshot_id"] for value in table.values())
