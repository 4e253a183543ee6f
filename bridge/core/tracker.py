"""State machine of incarnations: turns containerd's events and query results into well-formed transitions.

Invariants, for any input in any order:

- An incarnation (one run of a container) begins with one ``started`` (or is preexisting), continues with ``paused``
  and ``unpaused`` in turn, and finishes with at most one ``exited``. No transition follows the exit.
- STOPPED overrides RUNNING of the same pid: a pid that has exited under an id does not return.
- If an event alone is inconclusive, the tracker schedules a task query (``due_queries``), and its result decides
  (``apply_query_result``), unless more events arrived in the meantime: then the tracker schedules another query.
- A container whose start is not known is checked at growing intervals (``due_start_checks``), because its shim may send
  no events. A check only finds a task; a query decides, when the task's events have had time to arrive.

The tracker does no I/O and takes the time only from its arguments. Sources of the rules: containerd's shims, which
publish after they change state, late and repeatedly, and whalewatcher, which defines the tasks that count as running.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from msgspec.structs import replace

from bridge.core.container_metadata import incarnation_id
from bridge.core.container_state import ContainerState, ExitInfo, HeldExit, Incarnation, TaskQuery, Transition
from bridge.core.container_store import FIRST_START_CHECK_NS, PENDING_EXIT_NS
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    ExitStatus,
    Instant,
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
from bridge.core.records import AdditionalEventType, Origin
from bridge.core.time import MILLISECOND, SECOND
from bridge.core.transition_builder import TransitionBuilder, in_scope

EXIT_GRACE_NS = 5 * SECOND  # wait for the exit event of a task that must have exited, before the task is queried
WAITED_EXIT_GRACE_NS = 2 * SECOND  # the same if Tasks.Wait has returned the exit status
START_GRACE_NS = 2 * SECOND  # wait for the events of a task that a start check has found, before it is queried

# The shim publishes the OOM event and the exit from different threads, so the OOM event may come second. An OOM kill of
# the initial process looks like any SIGKILL, and few consumers need to know of one at once; other exits are held only
# because an OOM kill of a child process may have caused them. The grace times are ten times the longest delays seen.
OOM_GRACE_NS = 30 * MILLISECOND
KILLED_OOM_GRACE_NS = 250 * MILLISECOND
SIGKILL_STATUS = 128 + 9
# containerd before 2.2 starts to watch for OOM kills only after it has started the container.
OOM_BLIND_NS = SECOND
# Runtimes whose shim, as far as known, publishes each OOM kill in the container's cgroup.
OOM_REPORTING_RUNTIMES = frozenset({"io.containerd.runc.v2", "io.containerd.runc.v1"})


class Tracker(TransitionBuilder):
    """Track the incarnations of all containers of one containerd.

    Args:
        boot_id: The boot id of the host, part of each incarnation id.
        additional_events: The optional event types to emit; may be replaced at any time.
    """

    def __init__(self, boot_id: str, additional_events: Collection[AdditionalEventType] = ()) -> None:
        super().__init__(additional_events)
        self.counts: Counter[str] = Counter()
        self._boot_id = boot_id

    # --- inputs ---

    def process_event(self, event: ContainerEvent, now: Instant) -> list[Transition]:
        """Process one event; return the resulting transitions in order, often none."""
        entry = self._get_or_create(event.key)
        if not isinstance(event, TaskOOM):
            entry.generation += 1
        _HANDLERS[type(event)](self, entry, event, now)
        return self._finish_step(entry)

    def expire_pending_exits(self, now: Instant) -> list[Transition]:
        """Resolve the pending exits whose deadline has passed."""
        transitions: list[Transition] = []
        for key in [key for key in self._pending_exits if self._entries[key].pending_exit_deadline <= now.monotonic]:
            entry = self._entries[key]
            self._resolve_pending_exit(entry, now)
            transitions += self._finish_step(entry)
        return transitions

    def apply_query_result(self, query: TaskQuery, task: Task | None, now: Instant) -> list[Transition]:
        """Apply the result of a task query; None: there is no such task.

        If events arrived after the query was made, the order of event and result is unknown, so the query is repeated.
        """
        entry = self._get_or_create(query.key)
        if task is not None and task.status is TaskStatus.UNKNOWN:
            self.query_failed(query)
            return []
        if entry.generation != query.generation:
            self.schedule_query(query.key)
            return self._finish_step(entry)
        entry.generation += 1  # other results in flight are older
        was_running = entry.incarnation is not None
        transitions = self.apply_task_state(query.key, task, now)
        if was_running and entry.incarnation is None and not entry.start_check_delay:
            entry.start_check_delay = FIRST_START_CHECK_NS  # no event has reported the exit
        self._resume_start_checks(entry, now)
        return transitions

    def query_failed(self, query: TaskQuery) -> None:
        """Handle a failed task query: the state is kept as unconfirmed, and the audit repeats the query."""
        entry = self._get_or_create(query.key)
        if entry.generation != query.generation:
            self.schedule_query(query.key)
        elif entry.incarnation is None:
            entry.state_unknown = True
        else:
            entry.incarnation.confirmed = False
        self._finish_step(entry)

    def apply_start_check(self, check: TaskQuery, task: Task | None, now: Instant) -> bool:
        """Apply the result of a start check; None: no task was found, or its state is unknown.

        Returns:
            Whether the container has a task that no event has reported so far.
        """
        entry = self.find(check.key)
        if entry is None or entry.incarnation is not None or not entry.start_check_delay:
            return False  # an event or a query was faster
        found = (
            task is not None
            and task.pid != 0
            and entry.generation == check.generation
            and not entry.is_known(task.pid)
            and not (task.status is TaskStatus.CREATED and entry.expects_start(task.pid))
        )
        if task is not None and found:
            entry.generation += 1  # query results in flight are older
            if task.status is TaskStatus.CREATED:
                self.schedule_query(check.key)
            else:
                entry.found_pid = task.pid if task.running else 0
                self.schedule_query(check.key, now.monotonic + START_GRACE_NS)
        self._continue_start_checks(entry, now)
        return found

    def apply_wait_result(self, key: ContainerKey, pid: int, exit_status: ExitStatus, now: Instant) -> None:
        """Process the result of Tasks.Wait: the exit event is in flight, or lost.

        The exit event takes precedence, because it has the time of publication and arrives in order. If it does not
        arrive, the exit status is known nevertheless.
        """
        entry = self._get_or_create(key)
        running = entry.incarnation is not None and entry.incarnation.pid == pid
        if running or (entry.expects_start(pid) and not entry.has_exited(pid)):
            if exit_status.exit_status is not None or not entry.has_waited_exit(pid):
                entry.waited_exit = (pid, exit_status)
            entry.generation += 1
            self.schedule_query(key, now.monotonic + WAITED_EXIT_GRACE_NS)
        self._finish_step(entry)

    def apply_task_state(self, key: ContainerKey, task: Task | None, now: Instant) -> list[Transition]:
        """Apply the state of a container's task as reported by containerd; None: there is no task."""
        entry = self._get_or_create(key)
        if task is not None and not task.pid:  # the shim is gone: the task can only be the known one
            if entry.incarnation is None:
                entry.state_unknown = False
                return self._finish_step(entry)
            task = replace(task, pid=entry.incarnation.pid)
        if task is None or task.status is TaskStatus.CREATED:
            self._sync_no_task(entry, task, now)
        else:
            self._sync_task(entry, task, now)
        entry.state_unknown = False
        entry.last_change = now.monotonic
        return self._finish_step(entry)

    def exit_all(self, now: Instant) -> list[Transition]:
        """Emit the exit of every incarnation, after a reboot or a replacement of the engine, and clear all state."""
        released = self.release_all_exits()
        for key in list(self._pending_exits):
            self._resolve_pending_exit(self._entries[key], now)
        for entry, _incarnation in list(self.incarnations()):
            self._exit(entry, "inferred", now.wall, ExitInfo())
        self._changed.update(dict.fromkeys([*self._entries, *self._tombstones], True))
        for collection in (self._entries, self._tombstones, self._sandboxes):
            collection.clear()
        self._scheduled_queries.clear()
        self._start_checks.clear()
        self._unsynced_namespaces = set()
        return released + self._take_transitions()

    # --- one handler per event type ---

    def _on_container_created(self, entry: ContainerState, event: ContainerCreated, now: Instant) -> None:
        entry.state_unknown = False
        self.begin_start_checks(entry.key, now)
        self._emit_metadata_change(entry, event.at, "created")

    def _on_container_updated(self, entry: ContainerState, event: ContainerUpdated, now: Instant) -> None:
        """Emit a new name; the metadata is current already, because it is fetched for each such event."""
        if entry.incarnation is None:
            self.begin_start_checks(entry.key, now)  # clients also update a container when they start it again
        self._emit_metadata_change(entry, event.at, "renamed")

    def _on_container_deleted(self, entry: ContainerState, event: ContainerDeleted, now: Instant) -> None:
        if not entry.deleted:
            entry.published_metadata = entry.published_metadata or entry.metadata
        entry.deleted_at = event.at
        self._mark_deleted(entry)
        self._emit_metadata_change(entry, event.at, "deleted")
        if entry.incarnation is not None:
            self.schedule_query(entry.key, now.monotonic + EXIT_GRACE_NS)

    def _on_task_created(self, entry: ContainerState, event: TaskCreated, now: Instant) -> None:
        if entry.is_known(event.pid):
            self.counts["late"] += 1
            return
        self._release_exit(entry)  # from now on, an OOM event may be the new task's
        entry.add_created_pid(event.pid)
        entry.remove_oom_pid(event.pid)
        entry.stopped_deadline = 0
        self.begin_start_checks(entry.key, now)
        if entry.incarnation is not None:
            entry.incarnation.watched_from = 0  # from now on, an OOM event may be the other task's
            self.schedule_query(entry.key, now.monotonic + EXIT_GRACE_NS)

    def _on_task_started(self, entry: ContainerState, event: TaskStarted, now: Instant) -> None:
        if entry.is_known(event.pid):
            self.counts["duplicate"] += 1
            if entry.incarnation is not None and entry.incarnation.pid == event.pid:
                entry.incarnation.confirmed = True
                entry.start_check_delay = 0
            return
        late = entry.is_late(event.at, now)
        if late or entry.incarnation is not None:
            self.schedule_query(entry.key)
        if entry.incarnation is not None or (late and not entry.expects_start(event.pid)):
            self.counts["unconfirmed_start"] += 1
            entry.unconfirmed_start = event
            return
        if entry.pending_exit is not None and entry.pending_exit.pid != event.pid:
            self._resolve_pending_exit(entry, now)
        self._start(entry, event.pid, "live", event.at, watched_from=event.at)  # a task found by a check may be newer
        if entry.has_waited_exit(event.pid):
            self.schedule_query(entry.key, now.monotonic + WAITED_EXIT_GRACE_NS)
        self._apply_pending_exit(entry, received=now)

    def _on_task_exited(self, entry: ContainerState, event: TaskExited, now: Instant) -> None:
        if event.exec_id:
            entry.generation -= 1  # an exec process does not affect the container
            self.counts["exec_exit"] += 1
        elif entry.incarnation is not None and entry.incarnation.pid == event.pid:
            self._exit(entry, "live", event.at, ExitInfo(event.status, event.exited_at), received=now)
            self._resume_start_checks(entry, now)
        elif event.pid == 0:
            if entry.incarnation is not None:
                self.schedule_query(entry.key)
        elif entry.has_exited(event.pid):
            self.counts["duplicate"] += 1
        else:
            self._defer_exit(entry, event, now)

    def _on_task_deleted(self, entry: ContainerState, event: TaskDeleted, now: Instant) -> None:
        if event.exec_id:
            entry.generation -= 1
        elif entry.incarnation is None:  # the exit was emitted already or is pending, or the task was never known
            self._end_start_checks_of(entry, event.pid)
        elif event.pid == entry.incarnation.pid:
            self._exit(entry, "inferred", now.wall, ExitInfo(event.status, event.exited_at), received=now)
            self._resume_start_checks(entry, now)
        elif event.pid == 0:
            self.schedule_query(entry.key)

    def _on_task_paused(self, entry: ContainerState, event: TaskPaused, now: Instant) -> None:
        self._apply_pause(entry, event.at, now, paused=True)

    def _on_task_resumed(self, entry: ContainerState, event: TaskResumed, now: Instant) -> None:
        self._apply_pause(entry, event.at, now, paused=False)

    def _on_task_oom(self, entry: ContainerState, event: TaskOOM, _now: Instant) -> None:
        self._emit_additional(entry, "oom", "live", event.at, entry.metadata)
        if entry.held_exit is not None:
            self._release_exit(entry, oom=True)
        elif pid := entry.newest_pid():
            entry.add_oom_pid(pid)
        elif entry.exited_pids:
            self.counts["late"] += 1

    # --- building blocks ---

    def _apply_pause(self, entry: ContainerState, at: int, now: Instant, *, paused: bool) -> None:
        """Emit a pause or resume that fits a confirmed incarnation; otherwise query, because the event has no pid."""
        incarnation, late = entry.incarnation, entry.is_late(at, now)
        if incarnation is not None and incarnation.confirmed and incarnation.paused is not paused and not late:
            self._set_paused(entry, incarnation, "live", at, paused=paused)
        else:
            self.counts["unexpected_pause"] += 1
            self.schedule_query(entry.key)

    def _defer_exit(self, entry: ContainerState, event: TaskExited, now: Instant) -> None:
        """Defer an exit whose start has not been seen; if another task is believed to be running, query it."""
        if entry.pending_exit is not None:
            self._resolve_pending_exit(entry, now)
        entry.pending_exit, entry.pending_exit_deadline = event, now.monotonic + PENDING_EXIT_NS
        self._pending_exits.add(entry.key)
        self._end_start_checks_of(entry, event.pid)
        if entry.incarnation is not None:
            self.schedule_query(entry.key)

    def _end_start_checks_of(self, entry: ContainerState, pid: int) -> None:
        """End the start checks if a task is gone whose shim has reported it from the creation on."""
        if pid in entry.created_pids[-1:]:
            self._end_start_checks(entry)

    def _resolve_pending_exit(self, entry: ContainerState, now: Instant) -> None:
        """Resolve a pending exit: its start fell into a gap, or its task was never started.

        During another incarnation, the exit can only be a late event of an earlier one, and is ignored.
        """
        pending = entry.pending_exit
        assert pending is not None  # noqa: S101 (callers check that an exit is pending)
        if entry.is_unstarted(pending.pid) or entry.incarnation is not None:
            self.counts["never_started" if entry.incarnation is None else "late"] += 1
            entry.exited_pids.append(pending.pid)
            self._clear_pending_exit(entry)
        else:
            self._start(entry, pending.pid, "inferred", now.wall)
            self._apply_pending_exit(entry)

    def _apply_pending_exit(self, entry: ContainerState, received: Instant | None = None) -> None:
        """Emit the exit of an incarnation that has just started if its exit arrived before."""
        pending = entry.pending_exit
        if pending is not None:
            self._exit(entry, "live", pending.at, ExitInfo(pending.status, pending.exited_at), received=received)
            self._clear_pending_exit(entry)

    def _clear_pending_exit(self, entry: ContainerState) -> None:
        entry.pending_exit = None
        self._pending_exits.discard(entry.key)

    def _sync_no_task(self, entry: ContainerState, task: Task | None, now: Instant) -> None:
        """Apply a reported state without a task, or with a task that has not started yet."""
        incarnation = entry.incarnation
        if task is not None and entry.is_known(task.pid):
            return  # the result is older than the state
        if incarnation is not None:
            self._exit(entry, "inferred", now.wall, ExitInfo())
        else:
            self._emit_found_run(entry, None if task is None else task.pid, now)
        if task is not None:
            if task.pid not in entry.created_pids:
                entry.add_created_pid(task.pid)
                self.begin_start_checks(entry.key, now)
        elif entry.pending_exit is not None and entry.is_unconfirmed(entry.pending_exit.pid):
            self._resolve_pending_exit(entry, now)

    def _emit_found_run(self, entry: ContainerState, pid: int | None, now: Instant) -> None:
        """Emit a run that only a start check has found, and that is over: now there is another task, or none."""
        if entry.found_pid not in (0, pid) and not entry.has_exited(entry.found_pid):
            self._start(entry, entry.found_pid, "inferred", now.wall)
            self._exit(entry, "inferred", now.wall, ExitInfo())

    def _sync_task(self, entry: ContainerState, task: Task, now: Instant) -> None:
        """Apply a task that is running or stopped."""
        preexisting = entry.state_unknown or not self.has_synced(entry.key.namespace)
        if entry.incarnation is not None and entry.incarnation.pid != task.pid:
            self._exit(entry, "inferred", now.wall, ExitInfo())
        if task.pid in entry.exited_pids:
            return
        if entry.incarnation is None:
            self._emit_found_run(entry, task.pid, now)
        if entry.pending_exit is not None and entry.pending_exit.pid != task.pid:
            self._resolve_pending_exit(entry, now)
        if entry.pending_exit is not None:
            if task.running or not entry.is_unstarted(task.pid):
                self._start(entry, task.pid, "inferred", now.wall)
                self._apply_pending_exit(entry)
        elif task.running:
            self._sync_running(entry, task, now, preexisting=preexisting)
        else:
            self._sync_stopped(entry, task, now, preexisting=preexisting)

    def _sync_running(self, entry: ContainerState, task: Task, now: Instant, *, preexisting: bool) -> None:
        if entry.incarnation is None:
            self._start(entry, task.pid, "inferred", now.wall, preexisting=preexisting, paused=task.paused)
        incarnation = entry.incarnation
        assert incarnation is not None  # noqa: S101 (started above, or earlier)
        incarnation.confirmed = True
        if incarnation.paused is not task.paused:
            self._set_paused(entry, incarnation, "inferred", now.wall, paused=task.paused)

    def _sync_stopped(self, entry: ContainerState, task: Task, now: Instant, *, preexisting: bool) -> None:
        if entry.incarnation is None:
            if entry.is_unstarted(task.pid) and self._awaits_exit_event(entry, now):
                return
            if preexisting:
                entry.exited_pids.append(task.pid)  # it exited before the bridge watched
                return
            self._start(entry, task.pid, "inferred", now.wall)
        self._exit(entry, "inferred", now.wall, ExitInfo(task.exit_status, task.exited_at))

    def _awaits_exit_event(self, entry: ContainerState, now: Instant) -> bool:
        """Return whether the exit event of a stopped task without a start may still arrive.

        The event shows that the task was killed before its start. If it does not arrive, the shim has become silent,
        and the start has been missed as well.
        """
        entry.stopped_deadline = entry.stopped_deadline or now.monotonic + PENDING_EXIT_NS
        if now.monotonic < entry.stopped_deadline:
            self.schedule_query(entry.key, entry.stopped_deadline)
            return True
        return False

    def _start(
        self,
        entry: ContainerState,
        pid: int,
        origin: Origin,
        at: int,
        *,
        preexisting: bool = False,
        paused: bool = False,
        watched_from: int = 0,
    ) -> None:
        """Start an incarnation; a preexisting one is first published as ``present`` instead of ``started``."""
        if entry.unconfirmed_start is not None and entry.unconfirmed_start.pid == pid:
            origin, at, preexisting = "live", entry.unconfirmed_start.at, False
        entry.state_unknown, entry.found_pid = False, 0
        self._end_start_checks(entry, resume=origin == "inferred" and not preexisting)
        self._release_exit(entry)
        entry.incarnation = Incarnation(
            pid=pid,
            id=incarnation_id(self._boot_id, pid),
            paused=preexisting and paused,
            confirmed=True,
            in_scope=in_scope(entry.metadata),
            preexisting=preexisting,
            watched_from=watched_from,
        )
        if preexisting:
            self.preexisting_count += entry.incarnation.in_scope
        else:
            self._emit(entry, entry.incarnation, "started", origin, at)

    def _set_paused(
        self, entry: ContainerState, incarnation: Incarnation, origin: Origin, at: int, *, paused: bool
    ) -> None:
        incarnation.paused = paused
        if not incarnation.preexisting:
            self._emit(entry, incarnation, "paused" if paused else "unpaused", origin, at)

    def _exit(
        self,
        entry: ContainerState,
        origin: Origin,
        at: int,
        exit_info: ExitInfo,
        *,
        received: Instant | None = None,
    ) -> None:
        """End the incarnation.

        ``received``: when the event arrived that shows the exit; it is then held if no OOM event came before. An exit
        that a query shows is not held: it comes seconds after the exit.
        """
        incarnation = entry.incarnation
        assert incarnation is not None  # noqa: S101 (only a started incarnation can exit)
        if exit_info.status is None and entry.waited_exit is not None and entry.waited_exit[0] == incarnation.pid:
            waited = entry.waited_exit[1]
            exit_info = ExitInfo(waited.exit_status, waited.exited_at)
        self._discard_stale_exit(entry, incarnation, exit_info)
        oom = True if entry.remove_oom_pid(incarnation.pid) else None
        entry.incarnation, entry.waited_exit, entry.stopped_deadline = None, None, 0
        entry.exited_pids.append(incarnation.pid)
        if entry.unconfirmed_start is None:
            self._scheduled_queries.discard(entry.key)
        was_paused, incarnation.paused = incarnation.paused and not incarnation.preexisting, False
        if incarnation.preexisting:
            self._emit(entry, incarnation, "started", "inferred", at)
        exit_info = exit_info._replace(oom=oom)
        if received is None or oom or not incarnation.in_scope:
            self._emit(entry, incarnation, "exited", origin, at, exit_info)
        else:
            exited = self._make_transition(entry, incarnation, "exited", origin, at, exit_info)
            grace = KILLED_OOM_GRACE_NS if exit_info.status == SIGKILL_STATUS else OOM_GRACE_NS
            known = origin == "live" and _reports_oom(entry, incarnation, exit_info)
            held = HeldExit((exited,), received.monotonic + grace, False if known else None, was_paused)
            self._hold_exit(entry, held)
        if entry.deleted:
            self._emit_metadata_change(entry, at)

    def _discard_stale_exit(self, entry: ContainerState, incarnation: Incarnation, exit_info: ExitInfo) -> None:
        """Discard a pending exit that is older than this exit: it belongs to an earlier incarnation."""
        pending = entry.pending_exit
        if (
            pending is None
            or pending.pid == incarnation.pid
            or pending.exited_at is None
            or exit_info.exited_at is None
        ):
            return
        if pending.exited_at <= exit_info.exited_at:
            self.counts["late"] += 1
            entry.exited_pids.append(pending.pid)
            self._clear_pending_exit(entry)


