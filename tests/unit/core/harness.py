"""Drives the core as the watch does, against a world, and judges every record as a consumer would."""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge.core.containerd_model import ContainerEvent, ContainerKey, Task
from bridge.core.labels import LabelRules
from bridge.core.reconcile import find_mismatches, reconcile, reevaluate_scope
from bridge.core.records import AdditionalEventType
from bridge.core.state import TaskQuery, Transition
from bridge.core.tracker import Tracker
from tests.unit.core.containerd_model import KEYS, ContainerdModel, TaskWaitResult, TrueTransition

BOOT_ID = "5f3c9a1e-2c1d-4b0e-8c5e-0d6b8c1f2a3b"
ADDITIONAL_EVENTS: tuple[AdditionalEventType, ...] = ("created", "deleted", "oom", "renamed")
MAX_QUERY_ROUNDS = 5  # of questions before a snapshot


@dataclass
class ReferenceConsumer:
    """A consumer: it folds the records into what lives, and accepts well-formed lives only (P2)."""

    running: dict[ContainerKey, tuple[int, bool]] = field(default_factory=dict)
    received: list[TrueTransition] = field(default_factory=list)
    exited: set[tuple[ContainerKey, str]] = field(default_factory=set)
    preexisting_count: int = 0
    filtered: bool = False  # not every record is told of, or nobody can tell one from the next
    known_names: dict[ContainerKey, str] = field(default_factory=dict)
    deleted: set[tuple[ContainerKey, int | None]] = field(default_factory=set)

    def apply(self, transition: Transition) -> None:
        if transition.type in ADDITIONAL_EVENTS:
            self._apply_additional(transition)
            return
        current = self.running.get(transition.key)
        assert (transition.key, transition.incarnation) not in self.exited, f"told after its end: {transition}"
        assert (transition.exit_info is not None) is (transition.type == "exited")
        if transition.type == "started":
            assert current is None, f"started on top of {current}: {transition}"
        else:
            assert current is not None, f"of nothing that lives: {transition}"
            assert current[0] == transition.pid, f"of another life than {current}: {transition}"
        if transition.type == "exited":
            del self.running[transition.key]
            self.exited.add((transition.key, transition.incarnation))
        else:
            paused = transition.type == "paused"
            assert current is None or current[1] is not paused, f"told twice: {transition}"
            assert transition.paused is paused
            self.running[transition.key] = (transition.pid, paused)
        status, oom = (
            (transition.exit_info.status, transition.exit_info.oom)
            if transition.exit_info is not None
            else (None, None)
        )
        self.received.append(TrueTransition(transition.type, transition.key, transition.pid, status, oom))

    def _apply_additional(self, transition: Transition) -> None:
        """Records come and go in turn, and a renamed one is called something else; a life is one that lives."""
        assert transition.exit_info is None
        life = self.running.get(transition.key)
        assert (transition.pid, transition.paused) in {(0, False), life}
        assert bool(transition.pid) is bool(transition.incarnation)
        assert transition.metadata is not None or transition.type == "oom"
        if transition.type == "oom" or transition.metadata is None or self.filtered:
            return
        known, name = self.known_names.pop(transition.key, None), transition.metadata.name
        if transition.type == "deleted":  # this and a new name may also be of one that was there before anybody looked
            record = (transition.key, transition.metadata.created_at)
            assert record not in self.deleted, f"told twice: {transition}"
            self.deleted.add(record)
        else:
            assert known is None if transition.type == "created" else known != name, f"not after {known}: {transition}"
            self.known_names[transition.key] = name

    def apply_snapshot(
        self, transitions: list[Transition], snapshot_records: list[Transition], *, filters_changed: bool = False
    ) -> None:
        """The rows are what the transitions led to, and whoever was there before anybody looked.

        Of other filters (``rescoped``) nothing else is known than whom the rows name.
        """
        for each in transitions:
            self.apply(each)
        if filters_changed:
            named = {row.key for row in snapshot_records}
            self.running = {key: value for key, value in self.running.items() if key in named}
        for row in snapshot_records:
            assert (row.type, row.origin) == ("present", "snapshot")
            assert (row.key, row.incarnation) not in self.exited, f"present after its end: {row}"
            self.preexisting_count += row.key not in self.running
            assert self.running.setdefault(row.key, (row.pid, row.paused)) == (row.pid, row.paused)
        assert len(snapshot_records) == len(self.running), "a living container without a row"


