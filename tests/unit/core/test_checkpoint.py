"""Checkpoint: a tracker restored from the checkpoint emits the same transitions as the original would have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bridge.core import checkpoint
from bridge.core.checkpoint import Checkpoint, CheckpointHeader, SourceId, StoredPosition
from bridge.core.container_state import (
    ContainerState,
    ExitedTask,
    ExitInfo,
    Incarnation,
    PendingExit,
    Running,
    TaskState,
    Transition,
)
from bridge.core.container_store import MAX_TOMBSTONES
from bridge.core.containerd_model import (
    ContainerDeleted,
    ContainerKey,
    Engine,
    ExitStatus,
    Instant,
    Metadata,
    PodReference,
    RecordedExit,
    Task,
    TaskCreated,
    TaskExited,
    TaskOOM,
    TaskStarted,
    TaskStatus,
)
from bridge.core.label_rules import LabelRules
from bridge.core.reconcile import Listing, reconcile
from bridge.core.task_machine import PENDING_EXIT_NS
from bridge.core.tracker import Tracker
from tests.scale import scaled
from tests.unit.core.containerd_model import ContainerdModel, Faults
from tests.unit.core.factories import ImmediateTracker, expire_pending_exits
from tests.unit.core.harness import BOOT_ID, Harness

STORED_CHECKPOINT = Path(__file__).with_name("stored_checkpoint.json")
WEB = ContainerKey("shop", "web")
ENGINE = Engine("c79d280c", "2.4.2", "/run/c.sock", 812)
NOW = Instant(1_795_447_267_000_000_000, 1_000_000_000_000)
LATER = Instant(NOW.wall + PENDING_EXIT_NS + 1, NOW.monotonic + PENDING_EXIT_NS + 1)


def make_metadata(key: ContainerKey = WEB, **changed: Any) -> Metadata:
    values = {"name": key.id, "project": "", "service": "", "image": "busybox", "runtime": "runc", **changed}
    return Metadata(key, created_at=1, updated_at=1, **{"labels": {"tier": "front"}, **values})


def save_changes(tracker: Tracker, values: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """Save a tracker's changes in ``values``, the checkpoint so far, and return it."""
    values = {} if values is None else values
    for key, value in checkpoint.encode_changes(tracker.changes()):
        if value is None:
            values.pop(key, None)
        else:
            values[key] = value
    return values


def restore_tracker(values: dict[str, bytes], now: Instant = NOW, boot: str = BOOT_ID) -> Tracker:
    tracker = Tracker(boot)
    tracker.restore(checkpoint.decode(values).entries, set(), now)
    return tracker


def transition_types(transitions: list[Transition]) -> list[str]:
    return [each.type for each in transitions]


# --- random histories with restarts of the process ---


class RestartingHarness(Harness):
    """A harness whose process is killed at random; published records and the tracker's state are saved together."""

    def __init__(self, containerd: ContainerdModel) -> None:
        super().__init__(containerd)
        self.values: dict[str, bytes] = {}

    def restart(self) -> None:
        """Kill the process and start another one, which knows only the checkpoint."""
        self.containerd.unsubscribe()
        self._synced = False
        self._pending_transitions, self._preexisting_count = [], 0
        self.tracker = Tracker(BOOT_ID)
        self.tracker.restore(checkpoint.decode(self.values).entries, set(), self.containerd.now())

    def _emit(self, transitions: list[Transition]) -> None:
        super()._emit(transitions)
        # Changes without transitions are saved later, with the next transition, and may be lost.
        if self._synced and (transitions or self.containerd.flip(0.3)):
            save_changes(self.tracker, self.values)

    def _publish_snapshot(self, *, filters_changed: bool = False) -> None:
        super()._publish_snapshot(filters_changed=filters_changed)
        save_changes(self.tracker, self.values)


