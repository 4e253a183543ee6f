"""Tracker: turns containerd's events and the results of calls into well-formed transitions.

It drives three parts: the store keeps the state of each container (``container_store.py``), the state machine decides
(``task_machine.py``), and the emitter turns the machine's effects into transitions (``transition_emitter.py``). The
tracker carries out the other effects: it schedules task queries (``due_queries``), start checks (``due_start_checks``)
and the end of the wait for late starts.

The tracker does no I/O and takes the time only from its arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from bridge.core.container_state import (
    ContainerState,
    DueExit,
    Incarnation,
    PendingExit,
    TaskQuery,
    TaskState,
    Transition,
)
from bridge.core.container_store import ContainerStore, StateChange
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    ExitStatus,
    Instant,
    Labels,
    Metadata,
    RecordedExit,
    Task,
    TaskCreated,
    TaskDeleted,
    TaskExited,
    TaskOOM,
    TaskPaused,
    TaskResumed,
    TaskStarted,
    TaskStatus,
)
from bridge.core.label_rules import LabelRules
from bridge.core.records import AdditionalEventType
from bridge.core.schedule import Schedule
from bridge.core.start_checks import FIRST_START_CHECK_NS, StartChecks
from bridge.core.task_machine import (
    PENDING_EXIT_NS,
    BeginChecks,
    CancelQuery,
    Count,
    CreatedReported,
    Disconnected,
    Effects,
    EndChecks,
    Exited,
    ExitReported,
    NoTaskReported,
    PauseChanged,
    QueryFailed,
    QueryTask,
    ReleaseExit,
    ResumeChecks,
    RunningReported,
    Started,
    StartOverdue,
    StoppedReported,
    TaskFound,
    TaskWaited,
    step,
)
from bridge.core.transition_emitter import TransitionEmitter, in_scope


class Tracker:
    """Track the incarnations of all containers of one containerd.

    Args:
        boot_id: The boot id of the host, part of each incarnation id.
        additional_events: The optional event types to emit.

    ``exits_synced``: CRI's exited containers have been listed, so that another one is new.
    """

    def __init__(self, boot_id: str, additional_events: Collection[AdditionalEventType] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self.exits_synced = False
        self._store = ContainerStore()
        self._emitter = TransitionEmitter(self._store, boot_id, additional_events)
        self._scheduled_queries: Schedule[ContainerKey] = Schedule()
        self._start_checks = StartChecks()
        self._pending_exits: Schedule[ContainerKey] = Schedule()
        self._handlers: dict[type, Callable[[ContainerState, Any, Instant], object]] = {
            ContainerCreated: self._on_container_created,
            ContainerUpdated: self._on_container_updated,
            ContainerDeleted: self._on_container_deleted,
            TaskCreated: self._advance,
            TaskStarted: self._advance,
            TaskExited: self._on_process_ended,
            TaskDeleted: self._on_process_ended,
            TaskPaused: self._advance,
            TaskResumed: self._advance,
            TaskOOM: self._on_oom,
        }
        self._effects: dict[type, Callable[[ContainerState, Any, Instant], None]] = {
            Started: self._emitter.started,
            PauseChanged: self._emitter.pause_changed,
            Exited: self._emitter.exited,
            ReleaseExit: self._emitter.exit_released,
            QueryTask: lambda entry, effect, _now: self._scheduled_queries.add(entry.key, effect.due),
            CancelQuery: lambda entry, _effect, _now: self._scheduled_queries.discard(entry.key),
            BeginChecks: lambda entry, _effect, now: self._start_checks.begin(entry, now),
            EndChecks: lambda entry, effect, _now: self._start_checks.end(entry, resume=effect.resume),
            ResumeChecks: lambda entry, _effect, now: self._start_checks.resume(entry, now),
            Count: self._count,
        }

    # --- events ---

    def process_event(self, event: ContainerEvent, now: Instant) -> list[Transition]:
        """Process one event; return the resulting transitions in order, often none."""
        entry = self._store.get_or_create(event.key)
        self._handlers[type(event)](entry, event, now)
        return self._finish(entry)

    def _advance(self, entry: ContainerState, event: ContainerEvent, now: Instant) -> None:
        """Pass an event to the machine; results of calls that are in flight are older."""
        entry.generation += 1
        self._step(entry, event, now)

    def _on_process_ended(self, entry: ContainerState, event: TaskExited | TaskDeleted, now: Instant) -> None:
        if not event.exec_id:
            self._advance(entry, event, now)
        elif isinstance(event, TaskExited):
            self.counts["exec_exit"] += 1  # an exec process does not affect the container

    def _on_oom(self, entry: ContainerState, event: TaskOOM, now: Instant) -> None:
        """Emit an OOM event. If an exit is held, the event is of that run, which is over for the machine."""
        held = entry.held_exit is not None
        self._emitter.oom(entry, event.at)
        if not held:
            self._step(entry, event, now)

    def _on_container_created(self, entry: ContainerState, event: ContainerCreated, now: Instant) -> None:
        self._advance(entry, event, now)
        self._emitter.metadata_changed(entry, event.at, "created")

    def _on_container_updated(self, entry: ContainerState, event: ContainerUpdated, now: Instant) -> None:
        """Emit a new name; the metadata is current already, because it is fetched for each such event."""
        self._advance(entry, event, now)
        self._emitter.metadata_changed(entry, event.at, "renamed")

    def _on_container_deleted(self, entry: ContainerState, event: ContainerDeleted, now: Instant) -> None:
        if not entry.deleted:
            entry.published_metadata = entry.published_metadata or entry.metadata
        entry.deleted_at = event.at
        self._store.set_deleted(entry)
        self._emitter.metadata_changed(entry, event.at, "deleted")
        self._advance(entry, event, now)

    def update_metadata(self, metadata: Metadata) -> None:
        """Store the current metadata of a container."""
        self._store.update_metadata(metadata)

    def pod_labels(self, metadata: Metadata) -> Labels | None:
        """Return the labels of a container's pod, as far as known."""
        return self._store.pod_labels(metadata)

    def take_overdue_exits(self, now: Instant) -> list[ContainerKey]:
        """Return the containers whose pending exit's deadline has passed; pass them to ``resolve_overdue_exits``."""
        return self._pending_exits.pop_due(now.monotonic)

    def resolve_overdue_exits(
        self, keys: Iterable[ContainerKey], now: Instant, recorded: Mapping[ContainerKey, RecordedExit] = {}
    ) -> list[Transition]:
        """Resolve pending exits whose deadline has passed; ``recorded``: CRI's records, with the times of start."""
        transitions: list[Transition] = []
        for key in keys:
            entry = self._store.get_or_create(key)
            pending = entry.state.find(PendingExit)
            if pending is None or pending.deadline > now.monotonic:  # another event was faster
                continue
            if key in recorded and entry.incarnation is None:
                self._apply_recorded_exit(entry, recorded[key], now)
            self._step(entry, StartOverdue(), now)
            transitions += self._finish(entry)
        return transitions

    # --- task queries ---

    def schedule_query(self, key: ContainerKey, due: int = 0) -> None:
        """Schedule a query of a container's task, immediately or at ``due`` (monotonic)."""
        self._scheduled_queries.add(key, due)

    def due_queries(self, now: Instant) -> list[TaskQuery]:
        """Return the due queries; each must be completed with ``apply_query_result`` or ``query_failed``."""
        return [self.make_query(key) for key in self._scheduled_queries.pop_due(now.monotonic)]

    def make_query(self, key: ContainerKey) -> TaskQuery:
        """Return a query of a container's task."""
        entry = self._store.find(key)
        return TaskQuery(key, entry.generation if entry is not None else 0)

    def apply_query_result(
        self, query: TaskQuery, task: Task | None, now: Instant, recorded: RecordedExit | None = None
    ) -> list[Transition]:
        """Apply the result of a task query; None: there is no such task, and ``recorded`` is CRI's record of its exit.

        If events arrived after the query was made, the order of event and result is unknown, so the query is repeated.
        The query must have been made since the last call of ``disconnect``.
        """
        if task is not None and task.status is TaskStatus.UNKNOWN:
            self.query_failed(query)
            return []
        entry = self._store.get_or_create(query.key)
        if entry.generation != query.generation:
            self.schedule_query(query.key)
            return self._finish(entry)
        entry.generation += 1  # other results in flight are older
        was_running = entry.incarnation is not None
        if task is None and recorded is not None and (was_running or entry.metadata is not None):
            self._apply_recorded_exit(entry, recorded, now)
        self._step(entry, self._report(query.key, task), now)
        if entry.incarnation is None:
            if was_running and not entry.check_delay:
                entry.check_delay = FIRST_START_CHECK_NS  # no event has reported the exit
            self._start_checks.resume(entry, now)
        return self._finish(entry)

    def query_failed(self, query: TaskQuery) -> None:
        """Handle a failed task query: the state is kept as unconfirmed, and the audit repeats the query."""
        entry = self._store.get_or_create(query.key)
        if entry.generation != query.generation:
            self.schedule_query(query.key)
        else:
            entry.state, _ = step(entry.state, QueryFailed(), _NO_TIME)
        self._store.note_change(entry)

    def apply_task_state(self, key: ContainerKey, task: Task | None, now: Instant) -> list[Transition]:
        """Apply the state of a container's task as reported by containerd; None: there is no task."""
        entry = self._store.get_or_create(key)
        self._step(entry, self._report(key, task), now)
        return self._finish(entry)

    def apply_recorded_exit(self, recorded: RecordedExit, now: Instant) -> list[Transition]:
        """Apply CRI's record of the exit of a container for which containerd lists no task."""
        entry = self._store.get_or_create(recorded.key)
        self._apply_recorded_exit(entry, recorded, now)
        return self._finish(entry)

    def _apply_recorded_exit(self, entry: ContainerState, recorded: RecordedExit, now: Instant) -> None:
        effects = self._step(entry, ExitReported(recorded, self._store.has_synced(entry.key.namespace)), now)
        self.counts["cri_exit"] += any(isinstance(effect, Exited) and effect.origin == "inferred" for effect in effects)

    def _report(
        self, key: ContainerKey, task: Task | None
    ) -> NoTaskReported | CreatedReported | RunningReported | StoppedReported:
        if task is None:
            return NoTaskReported()
        if task.status is TaskStatus.CREATED:
            return CreatedReported(task.pid)
        report = RunningReported if task.running else StoppedReported
        return report(task, self._store.has_synced(key.namespace))

    def apply_wait_result(self, key: ContainerKey, pid: int, exit_status: ExitStatus, now: Instant) -> None:
        """Process the result of Tasks.Wait: the exit event is in flight, or lost.

        The exit event takes precedence, because it has the time of publication and arrives in order. If it does not
        arrive, the exit status is known nevertheless.
        """
        entry = self._store.get_or_create(key)
        entry.generation += bool(self._step(entry, TaskWaited(pid, exit_status), now))
        self._store.note_change(entry)

    # --- start checks ---

    def begin_start_checks(self, key: ContainerKey, now: Instant) -> None:
        """Check soon, and then at growing intervals, whether a container has a task whose events do not arrive."""
        self._start_checks.begin(self._store.get_or_create(key), now)

    def due_start_checks(self, now: Instant) -> list[TaskQuery]:
        """Return the due start checks; each must be completed with ``apply_start_check``."""
        return [self.make_query(key) for key in self._start_checks.schedule.pop_due(now.monotonic)]

    def apply_start_check(self, check: TaskQuery, task: Task | None, now: Instant) -> bool:
        """Apply the result of a start check; None: no task was found, or its state is unknown.

        Returns:
            Whether the container has a task that no event has reported so far.
        """
        entry = self._store.find(check.key)
        if entry is None or entry.incarnation is not None or not entry.check_delay:
            return False  # an event or a query was faster
        if task is not None and (entry.generation != check.generation or not _is_news(entry.state, task)):
            task = None
        if task is not None:
            entry.generation += 1  # query results in flight are older
            self._step(entry, TaskFound(task), now)
        self._start_checks.continue_(entry, now)
        return task is not None

    # --- snapshots ---

    @property
    def preexisting_count(self) -> int:
        """Return the number of incarnations that began before the bridge watched."""
        return self._emitter.preexisting_count

    def snapshot_records(self, now: Instant) -> list[Transition]:
        """Return a ``present`` transition for every running container in scope; the caller must publish them."""
        for entry, incarnation in self._store.incarnations():
            if incarnation.preexisting:
                incarnation.preexisting = False
                self._store.note_change(entry)
        return self._emitter.present(now)

    def running_containers(self, now: Instant) -> list[Transition]:
        """Return a ``present`` record for every running container in scope, without counting it as published."""
        return self._emitter.present(now)

    @property
    def unsynced_namespaces(self) -> set[str] | None:
        """Return the namespaces that are not synced; None if no namespace is synced."""
        return self._store.unsynced_namespaces

    def has_synced(self, namespace: str) -> bool:
        """Return whether a namespace is synced, so that an unknown container in it is new (client-go's HasSynced)."""
        return self._store.has_synced(namespace)

    def has_synced_exits(self, namespace: str) -> bool:
        """Return whether an unknown container of CRI that has exited is new."""
        return self.exits_synced and self.has_synced(namespace)

    def mark_synced(self, failed: set[str]) -> None:
        """Set all namespaces but the failed ones to synced: a snapshot is complete, so unknown containers are new."""
        self._store.mark_synced(failed)

    def emit_metadata_change(self, key: ContainerKey, now: Instant) -> list[Transition]:
        """Emit a change of a container's metadata that a listing has shown, as an additional event."""
        entry = self._store.get_or_create(key)
        self._emitter.metadata_changed(entry, now.wall)
        return self._finish(entry)

    def set_deleted(self, entry: ContainerState) -> None:
        """Note that a listing does not contain a container any more; whether its task still runs is up to a query."""
        self._store.set_deleted(entry)
        self._start_checks.end(entry)
        self._store.note_change(entry)

    # --- held exits ---

    def take_due_exits(self, now: Instant) -> list[DueExit]:
        """Return the held exits whose time has passed.

        Pass them to ``release_exits`` after all events received so far: an OOM event may be among these.
        """
        return self._emitter.take_due_exits(now)

    def release_exits(self, due: Collection[DueExit]) -> list[Transition]:
        """Emit due exits that are still held; without an OOM event, ``oom`` is False where that is known."""
        transitions: list[Transition] = []
        for each in due:
            if (entry := self._emitter.release_due_exit(each)) is not None:
                transitions += self._finish(entry)
        return transitions

    def release_all_exits(self) -> list[Transition]:
        """Emit all held exits at once, before a snapshot or the end of the connection; ``oom`` is unknown."""
        transitions: list[Transition] = []
        for entry in [entry for entry in self._store.entries() if entry.held_exit is not None]:
            self._emitter.release_exit(entry)
            transitions += self._finish(entry)
        return transitions

    # --- connections and settings ---

    @property
    def additional_events(self) -> Collection[AdditionalEventType]:
        """Return the optional event types to emit; may be replaced at any time."""
        return self._emitter.additional_events

    @additional_events.setter
    def additional_events(self, value: Collection[AdditionalEventType]) -> None:
        self._emitter.additional_events = value

    @property
    def connected_at(self) -> int:
        """Return since when (wall clock) no event is missed."""
        return self._emitter.connected_at

    def connect(self, now: Instant) -> None:
        """Handle a new stream: from now on no event is missed."""
        self._emitter.connected_at = now.wall

    def disconnect(self) -> None:
        """Handle the end of the stream: from now on containers may change unseen."""
        self._scheduled_queries.clear()
        self._start_checks.clear(self._store.all_entries())
        for entry in self._store.all_entries():
            entry.generation = 0
            entry.state, _ = step(entry.state, Disconnected(), _NO_TIME)
            entry.deleted &= entry.metadata is not None  # an unknown container may be recreated unseen
            self._await_start(entry)

    def exit_all(self, now: Instant) -> list[Transition]:
        """Emit the exit of every incarnation, after a reboot or a replacement of the engine, and clear all state."""
        transitions = self.release_all_exits()
        for entry in [entry for entry in self._store.entries() if entry.state.find(PendingExit) is not None]:
            self._step(entry, StartOverdue(), now)
        for entry, _incarnation in list(self._store.incarnations()):
            while entry.incarnation is not None:  # the run, and runs after it that were not published yet
                self._step(entry, NoTaskReported(), now)
            self._step(entry, StartOverdue(), now)
        transitions += self._emitter.take()
        self._remove_all(lambda _: True)
        self._store.unsynced_namespaces = set()
        return transitions

    def apply_filters(self, is_watched: Callable[[str], bool]) -> None:
        """Apply other filters of namespaces and containers from now on.

        Containers in namespaces that are not watched any more are removed. No namespace is synced afterwards: an
        unknown container may be new, or the old filters may have excluded it.
        """
        self._remove_all(lambda key: not is_watched(key.namespace))
        self._store.unsynced_namespaces = None
        self.exits_synced = False

    def apply_label_rules(self, rules: LabelRules) -> None:
        """Keep only labels that the rules keep, also in metadata that is still being fetched."""
        self._store.apply_label_rules(rules)

    def reevaluate_scope(self, key: ContainerKey) -> None:
        """Reevaluate from the current metadata whether a container's incarnation is in scope.

        A container that enters the scope is first published in the next snapshot; one that leaves it is omitted there.
        """
        entry = self._store.get_or_create(key)
        if (incarnation := entry.incarnation) is not None:
            matches = in_scope(entry.metadata)
            incarnation.was_published |= incarnation.in_scope and not incarnation.preexisting
            incarnation.preexisting = matches and (incarnation.preexisting or not incarnation.in_scope)
            incarnation.in_scope = matches
        self._store.note_change(entry)

    # --- state and checkpoint ---

    def entries(self) -> Iterator[ContainerState]:
        """Return the state of every container with metadata or an incarnation."""
        return self._store.entries()

    def find(self, key: ContainerKey) -> ContainerState | None:
        """Return the state of a container id, if any."""
        return self._store.find(key)

    def incarnations(self) -> Iterator[tuple[ContainerState, Incarnation]]:
        """Return every incarnation, in scope or not."""
        return self._store.incarnations()

    def next_due(self, *, start_checks: bool = True) -> int | None:
        """Return when (monotonic) the next pending or held exit, query or start check is due; None if there is none."""
        dues = [
            self._scheduled_queries.next_due(),
            self._start_checks.schedule.next_due() if start_checks else None,
            self._pending_exits.next_due(),
            self._emitter.next_release(),
        ]
        return min((due for due in dues if due is not None), default=None)

    @property
    def changed(self) -> bool:
        """Return whether anything has changed since the last call of ``changes``."""
        return self._store.changed

    def changes(self) -> Iterator[StateChange]:
        """Yield the changes since the last call."""
        return self._store.changes()

    def restore(
        self,
        entries: Iterable[ContainerState],
        unsynced_namespaces: set[str] | None,
        now: Instant,
        *,
        persisted: bool = True,
    ) -> None:
        """Restore the state of an earlier moment; containers may have changed unseen since then.

        ``persisted``: the checkpoint has this state; otherwise, it counts as changed.
        """
        deadline = now.monotonic + PENDING_EXIT_NS
        for entry in entries:
            entry.state = _with_deadline(entry.state, deadline)
            self._store.add(entry, persisted=persisted)
            self._emitter.restore(entry, now)
        self._store.unsynced_namespaces = unsynced_namespaces
        self.disconnect()

    # --- effects ---

    def _step(self, entry: ContainerState, input_: object, now: Instant) -> Effects:
        """Pass an input to the machine, carry out the effects, and wait for the start of a pending exit."""
        before = entry.state
        entry.state, effects = step(before, input_, now)
        for effect in effects:
            self._effects[type(effect)](entry, effect, now)
        if entry.state.evidence is not before.evidence:
            self._await_start(entry)
        return effects

    def _finish(self, entry: ContainerState) -> list[Transition]:
        """Note the change of a state; return the emitted transitions."""
        self._store.note_change(entry)
        return self._emitter.take()

    def _await_start(self, entry: ContainerState) -> None:
        self._pending_exits.discard(entry.key)
        if (pending := entry.state.find(PendingExit)) is not None:
            self._pending_exits.add(entry.key, pending.deadline)

    def _count(self, _entry: ContainerState, effect: Count, _now: Instant) -> None:
        self.counts[effect.name] += 1

    def _remove_all(self, matches: Callable[[ContainerKey], bool]) -> None:
        for key in self._store.remove_all(matches):
            for schedule in (self._scheduled_queries, self._start_checks.schedule, self._pending_exits):
                schedule.discard(key)
            self._emitter.forget(key)


_NO_TIME = Instant(0, 0)  # for inputs whose handling does not depend on the time


def _is_news(state: TaskState, task: Task) -> bool:
    """Return whether a start check has found a task that is not known yet."""
    expected = task.status is TaskStatus.CREATED and state.expects_start(task.pid)
    known = task.status is TaskStatus.STOPPED and state.is_known_exit(task)
    return task.pid != 0 and not known and not expected


def _with_deadline(state: TaskState, deadline: int) -> TaskState:
    """Return the state with another deadline of its pending exit."""
    evidence = tuple(
        replace(each, deadline=deadline) if isinstance(each, PendingExit) else each for each in state.evidence
    )
    return replace(state, evidence=evidence)