class Harness:
    """The watch, without its I/O."""

    def __init__(self, containerd: ContainerdModel) -> None:
        self.containerd = containerd
        self.consumer = ReferenceConsumer()
        self.tracker = Tracker(BOOT_ID, ADDITIONAL_EVENTS)
        self.received: list[ContainerEvent] = []
        self._synced = False
        self._pending_transitions: list[Transition] = []
        self._preexisting_count = 0
        self._filters_changed = False

    # --- connecting ---

    def connect(self) -> None:
        world, tracker = self.containerd, self.tracker
        world.subscribe()
        self._maybe_step()
        listing = world.listing(self._maybe_step, with_metadata=True)
        self._deliver(len(world.stream))
        if self._filters_changed:
            tracker.apply_filters(lambda _: True, LabelRules.keep_all())
        self._emit(reconcile(tracker, listing, world.now(), filters_changed=self._filters_changed))
        for _ in range(MAX_QUERY_ROUNDS):
            self._emit(self._query(tracker.due_queries(world.now())))
        tracker.mark_synced(set(listing.failed))
        self._publish_snapshot(filters_changed=self._filters_changed)
        self._learn_names()
        self._synced, self._filters_changed = True, False

    def disconnect(self) -> None:
        self.containerd.unsubscribe()
        self._synced = False
        self.tracker.disconnect()

    # --- following ---

    def follow(self) -> None:
        """Take in some of what has happened, and do what is due."""
        self._deliver(self._random_count())
        self._emit(self.tracker.expire_pending_exits(self.containerd.now()))
        self._emit(self._query(self.tracker.due_queries(self.containerd.now())))
        if self.tracker.preexisting_count != self._preexisting_count:
            self._publish_snapshot()

    def audit(self) -> None:
        world, tracker = self.containerd, self.tracker
        listing = world.listing(self._maybe_step, with_metadata=False)
        questions = [tracker.make_query(key) for key in sorted(find_mismatches(tracker, listing))]
        for key, _version in questions:
            entry = tracker.find(key)
            if (entry is None or entry.metadata is None) and (record := world.container(key)):
                tracker.update_metadata(record)
        repairs = self._query(questions, follow=True)
        tracker.mark_synced(set(listing.failed))
        if repairs or tracker.preexisting_count != self._preexisting_count:
            self._check(repairs)
            self._pending_transitions += repairs
            self._publish_snapshot()

    def change_filters(self) -> None:
        """Have other filters; while connected, the records are listed to find out what that means."""
        world, tracker = self.containerd, self.tracker
        self.consumer.filtered = True
        world.in_scope = frozenset(key for key in KEYS if world.flip(0.5))
        self._filters_changed = not world.subscribed
        if self._filters_changed:
            return
        began = world.now()
        listing = world.listing(self._maybe_step, with_metadata=True)
        questions = [tracker.make_query(key) for key in sorted(find_mismatches(tracker, listing))]
        answers = [(question, world.task(question.key)) for question in questions]
        world.mark_queued_ambiguous()
        self._deliver(len(world.stream))
        tracker.apply_filters(lambda _: True, LabelRules.keep_all())
        repairs = reevaluate_scope(tracker, listing, began.wall, world.now())
        for question, task in answers:
            repairs += tracker.apply_query_result(question, task, world.now())
        tracker.mark_synced(set(listing.failed))
        self._pending_transitions += repairs
        self._publish_snapshot(filters_changed=True)

    def quiesce(self) -> None:
        """Let everything arrive and every question be answered."""
        self.containerd.stop_faults()
        if not self.containerd.subscribed:
            self.connect()
        for _ in range(100):
            self._deliver(len(self.containerd.stream))
            due = self.tracker.next_due()
            if due is None:
                return
            self.containerd.advance(max(0, due - self.containerd.now().monotonic))
            self.follow()
        raise AssertionError("questions without end")

    def replay(self) -> None:
        """Receive every event once more."""
        for event in self.received:
            self._emit(self.tracker.process_event(event, self.containerd.now()))
        self.quiesce()

    def _query(self, queries: list[TaskQuery], *, follow: bool = False) -> list[Transition]:
        """Ask, while things go on happening: whoever answers has not seen what comes next, nor has the asker."""
        answers: list[tuple[TaskQuery, Task | None, bool]] = []
        for question in queries:
            self._maybe_step()
            silent = self.containerd.faults.query_failures and self.containerd.flip(0.3)
            answers.append((question, self.containerd.task(question.key), silent))
            self.containerd.mark_queued_ambiguous()
        if self.containerd.faults.lag and queries:
            self._maybe_step()
            if follow and self.containerd.flip(0.5):
                self.follow()
            self._deliver(self._random_count())
        told: list[Transition] = []
        for question, task, silent in answers:
            if silent:
                self.tracker.query_failed(question)
            else:
                told += self.tracker.apply_query_result(question, task, self.containerd.now())
        return told

    def _maybe_step(self) -> None:
        if self.containerd.faults.lag and self.containerd.flip(0.3):
            self.containerd.step()

    def _random_count(self) -> int:
        waiting = len(self.containerd.stream)
        return self.containerd.rng.randint(0, waiting) if self.containerd.faults.lag else waiting

    def _deliver(self, count: int) -> None:
        for _ in range(count):
            delivery = self.containerd.stream.popleft()
            if isinstance(delivery, TaskWaitResult):
                self.tracker.task_waited(*delivery, self.containerd.now())
                continue
            self.received.append(delivery.event)
            if delivery.metadata is not None:
                self.tracker.update_metadata(delivery.metadata)
            self._emit(self.tracker.process_event(delivery.event, self.containerd.now()))

    # --- telling ---

    def _emit(self, transitions: list[Transition]) -> None:
        self._check(transitions)
        if self._synced:
            for each in transitions:
                self.consumer.apply(each)
        else:
            self._pending_transitions += transitions

    def _check(self, transitions: list[Transition]) -> None:
        """No exit is told of what lives at this moment, nothing is told of what never ran."""
        alive = self.containerd.running()
        for each in transitions:
            assert each.type != "exited" or alive.get(each.key, (0, False))[0] != each.pid, f"it lives: {each}"
            assert each.pid not in self.containerd.never_started_pids - self.containerd.ambiguous_pids, (
                f"it never ran: {each}"
            )

    def _learn_names(self) -> None:
        """Who reads of records only knows nothing of those that were there before anybody looked."""
        for entry in self.tracker.entries():
            if entry.published_metadata is not None:
                self.consumer.known_names.setdefault(entry.key, entry.published_metadata.name)

    def _publish_snapshot(self, *, filters_changed: bool = False) -> None:
        self.consumer.apply_snapshot(
            self._pending_transitions,
            self.tracker.snapshot_records(self.containerd.now()),
            filters_changed=filters_changed,
        )
        self._pending_transitions = []
        self._preexisting_count = self.tracker.preexisting_count
