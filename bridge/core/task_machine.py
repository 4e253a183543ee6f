"""State machine of a container's task: (state, input, now) -> (new state, effects).

Invariants, for any inputs in any order:

- A run begins with one ``Started``, continues with ``PauseChanged`` in turn, and finishes with at most one ``Exited``.
  Nothing follows the exit.
- STOPPED overrides RUNNING of the same pid: a pid that has exited under an id does not return.
- If an event alone is inconclusive, a task query decides (``QueryTask``).

``TABLE`` has the handler of each input in each state; ARCHITECTURE.md shows it. Handlers return the new state, and
append effects to the list that they get. Sources of the rules: containerd's shims, which publish after they change
state, late and repeatedly, and whalewatcher, which defines the tasks that count as running.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from bridge.core.container_state import (
    MAX_CREATED_PIDS,
    MAX_EXITED_PIDS,
    NO_TASK,
    Created,
    Evidence,
    ExitInfo,
    FoundTask,
    NoTask,
    OOMKill,
    PendingExit,
    Running,
    StoppedTask,
    TaskState,
    UnconfirmedStart,
    WaitedExit,
)
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
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
from bridge.core.records import Origin
from bridge.core.time import SECOND

PENDING_EXIT_NS = 30 * SECOND  # an exit waits this long for its start: shims retry a failed publish for 15 to 45 s
EXIT_GRACE_NS = 5 * SECOND  # wait for the exit event of a task that must have exited, before the task is queried
WAITED_EXIT_GRACE_NS = 2 * SECOND  # the same if Tasks.Wait has returned the exit status
START_GRACE_NS = 2 * SECOND  # wait for the events of a task that a start check has found, before it is queried


# --- inputs, beside containerd's events ---


class NoTaskReported(Struct, frozen=True):
    """A query or listing shows that the container has no task."""


class CreatedReported(Struct, frozen=True):
    """A query or listing shows a task that has not started; ``pid`` is 0 if the shim is gone."""

    pid: int


class RunningReported(Struct, frozen=True):
    """A query or listing shows a running or paused task, whose pid is 0 if the shim is gone.

    ``synced``: the container's namespace is synced, so that a task that is not known is new.
    """

    task: Task
    synced: bool


class StoppedReported(Struct, frozen=True):
    """A query or listing shows a stopped task; fields as in ``RunningReported``."""

    task: Task
    synced: bool


class QueryFailed(Struct, frozen=True):
    """A task query failed."""


class TaskFound(Struct, frozen=True):
    """A start check has found a task that no event has reported."""

    task: Task


class TaskWaited(Struct, frozen=True):
    """Tasks.Wait has returned: the exit event is in flight, or lost."""

    pid: int
    exit_status: ExitStatus


class StartOverdue(Struct, frozen=True):
    """The time has passed in which the start of a pending exit may arrive."""


class Disconnected(Struct, frozen=True):
    """The stream has ended: from now on the task may change unseen."""


# --- effects ---


class Started(Struct, frozen=True):
    """A run has started. A preexisting one is first published as ``present`` instead of ``started``."""

    pid: int
    origin: Origin
    at: int
    preexisting: bool


class PauseChanged(Struct, frozen=True):
    """The run was paused or resumed."""

    paused: bool
    origin: Origin
    at: int


class Exited(Struct, frozen=True):
    """The run has ended. ``hold``: it ended just now, so an OOM event may still arrive."""

    origin: Origin
    at: int
    exit_info: ExitInfo
    watched_from: int
    hold: bool


class ReleaseExit(Struct, frozen=True):
    """An exit that is held must be published: from now on, an OOM event may be another task's."""


class QueryTask(Struct, frozen=True):
    """Query the task at ``due`` (monotonic); 0: immediately."""

    due: int = 0


class CancelQuery(Struct, frozen=True):
    """A scheduled query has become unnecessary."""


class BeginChecks(Struct, frozen=True):
    """A start is expected: check whether the container has a task whose events do not arrive."""


