"""Harness that drives the core against a containerd model, and checks every record as a consumer would."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from bridge.core.container_state import TaskQuery, Transition
from bridge.core.containerd_model import ContainerEvent, ContainerKey, Task
from bridge.core.reconcile import find_mismatches, reconcile, reevaluate_scope
from bridge.core.records import AdditionalEventType
from bridge.core.tracker import Tracker
from tests.unit.core.containerd_model import KEYS, ContainerdModel, DueExits, Process, TaskWaitResult, TrueTransition
from tests.unit.core.factories import expire_pending_exits

BOOT_ID = "5f3c9a1e-2c1d-4b0e-8c5e-0d6b8c1f2a3b"
ADDITIONAL_EVENTS: tuple[AdditionalEventType, ...] = ("created", "deleted", "oom", "renamed")
MAX_QUERY_ROUNDS = 5  # of task queries before a snapshot


@dataclass
class ReferenceConsumer:
    """A consumer that maintains the set of running containers, and accepts only well-formed incarnations (P2)."""

    running: dict[ContainerKey, tuple[int, bool]] = field(default_factory=dict)
    received: list[TrueTransition] = field(default_factory=list)
    begun: set[tuple[ContainerKey, str]] = field(default_factory=set)
    filtered_out: set[tuple[ContainerKey, int]] = field(default_factory=set)
    exited: set[tuple[ContainerKey, str]] = field(default_factory=set)
    preexisting_count: int = 0
    filtered: bool = False  # containers may be out of scope, or have the same creation time
    known_names: dict[ContainerKey, str] = field(default_factory=dict)
    deleted: set[tuple[ContainerKey, int | None]] = field(default_factory=set)

    def apply(self, transition: Transition) -> None:
        if transition.type in ADDITIONAL_EVENTS:
            self._apply_additional(transition)
            return
        current = self.running.get(transition.key)
        if transition.type == "exited" and (transition.key, transition.pid) in self.filtered_out:
            current = self.running.setdefault(transition.key, (transition.pid, False))  # its next record may be the end
        assert (transition.key, transition.incarnation) not in self.exited, f"record after exit: {transition}"
        assert (transition.exit_info is not None) is (transition.type == "exited")
        if transition.type == "started":
            assert current is None, f"started while {current} is running: {transition}"
            assert (transition.key, transition.incarnation) not in self.begun, f"started again: {transition}"
            self.begun.add((transition.key, transition.incarnation))
        else:
            assert current is not None, f"container is not running: {transition}"
            assert current[0] == transition.pid, f"other incarnation than {current}: {transition}"
        if transition.type == "exited":
            del self.running[transition.key]
            self.exited.add((transition.key, transition.incarnation))
        else:
            paused = transition.type == "paused"
            assert current is None or current[1] is not paused, f"pause state repeated: {transition}"
            assert transition.paused is paused
            self.running[transition.key] = (transition.pid, paused)
        status, oom = (
            (transition.exit_info.status, transition.exit_info.oom)
            if transition.exit_info is not None
            else (None, None)
        )
        self.received.append(TrueTransition(transition.type, transition.key, transition.pid, status, oom))

    def _apply_additional(self, transition: Transition) -> None:
        """Check that ``created`` and ``deleted`` alternate, names change, and the incarnation is the running one."""
        assert transition.exit_info is None
        current = self.running.get(transition.key)
        assert (transition.pid, transition.paused) in {(0, False), current}
        assert bool(transition.pid) is bool(transition.incarnation)
        assert transition.metadata is not None or transition.type == "oom"
        if transition.type == "oom" or transition.metadata is None or self.filtered:
            return
        known, name = self.known_names.pop(transition.key, None), transition.metadata.name
        if transition.type == "deleted":  # preexisting containers are deleted or renamed without ``created``
            container = (transition.key, transition.metadata.created_at)
            assert container not in self.deleted, f"deleted twice: {transition}"
            self.deleted.add(container)
        else:
            assert known is None if transition.type == "created" else known != name, f"name was {known}: {transition}"
            self.known_names[transition.key] = name

    def apply_snapshot(
        self, transitions: list[Transition], snapshot_records: list[Transition], *, filters_changed: bool = False
    ) -> None:
        """Check that the snapshot contains the running containers, and perhaps preexisting ones.

        After a change of the filters, containers that are not in the snapshot are out of scope.
        """
        for transition in transitions:
            self.apply(transition)
        if filters_changed:
            present = {record.key for record in snapshot_records}
            self.filtered_out |= {(key, pid) for key, (pid, _) in self.running.items() if key not in present}
            self.running = {key: value for key, value in self.running.items() if key in present}
        for record in snapshot_records:
            assert (record.type, record.origin) == ("present", "snapshot")
            assert (record.key, record.incarnation) not in self.exited, f"present after exit: {record}"
            self.preexisting_count += record.key not in self.running
            self.begun.add((record.key, record.incarnation))
            assert self.running.setdefault(record.key, (record.pid, record.paused)) == (record.pid, record.paused)
        assert len(snapshot_records) == len(self.running), "a running container has no snapshot record"


class Harness:
    """The container watch without I/O."""

    def __init__(self, containerd: ContainerdModel) -> None:
        self.containerd = containerd
        self.consumer = ReferenceConsumer()
        self.tracker = Tracker(BOOT_ID, ADDITIONAL_EVENTS)
        self.received: list[ContainerEvent] = []
        self._synced = False
        self._pending_transitions: list[Transition] = []
        self._preexisting_count = 0
        self._filters_changed = False
        self.start_checks = True
        self.ambiguous_times = False  # a late event can look newer than the exit of its task
        self._exits: Counter[Process] = Counter()
        self._incarnations: dict[Process, set[str]] = defaultdict(set)

    # --- connecting ---

    def connect(self) -> None:
        containerd, tracker = self.containerd, self.tracker
        containerd.subscribe()
        self._maybe_step()
        listing = containerd.listing(self._maybe_step, with_metadata=True)
        self._deliver(len(containerd.stream))
        if self._filters_changed:
            self._emit(tracker.release_all_exits())
            tracker.apply_filters(lambda _: True)
        self._emit(reconcile(tracker, listing, containerd.now(), filters_changed=self._filters_changed))
        for _ in range(MAX_QUERY_ROUNDS):
            self._emit(self._query(tracker.due_queries(containerd.now())))
        tracker.mark_synced(set(listing.failed))
        self._publish_snapshot(filters_changed=self._filters_changed)
        self._learn_names()
        self._wait_for_exits()
        self._synced, self._filters_changed = True, False

    def disconnect(self) -> None:
        self.containerd.unsubscribe()
        self._emit(self.tracker.release_all_exits())
        self._synced = False
        self.tracker.disconnect()

    # --- following ---

    def follow(self) -> None:
        """Process some of the queued items, and do everything that is due."""
        if due := self.tracker.take_due_exits(self.containerd.now()):
            self.containerd.stream.append(DueExits(due))  # behind the events received before, as in the event queue
        self._deliver(self._random_count())
        self._emit(expire_pending_exits(self.tracker, self.containerd.now()))
        self._emit(self._query(self.tracker.due_queries(self.containerd.now())))
        if self.start_checks:
            self._check_starts()
        self._wait_for_exits()
        if self.tracker.preexisting_count != self._preexisting_count:
            self._publish_snapshot()

    def audit(self) -> None:
        containerd, tracker = self.containerd, self.tracker
        listing = containerd.listing(self._maybe_step, with_metadata=False)
        queries = [tracker.make_query(key) for key in sorted(find_mismatches(tracker, listing))]
        for key, _generation in queries:
            entry = tracker.find(key)
            if (entry is None or entry.metadata is None) and (metadata := containerd.container(key)):
                tracker.update_metadata(metadata)
        repairs = self._query(queries, follow=True)
        tracker.mark_synced(set(listing.failed))
        if repairs or tracker.preexisting_count != self._preexisting_count:
            self._check(repairs)
            self._pending_transitions += repairs
            self._publish_snapshot()

    def change_filters(self) -> None:
        """Change the filters at random; while connected, list the metadata to reevaluate the scope."""
        containerd, tracker = self.containerd, self.tracker
        self.consumer.filtered = True
        containerd.in_scope = frozenset(key for key in KEYS if containerd.flip(0.5))
        self._filters_changed = not containerd.subscribed
        if self._filters_changed:
            return
        listed_at = containerd.now()
        listing = containerd.listing(self._maybe_step, with_metadata=True)
        queries = [tracker.make_query(key) for key in sorted(find_mismatches(tracker, listing))]
        results = [(query, containerd.task(query.key)) for query in queries]
        containerd.add_queued_ambiguous()
        self._deliver(len(containerd.stream))
        self._emit(tracker.release_all_exits())
        tracker.apply_filters(lambda _: True)
        repairs = reevaluate_scope(tracker, listing, listed_at.wall, containerd.now())
        for query, task in results:
            repairs += tracker.apply_query_result(query, task, containerd.now())
        tracker.mark_synced(set(listing.failed))
        self._pending_transitions += repairs
        self._publish_snapshot(filters_changed=True)

    def quiesce(self) -> None:
        """End all faults, and continue until all events and query results are processed."""
        self.containerd.stop_faults()
        if not self.containerd.subscribed:
            self.connect()
        for _ in range(100):
            self._deliver(len(self.containerd.stream))
            due = self.tracker.next_due(start_checks=self.start_checks)
            if due is None:
                return
            self.containerd.advance(max(0, due - self.containerd.now().monotonic))
            self.follow()
        raise AssertionError("the tracker schedules queries endlessly")

    def replay(self) -> None:
        """Process every received event a second time."""
        for event in self.received:
            self._emit(self.tracker.process_event(event, self.containerd.now()))
        self.quiesce()

    def _query(self, queries: list[TaskQuery], *, follow: bool = False) -> list[Transition]:
        """Run queries while the state changes: neither the results nor the tracker reflect later changes."""
        results: list[tuple[TaskQuery, Task | None, bool]] = []
        for query in queries:
            self._maybe_step()
            failed = self.containerd.faults.query_failures and self.containerd.flip(0.3)
            results.append((query, self.containerd.task(query.key), failed))
            self.containerd.add_queued_ambiguous()
        if self.containerd.faults.lag and queries:
            self._maybe_step()
            if follow and self.containerd.flip(0.5):
                self.follow()
            self._deliver(self._random_count())
        transitions: list[Transition] = []
        for query, task, failed in results:
            if failed:
                self.tracker.query_failed(query)
            else:
                transitions += self.tracker.apply_query_result(query, task, self.containerd.now())
        return transitions

    def _check_starts(self) -> None:
        results: list[tuple[TaskQuery, Task | None]] = []
        for check in self.tracker.due_start_checks(self.containerd.now()):
            self._maybe_step()
            results.append((check, self.containerd.listed_task(check.key)))
            self.containerd.add_queued_ambiguous()
        if self.containerd.faults.lag and results:
            self._maybe_step()
            self._deliver(self._random_count())
        for check, task in results:
            if self.tracker.apply_start_check(check, task, self.containerd.now()) and task is not None:
                self.containerd.wait(check.key, task.pid)

    def _wait_for_exits(self) -> None:
        for entry in self.tracker.entries():
            if pid := entry.current_pid:
                self.containerd.wait(entry.key, pid)

    def _maybe_step(self) -> None:
        if self.containerd.faults.lag and self.containerd.flip(0.3):
            self.containerd.step()

    def _random_count(self) -> int:
        queued = len(self.containerd.stream)
        return self.containerd.rng.randint(0, queued) if self.containerd.faults.lag else queued

    def _deliver(self, count: int) -> None:
        for _ in range(count):
            delivery = self.containerd.stream.popleft()
            if isinstance(delivery, DueExits):
                self._emit(self.tracker.release_exits(delivery.exits))
                continue
            if isinstance(delivery, TaskWaitResult):
                self.tracker.apply_wait_result(*delivery, self.containerd.now())
                continue
            self.received.append(delivery.event)
            if delivery.metadata is not None:
                self.tracker.update_metadata(delivery.metadata)
            self._emit(self.tracker.process_event(delivery.event, self.containerd.now()))

    # --- publishing ---

    def _emit(self, transitions: list[Transition]) -> None:
        self._check(transitions)
        if self._synced:
            for transition in transitions:
                self.consumer.apply(transition)
        else:
            self._pending_transitions += transitions

    def _check(self, transitions: list[Transition]) -> None:
        """Check that no running task is reported as exited, and that no task is reported that was not started."""
        if self.ambiguous_times:
            return
        for each in transitions:
            if each.type in ADDITIONAL_EVENTS:
                continue
            process = each.key, each.pid
            self._exits[process] += each.type == "exited"
            self._incarnations[process].add(each.incarnation)
            assert self._exits[process] <= len(self.containerd.ended[process]), f"still running: {each}"
            started = self.containerd.may_have_started(process)
            assert len(self._incarnations[process]) <= started, f"never started: {each}"

    def _learn_names(self) -> None:
        """Give the consumer the names of preexisting containers, which additional events do not report."""
        for entry in self.tracker.entries():
            if entry.published_metadata is not None:
                self.consumer.known_names.setdefault(entry.key, entry.published_metadata.name)

    def _publish_snapshot(self, *, filters_changed: bool = False) -> None:
        self._emit(self.tracker.release_all_exits())
        self.consumer.apply_snapshot(
            self._pending_transitions,
            self.tracker.snapshot_records(self.containerd.now()),
            filters_changed=filters_changed,
        )
        self._pending_transitions = []
        self._preexisting_count = self.tracker.preexisting_count