def _reports_oom(entry: ContainerState, incarnation: Incarnation, exit_info: ExitInfo) -> bool:
    """Return whether containerd would have sent an OOM event if an OOM kill had led to this exit.

    SIGKILL proves nothing: there is no OOM event if the whole machine is out of memory on cgroup v1, or if the shim is
    too late to read the counters of a removed cgroup.
    """
    if entry.metadata is None or entry.metadata.runtime not in OOM_REPORTING_RUNTIMES:
        return False
    if not incarnation.watched_from or exit_info.exited_at is None or exit_info.status == SIGKILL_STATUS:
        return False
    return exit_info.exited_at - incarnation.watched_from >= OOM_BLIND_NS


_HANDLERS: dict[type, Callable[..., None]] = {
    ContainerCreated: Tracker._on_container_created,
    ContainerUpdated: Tracker._on_container_updated,
    ContainerDeleted: Tracker._on_container_deleted,
    TaskCreated: Tracker._on_task_created,
    TaskStarted: Tracker._on_task_started,
    TaskExited: Tracker._on_task_exited,
    TaskDeleted: Tracker._on_task_deleted,
    TaskPaused: Tracker._on_task_paused,
    TaskResumed: Tracker._on_task_resumed,
    TaskOOM: Tracker._on_task_oom,
}