class EndChecks(Struct, frozen=True):
    """No start is expected; ``resume``: but it is after the run, because an event of the run is missing."""

    resume: bool = False


class ResumeChecks(Struct, frozen=True):
    """The run is over; check again if an event of it is missing."""


class Count(Struct, frozen=True):
    """Count an occurrence for the metrics."""

    name: str


Effect: TypeAlias = (
    Started
    | PauseChanged
    | Exited
    | ReleaseExit
    | QueryTask
    | CancelQuery
    | BeginChecks
    | EndChecks
    | ResumeChecks
    | Count
)
Effects: TypeAlias = list[Effect]
Handler: TypeAlias = Callable[[TaskState, Any, Instant, Effects], TaskState]

_QUERY_NOW, _CANCEL_QUERY, _RELEASE_EXIT = QueryTask(), CancelQuery(), ReleaseExit()
_BEGIN_CHECKS, _END_CHECKS, _END_CHECKS_OF_RUN = BeginChecks(), EndChecks(), EndChecks(resume=True)
_RESUME_CHECKS = ResumeChecks()
_LATE, _DUPLICATE = Count("late"), Count("duplicate")
_UNKNOWN_EXIT = ExitInfo()


def step(state: TaskState, input_: object, now: Instant) -> tuple[TaskState, Effects]:
    """Return the state after an input, the same object if it has not changed, and the effects in order."""
    effects: Effects = []
    return TABLE[type(input_)][type(state.task)](state, input_, now, effects), effects


# --- events of the container ---


def _expect_task(state: TaskState, _input: object, _now: Instant, effects: Effects) -> TaskState:
    """Begin start checks."""
    effects.append(_BEGIN_CHECKS)
    return state


def _expect_first_task(state: TaskState, _event: ContainerCreated, _now: Instant, effects: Effects) -> TaskState:
    """Begin start checks. The state is not unknown any more: the container is new."""
    effects.append(_BEGIN_CHECKS)
    return state if state.confirmed else replace(state, confirmed=True)


def _end_checks(state: TaskState, _input: object, _now: Instant, effects: Effects) -> TaskState:
    """End start checks."""
    effects.append(_END_CHECKS)
    return state


def _expect_exit(state: TaskState, event: ContainerDeleted, now: Instant, effects: Effects) -> TaskState:
    """End start checks. Query the task if its exit event does not arrive."""
    effects.append(QueryTask(now.monotonic + EXIT_GRACE_NS))
    return _end_checks(state, event, now, effects)


# --- events of the task ---


def _create(state: TaskState, event: TaskCreated, _now: Instant, effects: Effects) -> TaskState:
    """Expect the start, and begin start checks. If the pid is known, the event is late."""
    pid, task = event.pid, state.task
    if pid in state.exited_pids or (isinstance(task, Running) and task.pid == pid):
        effects.append(_LATE)
        return state
    effects += (_RELEASE_EXIT, _BEGIN_CHECKS)
    evidence, created_pids = state.evidence, state.created_pids
    created_pids = _remember(created_pids, pid, MAX_CREATED_PIDS) if created_pids else (pid,)
    if evidence:
        evidence = tuple(each for each in evidence if not _is_outdated_by_creation(each, pid))
    newest = created_pids[-1]
    if not isinstance(task, Running):
        task = NO_TASK if newest in state.exited_pids else Created(newest)
    return TaskState(
        task,
        evidence,
        state.confirmed,
        created_pids,
        state.exited_pids,
        state.last_change,
    )


def _is_outdated_by_creation(evidence: Evidence, pid: int) -> bool:
    return isinstance(evidence, StoppedTask) or (isinstance(evidence, OOMKill) and evidence.pid == pid)