FAULTS = {
    "none": Faults(),
    "late": Faults(duplicates=True, late=True, lag=True),
    "gaps": Faults(gaps=True, lag=True),
    "hung shims": Faults(gaps=True, query_failures=True, lag=True),
    "all": Faults(duplicates=True, late=True, lost=True, gaps=True, query_failures=True, dead_shims=True, lag=True),
}


@pytest.mark.parametrize("clock", ["steady", "stepping"])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
@settings(
    max_examples=scaled(reduced=40, full=1000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(rng=st.randoms(use_true_random=False), length=st.integers(1, 80))
def test_incarnations_are_consistent_across_restarts(faults: Faults, clock: Any, rng: Random, length: int) -> None:
    harness = RestartingHarness(ContainerdModel(rng))
    harness.ambiguous_times = clock != "steady" and (faults.gaps or faults.late)
    harness.connect()
    containerd = harness.containerd
    containerd.faults = Faults(**{**vars(faults), "clock": clock})
    for _ in range(length):
        if containerd.flip(0.1):
            harness.restart()
        elif not containerd.subscribed:
            harness.connect()
        elif containerd.flip(0.05):
            harness.audit()
        else:
            containerd.step()
            harness.follow()
    harness.quiesce()
    harness.audit()
    harness.quiesce()
    assert harness.consumer.running == containerd.running()


# --- restored state ---


def populate(tracker: Tracker) -> None:
    """Give a container a value for every kind of state that the tracker keeps per id."""
    tracker.update_metadata(make_metadata(pod=PodReference("p", "n", "u", "c"), pod_labels={"a": "b"}))
    for pid in (7, 8):
        tracker.process_event(TaskStarted(WEB, NOW.wall, pid), NOW)
        tracker.process_event(TaskExited(WEB, NOW.wall, "", pid, 0, NOW.wall), NOW)
    tracker.process_event(TaskCreated(WEB, NOW.wall, 9), NOW)
    tracker.process_event(TaskStarted(WEB, NOW.wall, 9), NOW)
    tracker.apply_wait_result(WEB, 9, ExitStatus(3, NOW.wall), NOW)


def test_checkpoint_restores_container_state() -> None:
    tracker = ImmediateTracker(BOOT_ID)
    populate(tracker)
    entry, restored = tracker.find(WEB), restore_tracker(save_changes(tracker)).find(WEB)
    assert entry is not None
    assert entry.incarnation is not None
    assert restored is not None
    entry.generation = 0
    run = Running(9, since=NOW.wall, start_seen=True, confirmed=False)  # not confirmed, and not watched from the start
    entry.state = replace(entry.state, task=run, last_change=0, created=())
    entry.published_metadata = entry.metadata  # the checkpoint does not distinguish them
    assert restored == entry
    assert [each.pid for each in restored.state.exited] == [7, 8]


def test_checkpoint_restores_runs_after_lost_exit_and_pid_cycle() -> None:
    tracker = ImmediateTracker(BOOT_ID)
    tracker.mark_synced(set())
    tracker.update_metadata(make_metadata())
    for seconds, events in enumerate([(TaskStarted, 9), (TaskStarted, 7)]):
        kind, pid = events
        at = NOW.wall + seconds
        tracker.process_event(kind(WEB, at, pid), Instant(at, NOW.monotonic + seconds))
        if pid == 9:
            tracker.process_event(TaskExited(WEB, at, "", pid, 0, at), Instant(at, NOW.monotonic + seconds))
    at = NOW.wall + 5
    later = Instant(at, NOW.monotonic + 5)
    for event in (
        TaskCreated(WEB, at, 8),
        TaskStarted(WEB, at, 8),
        TaskOOM(WEB, at),
        TaskExited(WEB, at, "", 8, 26, at),
    ):
        tracker.process_event(event, later)
    restored = restore_tracker(save_changes(tracker))
    transitions = restored.apply_task_state(WEB, None, LATER)
    assert [(each.type, each.incarnation) for each in transitions] == [
        ("exited", "5f3c9a1e-7-2"),
        ("started", "5f3c9a1e-8-2"),
        ("exited", "5f3c9a1e-8-2"),
    ]
    assert transitions[2].exit_info == ExitInfo(26, at, oom=True)


def test_checkpoint_restores_pending_exit() -> None:
    tracker = Tracker(BOOT_ID)
    tracker.update_metadata(make_metadata())
    tracker.process_event(TaskExited(WEB, NOW.wall, "", 7, 3, NOW.wall), NOW)
    restored = restore_tracker(save_changes(tracker))
    assert transition_types(expire_pending_exits(restored, NOW)) == []
    transitions = expire_pending_exits(restored, LATER)
    assert transition_types(transitions) == ["started", "exited"]
    assert transitions[1].exit_info is not None
    assert transitions[1].exit_info.status == 3


def test_checkpoint_restores_held_exit_with_its_status() -> None:
    tracker = Tracker(BOOT_ID)
    tracker.update_metadata(make_metadata())
    tracker.process_event(TaskStarted(WEB, NOW.wall, 7), NOW)
    assert tracker.process_event(TaskExited(WEB, NOW.wall, "", 7, 3, NOW.wall), NOW) == []
    tracker.process_event(ContainerDeleted(WEB, NOW.wall), NOW)
    values = save_changes(tracker)
    restored = restore_tracker(values)
    restored.apply_label_rules(LabelRules([], [], []))
    (exited,) = restored.release_all_exits()
    assert (exited.type, exited.origin, exited.pid, exited.exit_info) == ("exited", "live", 7, ExitInfo(3, NOW.wall))
    assert exited.metadata is not None
    assert exited.metadata.labels == {}
    assert transition_types(restore_tracker(save_changes(restored, values)).release_all_exits()) == []


def test_checkpoint_restores_oom_event_of_running_container() -> None:
    tracker = Tracker(BOOT_ID)
    tracker.update_metadata(make_metadata())
    tracker.process_event(TaskStarted(WEB, NOW.wall, 7), NOW)
    tracker.process_event(TaskOOM(WEB, NOW.wall), NOW)
    (exited,) = restore_tracker(save_changes(tracker)).apply_task_state(WEB, None, NOW)
    assert exited.exit_info == ExitInfo(None, None, oom=True)


def test_checkpoint_suppresses_exit_of_unstarted_task() -> None:
    tracker = Tracker(BOOT_ID)
    tracker.update_metadata(make_metadata())
    tracker.process_event(TaskCreated(WEB, NOW.wall, 7), NOW)
    tracker.process_event(TaskExited(WEB, NOW.wall, "", 7, 137, NOW.wall), NOW)
    assert transition_types(expire_pending_exits(restore_tracker(save_changes(tracker)), LATER)) == []


def test_checkpoint_suppresses_late_exit_of_deleted_container() -> None:
    tracker = ImmediateTracker(BOOT_ID)
    tracker.update_metadata(make_metadata())
    tracker.process_event(TaskStarted(WEB, NOW.wall, 7), NOW)
    tracker.process_event(TaskExited(WEB, NOW.wall, "", 7, 0, NOW.wall), NOW)
    tracker.process_event(ContainerDeleted(WEB, NOW.wall), NOW)
    values = save_changes(tracker)
    assert len(values) == 1, "metadata of a deleted container was kept"
    restored = restore_tracker(values)
    assert transition_types(restored.process_event(TaskExited(WEB, NOW.wall, "", 7, 137, NOW.wall), NOW)) == []
    assert transition_types(expire_pending_exits(restored, LATER)) == []


def test_checkpoint_removes_evicted_containers() -> None:
    tracker = ImmediateTracker(BOOT_ID)
    values: dict[str, bytes] = {}
    for number in range(MAX_TOMBSTONES + 10):
        key = ContainerKey("shop", str(number))
        tracker.update_metadata(make_metadata(key))
        tracker.process_event(TaskStarted(key, NOW.wall, 7), NOW)
        tracker.process_event(TaskExited(key, NOW.wall, "", 7, 0, NOW.wall), NOW)
        tracker.process_event(ContainerDeleted(key, NOW.wall), NOW)
        save_changes(tracker, values)
    assert len(values) == MAX_TOMBSTONES
    tracker.exit_all(NOW)
    assert save_changes(tracker, values) == {}


def test_restored_containers_share_equal_strings() -> None:
    tracker = Tracker(BOOT_ID)
    for number in range(2):
        tracker.update_metadata(make_metadata(ContainerKey("shop", f"web-{number}"), labels={"tier": "front end"}))
    values = save_changes(tracker)
    labels = [entry.metadata.labels for entry in checkpoint.decode(values).entries if entry.metadata is not None]
    assert labels == [{"tier": "front end"}] * 2
    first, second = (next(iter((each or {}).items())) for each in labels)
    assert all(one is other for one, other in zip(first, second, strict=True))


def test_checkpoint_stores_metadata_only_when_changed() -> None:
    tracker = Tracker(BOOT_ID)
    tracker.update_metadata(make_metadata())
    tracker.process_event(TaskStarted(WEB, NOW.wall, 7), NOW)
    assert len(dict(checkpoint.encode_changes(tracker.changes()))) == 2
    tracker.update_metadata(make_metadata())
    tracker.process_event(TaskExited(WEB, NOW.wall, "", 7, 0, NOW.wall), NOW)
    assert len(dict(checkpoint.encode_changes(tracker.changes()))) == 1
    tracker.update_metadata(make_metadata(name="renamed"))
    assert len(dict(checkpoint.encode_changes(tracker.changes()))) == 2
    assert not tracker.changed


def test_checkpoint_restores_preexisting_until_snapshot_record() -> None:
    tracker = Tracker(BOOT_ID)
    tracker.update_metadata(make_metadata())
    tracker.apply_task_state(WEB, Task(WEB, 7, TaskStatus.RUNNING), NOW)
    values = save_changes(tracker)
    restored = restore_tracker(values)
    assert transition_types(restored.apply_task_state(WEB, None, NOW)) == ["started", "exited"]
    tracker.snapshot_records(NOW)
    assert transition_types(restore_tracker(save_changes(tracker, values)).apply_task_state(WEB, None, NOW)) == [
        "exited"
    ]


def test_checkpoint_restores_result_of_task_wait() -> None:
    tracker = Tracker(BOOT_ID)
    tracker.process_event(TaskStarted(WEB, NOW.wall, 7), NOW)
    tracker.apply_wait_result(WEB, 7, ExitStatus(3, NOW.wall + 1), NOW)
    (exited,) = restore_tracker(save_changes(tracker)).apply_task_state(WEB, None, LATER)
    assert exited.exit_info == ExitInfo(3, NOW.wall + 1)


def test_checkpoint_restores_pod_labels() -> None:
    sandbox, app = ContainerKey("k8s.io", "sandbox"), ContainerKey("k8s.io", "app")
    tracker = Tracker(BOOT_ID)
    tracker.update_metadata(
        make_metadata(sandbox, kind="sandbox", pod=PodReference("p", "n", "u", ""), pod_labels={"app": "shop"})
    )
    tracker.update_metadata(make_metadata(app, pod=PodReference("p", "n", "u", "app")))
    transitions = restore_tracker(save_changes(tracker)).process_event(TaskStarted(app, NOW.wall, 7), NOW)
    assert transitions[0].pod_labels == {"app": "shop"}


def test_checkpoint_of_previous_boot_keeps_incarnation_of_exits() -> None:
    tracker = Tracker("11111111-before")
    tracker.update_metadata(make_metadata())
    tracker.process_event(TaskStarted(WEB, NOW.wall, 7), NOW)
    transitions = restore_tracker(save_changes(tracker), boot="22222222-after").exit_all(LATER)
    assert [(each.type, each.origin, each.incarnation) for each in transitions] == [
        ("exited", "inferred", "11111111-7")
    ]


def test_checkpoint_and_listing_emit_missed_transitions() -> None:
    keys = [ContainerKey("shop", name) for name in ("gone", "stopped", "restarted", "unchanged", "started")]
    _, stopped, restarted, unchanged, started = keys
    tracker = Tracker(BOOT_ID)
    for pid, key in enumerate(keys[:4], 7):
        tracker.update_metadata(make_metadata(key))
        tracker.process_event(TaskStarted(key, NOW.wall, pid), NOW)
    restored = restore_tracker(save_changes(tracker))
    listing = Listing(
        ["shop"],
        [],
        {key: make_metadata(key) for key in keys[1:]},
        {
            stopped: Task(stopped, 8, TaskStatus.STOPPED, 3, NOW.wall),
            restarted: Task(restarted, 99, TaskStatus.RUNNING),
            unchanged: Task(unchanged, 10, TaskStatus.RUNNING),
            started: Task(started, 100, TaskStatus.RUNNING),
        },
    )
    transitions = reconcile(restored, listing, LATER)
    for query in restored.due_queries(LATER):
        transitions += restored.apply_query_result(query, None, LATER)
    assert [(each.key.id, each.type, each.pid) for each in transitions] == [
        ("stopped", "exited", 8),
        ("restarted", "exited", 9),
        ("restarted", "started", 99),
        ("started", "started", 100),
        ("gone", "exited", 7),
    ]
    assert transitions[0].exit_info is not None
    assert transitions[0].exit_info.status == 3


STORED_EXITS = {
    "running": ["exited 7 3"],
    "paused": ["exited 8 None"],
    "held": ["exited 9 137"],
    "pending": ["started 10", "exited 10 3"],
    "preexisting": ["started 13", "exited 13 None"],
}


def test_checkpoint_of_previous_version_is_readable() -> None:
    """The file was written before the state of a task became a union; its format has no version of its own."""
    values = {key: bytes.fromhex(value) for key, value in json.loads(STORED_CHECKPOINT.read_text()).items()}
    tracker = restore_tracker(values)
    states = {entry.key.id: entry for entry in checkpoint.decode(values).entries}
    running = {id_ for id_, entry in states.items() if entry.incarnation is not None}
    assert running == {"running", "paused", "preexisting"}
    assert [id_ for id_, entry in states.items() if entry.state.unknown] == ["unknown"]
    assert (states["paused"].state.task, states["deleted"].state.exited) == (
        Running(8, paused=True),
        (ExitedTask(12),),
    )
    assert (states["deleted"].last_pid, states["paused"].last_pid) == (12, 8)
    transitions = tracker.exit_all(LATER)
    exits: dict[str, list[str]] = {}
    for each in transitions:
        status = f" {each.exit_info.status}" if each.exit_info is not None else ""
        exits.setdefault(each.key.id, []).append(f"{each.type} {each.pid}{status}")
    assert exits == STORED_EXITS
    (exited,) = [each for each in transitions if each.key.id == "running"]
    assert exited.exit_info == ExitInfo(3, NOW.wall, oom=True)
    assert exited.metadata == make_metadata(ContainerKey("shop", "running"), runtime="io.containerd.runc.v2")


@pytest.mark.parametrize("version", ["earlier", "later"])
def test_checkpoint_of_other_version_is_readable(version: str) -> None:
    """New fields are at the end, with a default, and fields that this version does not know are ignored."""
    key = ContainerKey("k8s.io", "web")
    tracker = Tracker(BOOT_ID)
    tracker.mark_synced(set())
    tracker.update_metadata(make_metadata(key))
    tracker.apply_recorded_exit(RecordedExit(key, NOW.wall, 3, NOW.wall), NOW)
    values = save_changes(tracker)
    values[checkpoint.HEADER_KEY] = checkpoint.encode_header(CheckpointHeader("node-1", ENGINE, BOOT_ID, "scope", []))
    for name, value in values.items():
        fields = msgspec.msgpack.decode(value)
        if isinstance(fields, dict):
            fields["new"] = 1
        elif version == "later":
            fields[2] = [[*each, "new"] for each in fields[2]]
            fields.append("new")
        else:  # before CRI's records, an exited task had no more fields, nor had the state
            fields[2], fields[21:] = [each[:3] for each in fields[2]], []
        values[name] = msgspec.msgpack.encode(fields)
    if version == "later":
        values |= {"new": b"", "new\0a\0b": b""}
    decoded = checkpoint.decode(values)
    assert decoded.header is not None
    assert [entry.state.exited for entry in decoded.entries] == [(ExitedTask(0, NOW.wall, NOW.wall),)]
    assert decoded.entries[0].metadata == make_metadata(key)


def test_unknown_keys_of_later_version_are_listed() -> None:
    values = {"new": b"\xc1", "new\0a": b"", "new\0a\0b\0c": b"", "states\0a\0b": b""}
    assert checkpoint.decode(values) == Checkpoint(unknown_keys=list(values))


# --- changed settings ---


def running_container(namespace: str, *, in_scope: bool = True, **changed: Any) -> ContainerState:
    key = ContainerKey(namespace, "c")
    incarnation = Incarnation(pid=7, id="x-7", paused=False, in_scope=in_scope)
    state = TaskState(task=Running(7))
    return ContainerState(key, make_metadata(key, **changed), state, incarnation=incarnation)


RULES = LabelRules(include=["*"], exclude=["secret"], redact=["pass*"])


def filtered_tracker(*entries: ContainerState, is_watched: Callable[[str], bool] = lambda _: True) -> Tracker:
    """Return a tracker with restored entries, after the filters were applied."""
    tracker = Tracker(BOOT_ID)
    tracker.restore(entries, set(), NOW)
    tracker.apply_filters(is_watched)
    tracker.apply_label_rules(RULES)
    return tracker


def test_apply_filters_removes_containers_outside_new_filter() -> None:
    pod = PodReference("p", "n", "u", "")
    key = ContainerKey("a", "pending")
    exit_event = TaskExited(key, NOW.wall, "", 9, 0, NOW.wall)
    pending = ContainerState(key, state=TaskState(evidence=(PendingExit(9, exit_event, 0),)))
    tombstone = ContainerState(ContainerKey("a", "tombstone"), deleted=True)
    tracker = filtered_tracker(
        running_container("a", kind="sandbox", pod=pod),
        pending,
        tombstone,
        running_container("b"),
        is_watched=lambda name: name == "b",
    )
    assert [each.key.namespace for each in tracker.entries()] == ["b"]
    assert {key.id for key, entry_, *_ in tracker.changes() if entry_ is None} == {"c", "pending", "tombstone"}
    assert tracker.find(tombstone.key) is None
    assert tracker.next_due() is None
    assert tracker.unsynced_namespaces is None, "an unknown container may be new or newly included"


@pytest.mark.parametrize(
    ("before", "after", "in_scope", "preexisting"),
    [(True, True, True, False), (True, False, False, False), (False, True, True, True), (False, False, False, False)],
)
def test_reevaluate_scope_makes_newly_included_preexisting(
    *, before: bool, after: bool, in_scope: bool, preexisting: bool
) -> None:
    restored = running_container("a", in_scope=before)
    tracker = filtered_tracker(restored)
    tracker.update_metadata(make_metadata(restored.key, in_scope=after))
    tracker.reevaluate_scope(restored.key)
    assert restored.incarnation is not None
    assert (restored.incarnation.in_scope, restored.incarnation.preexisting) == (in_scope, preexisting)


def test_run_that_left_scope_is_not_started_again_after_restart() -> None:
    before = filtered_tracker(running_container("a"))
    key = ContainerKey("a", "c")
    before.update_metadata(make_metadata(key, in_scope=False))
    before.reevaluate_scope(key)
    restored = restore_tracker(save_changes(before))
    restored.update_metadata(make_metadata(key))
    restored.reevaluate_scope(key)
    assert transition_types(restored.apply_task_state(key, None, NOW)) == ["exited"]


def test_stricter_label_rules_apply_to_restored_metadata() -> None:
    labels = {"secret": "x", "password": "y", "tier": "front"}
    restored = running_container(
        "k8s.io", labels=labels, pod_labels=labels, kind="sandbox", pod=PodReference("p", "n", "u", "")
    )
    restored.published_metadata = restored.metadata
    app = running_container("shop", pod=PodReference("p", "n", "u", "app"))
    tracker = filtered_tracker(restored, app)
    assert restored.metadata is not None
    assert restored.metadata.labels == {"password": "[redacted]", "tier": "front"}
    assert restored.metadata.pod_labels == restored.metadata.labels
    assert restored.published_metadata == restored.metadata
    exited, _ = tracker.exit_all(NOW)
    assert exited.pod_labels == restored.metadata.labels


def test_label_rules_do_not_restore_pod_of_deleted_sandbox() -> None:
    labels, pod = {"secret": "x"}, PodReference("p", "n", "u", "")
    sandbox = running_container("k8s.io", labels=labels, pod_labels=labels, kind="sandbox", pod=pod)
    tracker = Tracker(BOOT_ID)
    tracker.restore([sandbox, running_container("shop", pod=PodReference("p", "n", "u", "app"))], set(), NOW)
    tracker.process_event(ContainerDeleted(sandbox.key, NOW.wall), NOW)
    tracker.apply_filters(lambda _: True)
    tracker.apply_label_rules(RULES)
    assert [each.pod_labels for each in tracker.exit_all(NOW)] == [None, None]


# --- positions and header ---


def test_checkpoint_restores_position_and_header() -> None:
    header = CheckpointHeader("node-1", ENGINE, BOOT_ID, "scope", ["shop"])
    position = StoredPosition(1_795_447_267_123, 42, NOW.wall)
    values = {checkpoint.HEADER_KEY: checkpoint.encode_header(header)}
    values |= dict([checkpoint.encode_position(header.source, position)])
    restored = checkpoint.decode(values)
    assert restored == Checkpoint(header, {SourceId("node-1", "c79d280c"): position}, [])
    assert list(checkpoint.container_keys(values)) == []


@pytest.mark.parametrize(
    "values",
    [
        {"state\0a\0b": b"\xc1"},
        {"header": b"{}"},
        {"metadata\0a\0b": b""},
        {"state": b"\x90"},
        {"exits": b"\x91\x90"},
        {"exits": msgspec.msgpack.encode((["0"], [(("a", ""), ([1, 2], 0, 0))]))},
        pytest.param({"header": b"\x81\xa1x" + b"\x91" * 100_000}, id="nested too deep"),
    ],
)
def test_checkpoint_decode_raises_when_value_is_invalid(values: dict[str, bytes]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (msgspec chooses the messages)
        checkpoint.decode(values)


@pytest.mark.parametrize("persisted", [False, True])
def test_restored_state_is_saved_unless_checkpoint_has_it(*, persisted: bool) -> None:
    """After a reboot, the label rules may have dropped labels that the checkpoint still has."""
    tracker = Tracker(BOOT_ID)
    tracker.restore([ContainerState(WEB, make_metadata())], set(), NOW, persisted=persisted)
    saved = checkpoint.decode(save_changes(tracker))
    assert [each.metadata for each in saved.entries] == ([] if persisted else [make_metadata()])