def _create_while_running(state: TaskState, event: TaskCreated, now: Instant, effects: Effects) -> TaskState:
    """Expect the start. Query the task if the exit event of the running one does not arrive."""
    created = _create(state, event, now, effects)
    if created is state:
        return state
    effects.append(QueryTask(now.monotonic + EXIT_GRACE_NS))
    run = _run_of(created)
    return replace(created, task=replace(run, watched_from=0))  # from now on, an OOM event may be the other task's


def _start_task(state: TaskState, event: TaskStarted, now: Instant, effects: Effects) -> TaskState:
    """Start a run, and end it if its exit is pending. If the event is late, query the task; if it is also unexpected,
    the query decides."""
    pid = event.pid
    if pid in state.exited_pids:
        effects.append(_DUPLICATE)
        return state
    moment = _moment_if_on_time(state, event.at, now)
    if moment is None:
        effects.append(_QUERY_NOW)
        if not state.expects_start(pid):
            return _add_unconfirmed_start(state, event, effects)
    if not state.evidence:  # as a rule
        return _start(state, pid, "live", event.at, effects, watched_from=event.at, moment=moment)
    pending = state.find(PendingExit)
    if pending is not None and pending.pid != pid:
        state = _resolve_pending_exit(state, pending, now, effects)
        if moment is None:  # the exit of the other run has canceled the query
            effects.append(_QUERY_NOW)
    state = _start(state, pid, "live", event.at, effects, watched_from=event.at, moment=moment)
    if state.find(WaitedExit, pid) is not None:
        effects.append(QueryTask(now.monotonic + WAITED_EXIT_GRACE_NS))
    if pending is not None and pending.pid == pid:
        state = _apply_pending_exit(state, pending, effects, hold=True)
    return state


def _start_while_running(state: TaskState, event: TaskStarted, now: Instant, effects: Effects) -> TaskState:
    """Confirm the run. If it is another task's start, query the task, which decides."""
    run = _run_of(state)
    if state.is_known(event.pid):
        effects.append(_DUPLICATE)
        return _end_checks(replace(state, confirmed=True), event, now, effects) if run.pid == event.pid else state
    moment = _moment_if_on_time(state, event.at, now)
    effects.append(_QUERY_NOW)
    return _add_unconfirmed_start(state if moment is None else replace(state, last_change=moment), event, effects)


def _add_unconfirmed_start(state: TaskState, event: TaskStarted, effects: Effects) -> TaskState:
    effects.append(Count("unconfirmed_start"))
    return _add_evidence(state, UnconfirmedStart(event.pid, event))


def _exit_without_start(state: TaskState, event: TaskExited, now: Instant, effects: Effects) -> TaskState:
    """Wait for the start. Repeated exits, and those without pid, change nothing."""
    if event.pid == 0:
        return state
    if state.has_exited(event.pid):
        effects.append(_DUPLICATE)
        return state
    if (pending := state.find(PendingExit)) is not None:
        state = _resolve_pending_exit(state, pending, now, effects)
    pending = PendingExit(event.pid, event, now.monotonic + PENDING_EXIT_NS)
    return _end_checks_of(_add_evidence(state, pending), event, now, effects)


def _exit_while_running(state: TaskState, event: TaskExited, now: Instant, effects: Effects) -> TaskState:
    """End the run. If it is another task's exit, wait for that start, and query the task; without pid, only query."""
    if event.pid == _run_of(state).pid:
        state = _exit(state, "live", event.at, ExitInfo(event.status, event.exited_at), effects, hold=True)
        effects.append(_RESUME_CHECKS)
        return state
    if event.pid == 0:
        effects.append(_QUERY_NOW)
        return state
    deferred = _exit_without_start(state, event, now, effects)
    if deferred is not state:
        effects.append(_QUERY_NOW)
    return deferred


def _end_checks_of(state: TaskState, event: TaskExited | TaskDeleted, now: Instant, effects: Effects) -> TaskState:
    """End start checks if the shim has reported the task from the creation on."""
    return _end_checks(state, event, now, effects) if event.pid in state.created_pids[-1:] else state


def _delete_while_running(state: TaskState, event: TaskDeleted, now: Instant, effects: Effects) -> TaskState:
    """End the run: the exit event is lost. Without pid, query the task."""
    if event.pid == _run_of(state).pid:
        state = _exit(state, "inferred", now.wall, ExitInfo(event.status, event.exited_at), effects, hold=True)
        effects.append(_RESUME_CHECKS)
        return state
    if event.pid == 0:
        effects.append(_QUERY_NOW)
    return state


def _pause(state: TaskState, event: TaskPaused | TaskResumed, now: Instant, effects: Effects) -> TaskState:
    """Pause or resume the run. If it is not confirmed, or if the event is late or repeated, query the task."""
    run, paused = _run_of(state), isinstance(event, TaskPaused)
    moment = _moment_if_on_time(state, event.at, now)
    if moment is None or not state.confirmed or run.paused is paused:
        return _pause_without_run(state, event, now, effects)
    effects.append(PauseChanged(paused, "live", event.at))
    return replace(state, task=replace(run, paused=paused), last_change=moment)


def _pause_without_run(state: TaskState, event: TaskPaused | TaskResumed, now: Instant, effects: Effects) -> TaskState:
    """Query the task."""
    effects += (Count("unexpected_pause"), _QUERY_NOW)
    moment = _moment_if_on_time(state, event.at, now)
    return state if moment is None else replace(state, last_change=moment)


def _oom_without_run(state: TaskState, _event: TaskOOM, _now: Instant, effects: Effects) -> TaskState:
    """Remember the OOM kill of the newest task whose exit is not published; without one, the event is late."""
    task = state.task if isinstance(state.task, Created) else state.find(PendingExit) or state.find(FoundTask)
    if task is not None:
        return _add_oom_kill(state, task.pid)
    if state.exited_pids:
        effects.append(_LATE)
    return state


def _oom_while_running(state: TaskState, _event: TaskOOM, _now: Instant, _effects: Effects) -> TaskState:
    """Remember the OOM kill of the newest task."""
    newest = state.newest_created()
    return _add_oom_kill(state, newest.pid if isinstance(newest, Created) else _run_of(state).pid)


def _add_oom_kill(state: TaskState, pid: int) -> TaskState:
    return state if state.find(OOMKill, pid) else _add_evidence(state, OOMKill(pid))


# --- results of calls ---


def _remember_wait(state: TaskState, input_: TaskWaited, now: Instant, effects: Effects) -> TaskState:
    """Remember the exit status, and query the task if the exit event does not arrive. Ignore other tasks than the
    running one and those whose start is expected."""
    pid, exit_status = input_.pid, input_.exit_status
    is_running = state.running is not None and state.running.pid == pid
    if not is_running and (state.has_exited(pid) or not state.expects_start(pid)):
        return state
    effects.append(QueryTask(now.monotonic + WAITED_EXIT_GRACE_NS))
    if exit_status.exit_status is None and state.find(WaitedExit, pid) is not None:
        return state
    return _add_evidence(state, WaitedExit(pid, exit_status))


def _query_found(state: TaskState, input_: TaskFound, now: Instant, effects: Effects) -> TaskState:
    """Query the task when its events have had time to arrive."""
    task = input_.task
    if task.status is TaskStatus.CREATED:
        effects.append(_QUERY_NOW)
        return state
    effects.append(QueryTask(now.monotonic + START_GRACE_NS))
    state = _without(state, FoundTask)
    return _add_evidence(state, FoundTask(task.pid)) if task.running else state


def _unconfirm(state: TaskState, _input: QueryFailed, _now: Instant, _effects: Effects) -> TaskState:
    """Keep the state as unconfirmed: the audit queries the task again."""
    return replace(state, confirmed=False)


# --- reported states: the order of the cases is that of the events that must have been missed ---


def _report_no_task(state: TaskState, _input: object, now: Instant, effects: Effects) -> TaskState:
    """Publish a run that only a start check has found, or whose start was not confirmed: it is over."""
    return _end_evidence(_publish_found_run(state, None, now, effects), now, effects)


def _report_no_task_while_running(state: TaskState, _input: object, now: Instant, effects: Effects) -> TaskState:
    """End the run. Publish the next one if its start was not confirmed and its exit is pending."""
    return _end_evidence(_exit(state, "inferred", now.wall, _UNKNOWN_EXIT, effects), now, effects)


def _end_evidence(state: TaskState, now: Instant, effects: Effects) -> TaskState:
    pending = state.find(PendingExit)
    if pending is not None and state.find(UnconfirmedStart, pending.pid) is not None:
        state = _resolve_pending_exit(state, pending, now, effects)
    return _settle(state, now)


def _report_created(state: TaskState, input_: CreatedReported, now: Instant, effects: Effects) -> TaskState:
    """Expect the start. Publish another run that only a start check has found: it is over."""
    if not input_.pid:
        return replace(state, confirmed=True)
    if input_.pid not in state.exited_pids:
        state = _publish_found_run(state, input_.pid, now, effects)
        state = _add_reported_task(state, input_.pid, effects)
    return _settle(state, now)


def _report_created_while_running(
    state: TaskState, input_: CreatedReported, now: Instant, effects: Effects
) -> TaskState:
    """End the run, and expect the start of the other task. If the pid is known, the report is older than the state."""
    if input_.pid and not state.is_known(input_.pid):
        state = _exit(state, "inferred", now.wall, _UNKNOWN_EXIT, effects)
        state = _add_reported_task(state, input_.pid, effects)
    return _settle(state, now)


def _add_reported_task(state: TaskState, pid: int, effects: Effects) -> TaskState:
    if pid in state.created_pids:
        return state
    effects.append(_BEGIN_CHECKS)
    created_pids = _remember(state.created_pids, pid, MAX_CREATED_PIDS)
    return replace(state, task=Created(pid), created_pids=created_pids)


def _report_running(state: TaskState, input_: RunningReported, now: Instant, effects: Effects) -> TaskState:
    """Start the run that was missed, and end it if its exit is pending. If it has exited, change nothing."""
    task = input_.task
    if not task.pid:  # the shim is gone: the task can only be the known one
        return replace(state, confirmed=True)
    if task.pid in state.exited_pids:
        return _settle(state, now)
    preexisting = not state.confirmed or not input_.synced
    state = _publish_found_run(state, task.pid, now, effects)
    state, pending = _resolve_other_exit(state, task.pid, now, effects)
    if pending is not None:
        state = _start(state, task.pid, "inferred", now.wall, effects)
        return _settle(_apply_pending_exit(state, pending, effects), now)
    state = _start(state, task.pid, "inferred", now.wall, effects, preexisting=preexisting)
    return _settle(_confirm(state, task, now, effects), now)


def _report_running_while_running(
    state: TaskState, input_: RunningReported, now: Instant, effects: Effects
) -> TaskState:
    """Confirm the run, and pause or resume it. If it is another task, end the run, and start the other one."""
    task = input_.task
    if task.pid not in (0, _run_of(state).pid):
        ended = _exit(state, "inferred", now.wall, _UNKNOWN_EXIT, effects)
        return _report_running(ended, input_, now, effects)
    state, _ = _resolve_other_exit(state, _run_of(state).pid, now, effects)
    return _settle(_confirm(state, task, now, effects), now)


def _confirm(state: TaskState, task: Task, now: Instant, effects: Effects) -> TaskState:
    state, run = replace(state, confirmed=True), _run_of(state)
    if run.paused is task.paused:
        return state
    effects.append(PauseChanged(task.paused, "inferred", now.wall))
    return replace(state, task=replace(run, paused=task.paused))


def _report_stopped(state: TaskState, input_: StoppedReported, now: Instant, effects: Effects) -> TaskState:
    """Publish the run that was missed. If its start was not seen since its creation, wait for the exit event first."""
    task = input_.task
    if not task.pid:
        return replace(state, confirmed=True)
    if task.pid in state.exited_pids:
        return _settle(state, now)
    preexisting = not state.confirmed or not input_.synced
    state = _publish_found_run(state, task.pid, now, effects)
    state, pending = _resolve_other_exit(state, task.pid, now, effects)
    if pending is not None:
        if not state.is_unstarted(task.pid):
            state = _start(state, task.pid, "inferred", now.wall, effects)
            state = _apply_pending_exit(state, pending, effects)
        return _settle(state, now)
    if state.is_unstarted(task.pid):
        stopped = state.find(StoppedTask) or StoppedTask(task.pid, now.monotonic + PENDING_EXIT_NS)
        if now.monotonic < stopped.deadline:
            # The exit event shows that the task was killed before its start. If it does not arrive, the shim has become
            # silent, and the start has been missed as well.
            effects.append(QueryTask(stopped.deadline))
            return _settle(_add_evidence(state, stopped), now)
    if preexisting:
        return _settle(_remember_exit(state, task.pid), now)  # it exited before the bridge watched
    state = _start(state, task.pid, "inferred", now.wall, effects)
    exit_info = ExitInfo(task.exit_status, task.exited_at)
    return _settle(_exit(state, "inferred", now.wall, exit_info, effects), now)


def _report_stopped_while_running(
    state: TaskState, input_: StoppedReported, now: Instant, effects: Effects
) -> TaskState:
    """End the run. If it is another task, publish its run as well."""
    task, run = input_.task, _run_of(state)
    if task.pid not in (0, run.pid):
        return _report_stopped(_exit(state, "inferred", now.wall, _UNKNOWN_EXIT, effects), input_, now, effects)
    state, _ = _resolve_other_exit(state, run.pid, now, effects)
    exit_info = ExitInfo(task.exit_status, task.exited_at)
    return _settle(_exit(state, "inferred", now.wall, exit_info, effects), now)


def _publish_found_run(state: TaskState, pid: int | None, now: Instant, effects: Effects) -> TaskState:
    """Publish a run that only a start check has found, and that is over: now there is another task, or none."""
    found = state.find(FoundTask)
    if found is None or found.pid == pid or state.has_exited(found.pid):
        return state
    state = _start(state, found.pid, "inferred", now.wall, effects)
    return _exit(state, "inferred", now.wall, _UNKNOWN_EXIT, effects)


def _settle(state: TaskState, now: Instant) -> TaskState:
    confirmed = state.confirmed or not isinstance(state.task, Running)
    return replace(state, confirmed=confirmed, last_change=now.monotonic)


# --- pending exits ---


def _resolve_overdue_exit(state: TaskState, _input: StartOverdue, now: Instant, effects: Effects) -> TaskState:
    """Publish start and exit. If the task was never started, or another one is running, drop the exit."""
    pending = state.find(PendingExit)
    return state if pending is None else _resolve_pending_exit(state, pending, now, effects)


def _resolve_other_exit(
    state: TaskState, pid: int, now: Instant, effects: Effects
) -> tuple[TaskState, PendingExit | None]:
    """Resolve a pending exit, unless it is that of the task ``pid``, which is returned."""
    pending = state.find(PendingExit)
    if pending is None or pending.pid == pid:
        return state, pending
    return _resolve_pending_exit(state, pending, now, effects), None


def _resolve_pending_exit(state: TaskState, pending: PendingExit, now: Instant, effects: Effects) -> TaskState:
    """Resolve a pending exit: its start fell into a gap, or its task was never started.

    During another run, the exit can only be a late event of an earlier one, and is ignored.
    """
    if state.running is None and not state.is_unstarted(pending.pid):
        state = _start(state, pending.pid, "inferred", now.wall, effects)
        return _apply_pending_exit(state, pending, effects)
    return _drop_pending_exit(state, pending, _LATE if state.running else Count("never_started"), effects)


def _drop_pending_exit(state: TaskState, pending: PendingExit, count: Count, effects: Effects) -> TaskState:
    effects.append(count)
    return _remember_exit(_without(state, PendingExit), pending.pid)


def _apply_pending_exit(state: TaskState, pending: PendingExit, effects: Effects, *, hold: bool = False) -> TaskState:
    """End a run that has just started, because its exit arrived before."""
    event = pending.event
    exit_info = ExitInfo(event.status, event.exited_at)
    return _exit(_without(state, PendingExit), "live", event.at, exit_info, effects, hold=hold)


# --- runs ---


def _start(
    state: TaskState,
    pid: int,
    origin: Origin,
    at: int,
    effects: Effects,
    *,
    preexisting: bool = False,
    watched_from: int = 0,
    moment: int | None = None,
) -> TaskState:
    """Start a run; ``moment``: when it started (monotonic), if that is known to be the newest change."""
    evidence = state.evidence
    if evidence:
        if (unconfirmed := state.find(UnconfirmedStart, pid)) is not None:
            origin, at, preexisting = "live", unconfirmed.event.at, False
        evidence = tuple(each for each in evidence if not _is_explained_by_start(each, pid))
    missed = origin == "inferred" and not preexisting
    effects.append(_END_CHECKS_OF_RUN if missed else _END_CHECKS)
    effects.append(Started(pid, origin, at, preexisting))
    return TaskState(
        Running(pid, False, watched_from),
        evidence,
        True,
        state.created_pids,
        state.exited_pids,
        state.last_change if moment is None else moment,
    )


def _is_explained_by_start(evidence: Evidence, pid: int) -> bool:
    if isinstance(evidence, UnconfirmedStart):
        return evidence.pid == pid
    return isinstance(evidence, (FoundTask, StoppedTask))


def _exit(
    state: TaskState, origin: Origin, at: int, exit_info: ExitInfo, effects: Effects, *, hold: bool = False
) -> TaskState:
    """End the run; ``hold``: an event has just shown the exit. A query shows it seconds after it has happened."""
    run = _run_of(state)
    if state.evidence:
        if exit_info.status is None and (waited := state.find(WaitedExit, run.pid)) is not None:
            exit_info = ExitInfo(waited.exit_status.exit_status, waited.exit_status.exited_at)
        if (pending := state.find(PendingExit)) is not None and _is_older(pending, exit_info):
            state = _drop_pending_exit(state, pending, _LATE, effects)
        if state.find(OOMKill, run.pid) is not None:
            exit_info = replace(exit_info, oom=True)
        evidence = tuple(each for each in state.evidence if not _is_explained_by_exit(each, run.pid))
        state = replace(state, evidence=evidence)
    if not state.evidence or state.find(UnconfirmedStart) is None:
        effects.append(_CANCEL_QUERY)
    effects.append(Exited(origin, at, exit_info, run.watched_from, hold))
    return _remember_exit(state, run.pid)


def _is_explained_by_exit(evidence: Evidence, pid: int) -> bool:
    if isinstance(evidence, OOMKill):
        return evidence.pid == pid
    return isinstance(evidence, (WaitedExit, StoppedTask))


def _is_older(pending: PendingExit, exit_info: ExitInfo) -> bool:
    """Return whether a pending exit is older than the exit of the run, and so belongs to an earlier one."""
    exited_at = pending.event.exited_at
    return exited_at is not None and exit_info.exited_at is not None and exited_at <= exit_info.exited_at


def _disconnect(state: TaskState, _input: Disconnected, _now: Instant, _effects: Effects) -> TaskState:
    """Forget created tasks, which may start unseen."""
    pending = state.find(PendingExit)
    return replace(
        _without(state, StoppedTask),
        task=NO_TASK,
        created_pids=tuple(pid for pid in state.created_pids if pending is not None and pid == pending.pid),
    )


def _disconnect_run(state: TaskState, input_: Disconnected, now: Instant, effects: Effects) -> TaskState:
    """Forget created tasks. The run is not confirmed any more."""
    run = replace(_run_of(state), watched_from=0)
    return replace(_disconnect(state, input_, now, effects), task=run, confirmed=False)


def _ignore(state: TaskState, _input: object, _now: Instant, _effects: Effects) -> TaskState:
    """Change nothing."""
    return state


# --- helpers ---


def _run_of(state: TaskState) -> Running:
    assert isinstance(state.task, Running)  # noqa: S101 (TABLE selects the handler by the task)
    return state.task


def _remember(pids: tuple[int, ...], pid: int, limit: int) -> tuple[int, ...]:
    return pids if pid in pids else (*pids[1 - limit :], pid)


def _remember_exit(state: TaskState, pid: int) -> TaskState:
    """Note that a task has exited; unless another one is running, the task created last is the current one."""
    exited_pids = (*state.exited_pids[1 - MAX_EXITED_PIDS :], pid)
    task, confirmed, created_pids = state.task, state.confirmed, state.created_pids
    if not isinstance(task, Running) or task.pid == pid:
        confirmed = confirmed or isinstance(task, Running)
        newest = created_pids[-1] if created_pids else pid
        task = NO_TASK if newest in exited_pids else Created(newest)
    return TaskState(task, state.evidence, confirmed, created_pids, exited_pids, state.last_change)


def _add_evidence(state: TaskState, evidence: Evidence) -> TaskState:
    """Add evidence; of each kind only the newest is kept, and of OOM kills as many as of created tasks."""
    limit = MAX_CREATED_PIDS if isinstance(evidence, OOMKill) else 1
    same = [each for each in state.evidence if type(each) is type(evidence)]
    dropped = same[: max(0, len(same) + 1 - limit)]
    return replace(state, evidence=(*(each for each in state.evidence if each not in dropped), evidence))


def _without(state: TaskState, *kinds: type[Evidence]) -> TaskState:
    evidence = tuple(each for each in state.evidence if not isinstance(each, kinds))
    return state if len(evidence) == len(state.evidence) else replace(state, evidence=evidence)


def _moment_if_on_time(state: TaskState, at: int, now: Instant) -> int | None:
    """Return the moment of an event (monotonic); None if it may be older than the known state.

    The wall clock may be set at any time, so the event's moment on the monotonic clock is compared.
    """
    moment = now.monotonic - (now.wall - at)
    return moment if state.last_change <= moment <= now.monotonic else None


def _table(*lines: tuple[type, Handler, Handler]) -> dict[type, dict[type, Handler]]:
    return {input_: {NoTask: idle, Created: idle, Running: running} for input_, idle, running in lines}


# fmt: off
TABLE = _table(
    # input            NoTask, Created       Running
    (ContainerCreated, _expect_first_task,    _expect_task),
    (ContainerUpdated, _expect_task,          _ignore),
    (ContainerDeleted, _end_checks,           _expect_exit),
    (TaskCreated,      _create,               _create_while_running),
    (TaskStarted,      _start_task,           _start_while_running),
    (TaskExited,       _exit_without_start,   _exit_while_running),
    (TaskDeleted,      _end_checks_of,        _delete_while_running),
    (TaskPaused,       _pause_without_run,    _pause),
    (TaskResumed,      _pause_without_run,    _pause),
    (TaskOOM,          _oom_without_run,      _oom_while_running),
    (NoTaskReported,   _report_no_task,       _report_no_task_while_running),
    (CreatedReported,  _report_created,       _report_created_while_running),
    (RunningReported,  _report_running,       _report_running_while_running),
    (StoppedReported,  _report_stopped,       _report_stopped_while_running),
    (QueryFailed,      _unconfirm,            _unconfirm),
    (TaskFound,        _query_found,          _ignore),
    (TaskWaited,       _remember_wait,        _remember_wait),
    (StartOverdue,     _resolve_overdue_exit, _resolve_overdue_exit),
    (Disconnected,     _disconnect,           _disconnect_run),
)
# fmt: on
