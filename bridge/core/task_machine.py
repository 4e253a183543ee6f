"""State machine of a container's task: (state, input, now) -> (new state, effects).

Invariants, for any inputs in any order:

- A run begins with one ``Started``, continues with ``PauseChanged`` in turn, and finishes with at most one ``Exited``.
  Nothing follows the exit.
- A pid may return: under one id, a task ends before the next one is created. Times of events distinguish the events
  of tasks with the same pid; a report that is made after the exit is one of another task.
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
    MAX_CREATED,
    MAX_EVIDENCE,
    MAX_EXITED,
    NO_TASK,
    Created,
    CreatedTask,
    Evidence,
    ExitedTask,
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


class ExitReported(Struct, frozen=True):
    """CRI has recorded the exit of the container, and no task is listed; ``synced`` as in ``RunningReported``."""

    exit: RecordedExit
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


class Started(Struct, frozen=True, gc=False):
    """A run has started. A preexisting one is first published as ``present`` instead of ``started``.

    ``pid`` is 0 if it is unknown. ``started_at``: when the run started, if that is known and not ``at``.
    """

    pid: int
    origin: Origin
    at: int
    preexisting: bool
    started_at: int | None = None


class PauseChanged(Struct, frozen=True, gc=False):
    """The run was paused or resumed."""

    paused: bool
    origin: Origin
    at: int


class Exited(Struct, frozen=True, gc=False):
    """The run has ended. ``hold``: it ended just now, so an OOM event may still arrive."""

    origin: Origin
    at: int
    exit_info: ExitInfo
    watched_from: int
    hold: bool


class ReleaseExit(Struct, frozen=True):
    """An exit that is held must be published: from now on, an OOM event may be another task's."""


class QueryTask(Struct, frozen=True, gc=False):
    """Query the task at ``due`` (monotonic); 0: immediately."""

    due: int = 0


class CancelQuery(Struct, frozen=True):
    """A scheduled query has become unnecessary."""


class BeginChecks(Struct, frozen=True):
    """A start is expected: check whether the container has a task whose events do not arrive."""


class EndChecks(Struct, frozen=True):
    """No start is expected. ``resume``: one is expected again after the run, because an event of the run is missing."""

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
    return replace(state, unknown=False) if state.unknown else state


def _end_checks(state: TaskState, _input: object, _now: Instant, effects: Effects) -> TaskState:
    """End start checks."""
    effects.append(_END_CHECKS)
    return state


def _expect_exit(state: TaskState, event: ContainerDeleted, now: Instant, effects: Effects) -> TaskState:
    """End start checks. Query the task if its exit event does not arrive."""
    effects.append(QueryTask(now.monotonic + EXIT_GRACE_NS))
    return _end_checks(state, event, now, effects)


# --- events of the task ---


def _create(state: TaskState, event: TaskCreated, now: Instant, effects: Effects) -> TaskState:
    """Expect the start, and begin start checks. If the task is known, the event is late."""
    if (state.exited or state.created or state.evidence) and _is_late_creation(state, event, now):
        return _note_late_creation(state, event, now, effects)
    effects.append(_RELEASE_EXIT)
    pid, evidence = event.pid, state.evidence
    if evidence:
        if state.find(PendingExit, pid) is not None:  # of an earlier task with the same pid
            state = _finish(state, pid, now, effects)
        evidence = tuple(each for each in state.evidence if each.pid != pid and not isinstance(each, StoppedTask))
    effects.append(_BEGIN_CHECKS)
    return TaskState(
        state.task if isinstance(state.task, Running) else Created(pid),
        evidence,
        state.unknown,
        _remember_created(state, pid, event.at),
        state.exited,
        state.last_change,
    )


def _create_while_running(state: TaskState, event: TaskCreated, now: Instant, effects: Effects) -> TaskState:
    """Expect the start. Query the task if the exit event of the running one does not arrive. If the other task has the
    same pid, or is one of many, or if a task with its pid has started meanwhile, end the run at once."""
    run = _run_of(state)
    if _is_late_creation(state, event, now):
        return _note_late_creation(state, event, now, effects)
    if event.pid == run.pid:
        return _create(_exit(state, "inferred", event.at - 1, _UNKNOWN_EXIT, effects), event, now, effects)
    start = state.find(UnconfirmedStart, event.pid)
    others = sum(each.pid != run.pid and not state.is_over(each.pid, each.at) for each in state.created)
    if (start is not None and not start.late) or others == MAX_CREATED:
        state = _exit(state, "inferred", now.wall, _UNKNOWN_EXIT, effects)
        state = _finish_others(state, event.pid, now, effects)
        if start is not None:
            state = _finish(state, event.pid, Instant(event.at - 1, now.monotonic), effects)
        return _create(state, event, now, effects)
    effects.append(QueryTask(now.monotonic + EXIT_GRACE_NS))
    state = replace(state, task=replace(run, watched=False))  # from now on, an OOM event may be the other task's
    return _create(state, event, now, effects)


def _is_late_creation(state: TaskState, event: TaskCreated, now: Instant) -> bool:
    """Return whether the creation is that of a known task, rather than of another one that has got the same pid."""
    pid, at = event.pid, event.at
    exited, run = state.find_exited(pid), state.task
    for created in state.created:
        if created.pid == pid and (exited is None or created.at > exited.until):
            known_until, is_over = created.at, False
            break
    else:
        if isinstance(run, Running) and run.pid == pid:
            return True  # the creation of the running task was not seen so far
        known_until = -1 if exited is None else exited.until
        is_over = True
    if state.evidence:
        if (start := state.find(UnconfirmedStart, pid)) is not None:
            known_until, is_over = max(known_until, start.event.at), True
        if (pending := state.find(PendingExit, pid)) is not None:
            known_until, is_over = max(known_until, _time_of_exit(pending.event)), True
    if known_until < 0:
        return False
    was_set_back = known_until > now.wall  # the clock: the known times cannot be compared with that of the event
    # The monotonic clock decides nothing here: if the wall clock was set forward, all events that wait seem old.
    return at > now.wall or (at <= known_until and not (was_set_back and is_over))


def _note_late_creation(state: TaskState, event: TaskCreated, now: Instant, effects: Effects) -> TaskState:
    """Remember the creation if it shows that the task of a pending exit was perhaps never started."""
    effects.append(_LATE)
    if state.find_exited(event.pid) is not None and _moment_if_on_time(state, event.at, now) is not None:
        effects.append(_QUERY_NOW)  # or it is of another task with the same pid, after the clock was set back
    if state.find(PendingExit, event.pid) is None or state.is_over(event.pid, event.at):
        return state
    return replace(state, created=_remember_created(state, event.pid, event.at))


def _start_task(state: TaskState, event: TaskStarted, now: Instant, effects: Effects) -> TaskState:
    """Start a run, and end it if its exit is pending. If the event is late, query the task. If it is also unexpected,
    or if it may repeat that of an earlier task with the same pid, the query decides."""
    pid = event.pid
    exited = state.find_exited(pid) if state.exited else None
    moment = _moment_if_on_time(state, event.at, now)
    if exited is not None and event.at <= exited.until:
        was_set_back = exited.until > now.wall  # the clock: then the creation shows that it is another task
        if not was_set_back or moment is None or state.find_created(pid) is None:
            effects += (_DUPLICATE, _QUERY_NOW)  # or of another task with the same pid, after the clock was set back
            return state
    if moment is None or exited is not None:
        # A task of unknown pid that has exited in this boot is that of a container of CRI, which has no other task.
        may_be_other = exited is None or (moment is not None and (exited.pid != 0 or not exited.until))
        expected = state.expects_start(pid) and may_be_other
        if moment is None or not expected:
            effects.append(_QUERY_NOW)
        if not expected:
            return _add_unconfirmed_start(state, event, effects, late=True)
    if not state.evidence:  # as a rule
        return _start(state, pid, "live", event.at, effects, watched=True, moment=moment)
    for pending in state.find_all(PendingExit):
        if pending.pid != pid:
            state = _finish(state, pending.pid, now, effects)
            if moment is None:  # the exit of the other run has canceled the query
                effects.append(_QUERY_NOW)
    state = _start(state, pid, "live", event.at, effects, watched=True, moment=moment)
    if state.find(WaitedExit, pid) is not None:
        effects.append(QueryTask(now.monotonic + WAITED_EXIT_GRACE_NS))
    if (pending_exit := state.find(PendingExit, pid)) is not None:
        state = _apply_pending_exit(state, pending_exit, effects, hold=True)
        if moment is not None and moment > pending_exit.deadline - PENDING_EXIT_NS:
            effects.append(_QUERY_NOW)  # a shim sends the exit first, or another task has got the pid
    return state


def _start_while_running(state: TaskState, event: TaskStarted, now: Instant, effects: Effects) -> TaskState:
    """Confirm the run. If it is another task's start, query the task, which decides."""
    run, pid, at = _run_of(state), event.pid, event.at
    if state.is_over(pid, at):
        effects.append(_DUPLICATE)
        return state
    moment = _moment_if_on_time(state, at, now)
    if pid != run.pid:
        effects.append(_QUERY_NOW)
        state = state if moment is None else replace(state, last_change=moment)
        return _add_unconfirmed_start(state, event, effects, late=moment is None)
    if run.start_seen and at > run.since and moment is not None:  # a task starts once: this one only has the same pid
        state = _exit(state, "inferred", at - 1, _UNKNOWN_EXIT, effects)
        return _start(state, pid, "live", at, effects, watched=True, moment=moment)
    effects.append(_DUPLICATE)
    if run.start_seen and at != run.since:
        return state  # of an earlier task with the same pid
    run = replace(run, since=at, start_seen=True, confirmed=True)
    return _end_checks(replace(state, task=run), event, now, effects)


def _add_unconfirmed_start(state: TaskState, event: TaskStarted, effects: Effects, *, late: bool) -> TaskState:
    effects.append(Count("unconfirmed_start"))
    return _add_evidence(state, UnconfirmedStart(event.pid, event, late), effects)


def _exit_without_start(state: TaskState, event: TaskExited, now: Instant, effects: Effects) -> TaskState:
    """Wait for the start. Repeated exits, and those without pid, change nothing."""
    if event.pid == 0:
        return state
    if _is_repeated_exit(state, event, now):
        effects.append(_DUPLICATE)
        return state
    if state.running is None:
        for pending in state.find_all(PendingExit):
            state = _finish(state, pending.pid, now, effects)
    pending = PendingExit(event.pid, event, now.monotonic + PENDING_EXIT_NS)
    return _end_checks_of(_add_evidence(state, pending, effects), event, now, effects)


def _is_repeated_exit(state: TaskState, event: TaskExited, now: Instant) -> bool:
    """Return whether an exit is known, or that of an earlier task than the one that has its pid now, if any."""
    if state.find(PendingExit, event.pid) is not None:
        return True
    exited = state.find_exited(event.pid)
    if exited is None:
        return False
    if event.exited_at is not None and event.exited_at == exited.exited_at:
        return True
    if (created := state.find_created(event.pid)) is not None:
        return _time_of_exit(event) < created.at <= now.wall
    start = state.find(UnconfirmedStart, event.pid)
    return start is None or _time_of_exit(event) < start.event.at


def _exit_while_running(state: TaskState, event: TaskExited, now: Instant, effects: Effects) -> TaskState:
    """End the run. If it is another task's exit, wait for that start, and query the task; without pid, only query."""
    if event.pid == _run_of(state).pid:
        return _end_run(state, event, "live", event.at, now, effects)
    if event.pid == 0:
        effects.append(_QUERY_NOW)
        return state
    deferred = _exit_without_start(state, event, now, effects)
    if deferred is not state:
        effects.append(_QUERY_NOW)
    return deferred


def _end_run(
    state: TaskState, event: TaskExited | TaskDeleted, origin: Origin, at: int, now: Instant, effects: Effects
) -> TaskState:
    """End the run. If the event may be that of an earlier task with the same pid, query the task."""
    if state.exited and (exited := state.find_exited(event.pid)) is not None:
        ended_at = _time_of_exit(event)
        if ended_at < _run_of(state).since or ended_at <= exited.until or ended_at > now.wall:
            effects.append(_QUERY_NOW)
            if event.exited_at == exited.exited_at or _moment_if_on_time(state, ended_at, now) is None:
                effects.append(_DUPLICATE)
                return state
            # It is of this run if the clock was set back: its status counts if the query shows the end.
            return _add_evidence(state, WaitedExit(event.pid, ExitStatus(event.status, event.exited_at)), effects)
    state = _exit(state, origin, at, ExitInfo(event.status, event.exited_at), effects, hold=True)
    effects.append(_RESUME_CHECKS)
    return state


def _time_of_exit(event: TaskExited | TaskDeleted) -> int:
    return event.at if event.exited_at is None else event.exited_at


def _end_checks_of(state: TaskState, event: TaskExited | TaskDeleted, now: Instant, effects: Effects) -> TaskState:
    """End start checks if the shim has reported the task from the creation on."""
    is_newest = bool(state.created) and state.created[-1].pid == event.pid
    return _end_checks(state, event, now, effects) if is_newest else state


def _delete_while_running(state: TaskState, event: TaskDeleted, now: Instant, effects: Effects) -> TaskState:
    """End the run: the exit event is lost. Without pid, query the task."""
    if event.pid == _run_of(state).pid:
        return _end_run(state, event, "inferred", now.wall, now, effects)
    if event.pid == 0:
        effects.append(_QUERY_NOW)
    return state


def _pause(state: TaskState, event: TaskPaused | TaskResumed, now: Instant, effects: Effects) -> TaskState:
    """Pause or resume the run. If it is not confirmed, or if the event is late or repeated, query the task."""
    run, paused = _run_of(state), isinstance(event, TaskPaused)
    moment = _moment_if_on_time(state, event.at, now)
    if moment is None or not run.confirmed or run.paused is paused:
        return _pause_without_run(state, event, now, effects)
    effects.append(PauseChanged(paused, "live", event.at))
    return replace(state, task=replace(run, paused=paused), last_change=moment)


def _pause_without_run(state: TaskState, event: TaskPaused | TaskResumed, now: Instant, effects: Effects) -> TaskState:
    """Query the task."""
    effects += (Count("unexpected_pause"), _QUERY_NOW)
    moment = _moment_if_on_time(state, event.at, now)
    return state if moment is None else replace(state, last_change=moment)


def _oom_without_run(state: TaskState, _event: TaskOOM, now: Instant, effects: Effects) -> TaskState:
    """Remember the OOM kill of the newest task whose exit is not published; without one, the event is late, or that of
    a task whose start is late."""
    if isinstance(state.task, Created):
        return _add_oom_kill(state, state.task.pid, now, effects)
    if pids := [each.pid for each in state.evidence if isinstance(each, (FoundTask, PendingExit))]:
        return _add_oom_kill(state, pids[-1], now, effects)
    if state.exited:
        effects.append(_LATE)
    return _add_oom_kill(state, 0, now, effects)


def _oom_while_running(state: TaskState, _event: TaskOOM, now: Instant, effects: Effects) -> TaskState:
    """Remember the OOM kill of the newest task."""
    newest = state.newest_created()
    return _add_oom_kill(state, newest.pid if isinstance(newest, Created) else _run_of(state).pid, now, effects)


def _add_oom_kill(state: TaskState, pid: int, now: Instant, effects: Effects) -> TaskState:
    return _add_evidence(state, OOMKill(pid, now.monotonic), effects)


# --- results of calls ---


def _remember_wait(state: TaskState, input_: TaskWaited, now: Instant, effects: Effects) -> TaskState:
    """Remember the exit status, and query the task if the exit event does not arrive. Ignore other tasks than the
    running one and those whose start is expected."""
    pid, exit_status = input_.pid, input_.exit_status
    exited, run = state.find_exited(pid), state.running
    if exited is not None and exit_status.exited_at is not None and exit_status.exited_at <= exited.until:
        return state
    if exit_status.exited_at is not None and any(each.exited_at == exit_status.exited_at for each in state.exited):
        effects.append(_QUERY_NOW)  # the call names the container only, and has returned the exit of another task
        return state
    if not (run is not None and run.pid == pid) and (
        state.find(PendingExit, pid) is not None or not state.expects_start(pid)
    ):
        return state
    effects.append(QueryTask(now.monotonic + WAITED_EXIT_GRACE_NS))
    if exit_status.exit_status is None and state.find(WaitedExit, pid) is not None:
        return state
    return _add_evidence(state, WaitedExit(pid, exit_status), effects)


def _query_found(state: TaskState, input_: TaskFound, now: Instant, effects: Effects) -> TaskState:
    """Query the task when its events have had time to arrive."""
    task = input_.task
    if task.status is TaskStatus.CREATED:
        effects.append(_QUERY_NOW)
        return state
    effects.append(QueryTask(now.monotonic + START_GRACE_NS))
    return _add_evidence(state, FoundTask(task.pid), effects) if task.running else state


def _make_unknown(state: TaskState, _input: QueryFailed, _now: Instant, _effects: Effects) -> TaskState:
    """The state is unknown: the audit queries the task again."""
    return replace(state, unknown=True)


def _unconfirm(state: TaskState, _input: QueryFailed, _now: Instant, _effects: Effects) -> TaskState:
    """The run is not confirmed any more: the audit queries the task again."""
    return replace(state, task=replace(_run_of(state), confirmed=False))


# --- reported states: the order of the cases is that of the events that must have been missed ---


def _report_no_task(state: TaskState, _input: object, now: Instant, effects: Effects) -> TaskState:
    """Publish the runs whose start was not confirmed, or that only a start check has found: they are over."""
    return _settle(_finish_others(state, None, now, effects), now)


def _report_no_task_while_running(state: TaskState, input_: object, now: Instant, effects: Effects) -> TaskState:
    """End the run, and publish the runs after it whose start was not confirmed."""
    return _report_no_task(_exit(state, "inferred", now.wall, _UNKNOWN_EXIT, effects), input_, now, effects)


def _report_created(state: TaskState, input_: CreatedReported, now: Instant, effects: Effects) -> TaskState:
    """Expect the start. Publish the runs of other tasks that no exit has ended: they are over."""
    if not input_.pid:
        return replace(state, unknown=False)
    state = _finish_others(state, input_.pid, now, effects)
    if state.find_created(input_.pid) is None:
        effects.append(_BEGIN_CHECKS)
        created = _remember_created(state, input_.pid, now.wall)
        state = replace(state, task=Created(input_.pid), created=created)
    return _settle(state, now)


def _report_created_while_running(
    state: TaskState, input_: CreatedReported, now: Instant, effects: Effects
) -> TaskState:
    """End the run, and expect the start of the other task."""
    if input_.pid:
        state = _exit(state, "inferred", now.wall, _UNKNOWN_EXIT, effects)
        return _report_created(state, input_, now, effects)
    return _settle(state, now)


def _report_running(state: TaskState, input_: RunningReported, now: Instant, effects: Effects) -> TaskState:
    """Start the run that was missed. Publish the runs before it that were not published, even if they had its pid."""
    task = input_.task
    if not task.pid:  # the shim is gone: the task can only be the known one
        return replace(state, unknown=False)
    preexisting = state.unknown or not input_.synced
    state = _finish_others(state, task.pid, now, effects)
    if state.find(PendingExit, task.pid) is not None:
        state = _finish(state, task.pid, now, effects)
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
    state = _finish_others(state, _run_of(state).pid, now, effects)
    return _settle(_confirm(state, task, now, effects), now)


def _confirm(state: TaskState, task: Task, now: Instant, effects: Effects) -> TaskState:
    run = _run_of(state)
    if run.paused is not task.paused:
        effects.append(PauseChanged(task.paused, "inferred", now.wall))
    return replace(state, task=replace(run, paused=task.paused, confirmed=True))


def _report_stopped(state: TaskState, input_: StoppedReported, now: Instant, effects: Effects) -> TaskState:
    """Publish the run that was missed. If its start was not seen since its creation, wait for the exit event first."""
    task = input_.task
    if not task.pid:
        return replace(state, unknown=False)
    if state.is_known_exit(task):
        return _settle(state, now)
    preexisting = state.unknown or not input_.synced
    state = _finish_others(state, task.pid, now, effects)
    if state.find(PendingExit, task.pid) is not None:
        return _settle(state if state.is_unstarted(task.pid) else _finish(state, task.pid, now, effects), now)
    if state.is_unstarted(task.pid):
        stopped = state.find(StoppedTask, task.pid) or StoppedTask(task.pid, now.monotonic + PENDING_EXIT_NS)
        if now.monotonic < stopped.deadline:
            # The exit event shows that the task was killed before its start. If it does not arrive, the shim has become
            # silent, and the start has been missed as well.
            effects.append(QueryTask(stopped.deadline))
            return _settle(_add_evidence(state, stopped, effects), now)
    if preexisting:  # it exited before the bridge watched
        return _settle(_remember_exit(state, task.pid, task.exited_at, now.wall), now)
    state = _start(state, task.pid, "inferred", now.wall, effects)
    exit_info = ExitInfo(task.exit_status, task.exited_at)
    return _settle(_exit(state, "inferred", now.wall, exit_info, effects), now)


def _report_stopped_while_running(
    state: TaskState, input_: StoppedReported, now: Instant, effects: Effects
) -> TaskState:
    """End the run. If it is another task, publish its run as well."""
    task, run = input_.task, _run_of(state)
    if task.pid not in (0, run.pid):
        waited = state.find(WaitedExit, run.pid)
        if waited is not None and waited.exit_status.exited_at == task.exited_at:  # the call has returned this exit
            state = replace(state, evidence=tuple(each for each in state.evidence if each is not waited))
        return _report_stopped(_exit(state, "inferred", now.wall, _UNKNOWN_EXIT, effects), input_, now, effects)
    state = _finish_others(state, run.pid, now, effects)
    exit_info = ExitInfo(task.exit_status, task.exited_at)
    return _settle(_exit(state, "inferred", now.wall, exit_info, effects), now)


def _report_exit(state: TaskState, input_: ExitReported, now: Instant, effects: Effects) -> TaskState:
    """Publish the run that was missed, unless an exit is known, or there was no start: CRI starts a container once."""
    unstarted = state.newest_unstarted
    if state.exited and unstarted is None:
        return _settle(state, now)
    recorded = input_.exit
    known = (unstarted or state.newest_created(), *state.evidence)
    pids = [each.pid for each in known if not isinstance(each, NoTask) and each.pid]
    pid = pids[-1] if pids else 0
    pending = state.find(PendingExit, pid) if pid else None
    effects.append(_END_CHECKS)
    if not input_.synced or recorded.started_at is None:
        if pending is None:  # otherwise its deadline decides
            state = _remember_exit(state, pid, recorded.exited_at, now.wall)
        return _settle(state, now)
    oom = recorded.oom or state.find(OOMKill) is not None
    exited_at = recorded.exited_at if pending is None else pending.event.exited_at
    # CRI notes the start when its call has returned, so that a short run seems to have ended before.
    started_at = recorded.started_at if exited_at is None else min(recorded.started_at, exited_at)
    state = _start(state, pid, "inferred", now.wall, effects, started_at=started_at)
    if oom:
        state = _add_oom_kill(state, pid, now, effects)
    if pending is not None:
        state = _apply_pending_exit(state, pending, effects)
    else:
        exit_info = ExitInfo(recorded.exit_status, recorded.exited_at)
        state = _exit(state, "inferred", now.wall, exit_info, effects)
    effects.append(_END_CHECKS)
    return _settle(state, now)


def _report_exit_while_running(state: TaskState, input_: ExitReported, now: Instant, effects: Effects) -> TaskState:
    """End the run, unless an earlier exit is known: CRI starts a container once, so its record is of that run."""
    recorded = input_.exit
    if state.exited:
        return state
    if recorded.oom:
        state = _add_oom_kill(state, _run_of(state).pid, now, effects)
    exit_info = ExitInfo(recorded.exit_status, recorded.exited_at)
    state = _exit(state, "inferred", now.wall, exit_info, effects)
    effects.append(_END_CHECKS)
    return _settle(state, now)


def _settle(state: TaskState, now: Instant) -> TaskState:
    return replace(state, unknown=False, last_change=now.monotonic)


# --- runs that are over, but not published ---


def _resolve_overdue_exits(state: TaskState, _input: StartOverdue, now: Instant, effects: Effects) -> TaskState:
    """Publish start and exit. If the task was never started, drop the exit."""
    for pending in state.find_all(PendingExit):
        state = _finish(state, pending.pid, now, effects)
    return state


def _drop_overdue_exits(state: TaskState, _input: StartOverdue, now: Instant, effects: Effects) -> TaskState:
    """Drop the exit, which is that of an earlier run, unless its task was created or started during this one."""
    for pending in state.find_all(PendingExit):
        if state.find_created(pending.pid) is None and state.find(UnconfirmedStart, pending.pid) is None:
            state = _finish(state, pending.pid, now, effects)
    return state


def _finish_others(state: TaskState, pid: int | None, now: Instant, effects: Effects) -> TaskState:
    """Publish the runs of all tasks but ``pid``, which a report shows: they are over.

    None: there is no task. The starts of pending exits may still arrive, and so may the exit of the last run.
    """
    kinds = (UnconfirmedStart, FoundTask) if pid is None else (UnconfirmedStart, FoundTask, PendingExit)
    for other in dict.fromkeys(each.pid for each in state.evidence if isinstance(each, kinds) and each.pid != pid):
        if pid is None and state.running is not None:
            state = _exit(state, "inferred", now.wall, _UNKNOWN_EXIT, effects)
        state = _finish(state, other, now, effects, await_exit=pid is None)
    return state


def _finish(state: TaskState, pid: int, now: Instant, effects: Effects, *, await_exit: bool = False) -> TaskState:
    """Publish a run that is over: its start or exit fell into a gap, or arrived during another run.

    A task that was never started is dropped, and so are late events of an earlier run: a late start without an exit,
    and all events that another run precedes. ``await_exit``: an exit event may still arrive; query the task otherwise.
    """
    start, pending = state.find(UnconfirmedStart, pid), state.find(PendingExit, pid)
    unstarted = state.is_unstarted(pid)
    if state.running is None and not unstarted and (pending is not None or start is None or not start.late):
        state = _start(state, pid, "inferred", now.wall, effects)
        if pending is not None:
            return _apply_pending_exit(state, pending, effects)
        if await_exit and start is not None:
            effects.append(QueryTask(now.monotonic + EXIT_GRACE_NS))
            return state
        return _exit(state, "inferred", now.wall, _UNKNOWN_EXIT, effects)
    if pending is not None:
        return _drop_pending_exit(state, pending, effects, unstarted=unstarted)
    return replace(
        state,
        evidence=tuple(
            each for each in state.evidence if each.pid != pid or not isinstance(each, (UnconfirmedStart, FoundTask))
        ),
    )


def _drop_pending_exit(
    state: TaskState, pending: PendingExit, effects: Effects, *, unstarted: bool = False
) -> TaskState:
    """Drop an exit. If no start was seen since the creation of its task, CRI's record may still show one."""
    effects.append(Count("never_started") if unstarted else _LATE)
    state = replace(state, evidence=tuple(each for each in state.evidence if each.pid != pending.pid))
    return _remember_exit(state, pending.pid, pending.event.exited_at, pending.event.at, unstarted=unstarted)


def _apply_pending_exit(state: TaskState, pending: PendingExit, effects: Effects, *, hold: bool = False) -> TaskState:
    """End a run that has just started, because its exit arrived before."""
    event = pending.event
    exit_info = ExitInfo(event.status, event.exited_at)
    return _exit(state, "live", event.at, exit_info, effects, hold=hold)


# --- runs ---


def _start(
    state: TaskState,
    pid: int,
    origin: Origin,
    at: int,
    effects: Effects,
    *,
    preexisting: bool = False,
    watched: bool = False,
    moment: int | None = None,
    started_at: int | None = None,
) -> TaskState:
    """Start a run; ``moment``: when it started (monotonic), if that is known to be the newest change.

    ``started_at`` (wall clock): when it started, if that is known and not ``at``.
    """
    evidence = state.evidence
    if evidence:
        if (unconfirmed := state.find(UnconfirmedStart, pid)) is not None:
            origin, at, preexisting = "live", unconfirmed.event.at, False
        if (oom := state.find(OOMKill, 0)) is not None:
            watched = False  # its task was not known: it was this one, or the one before
            if moment is not None and moment <= oom.at:
                evidence = (*evidence, OOMKill(pid, oom.at))
        evidence = tuple(each for each in evidence if not _is_explained_by_start(each, pid))
    missed = origin == "inferred" and not preexisting
    effects.append(_END_CHECKS_OF_RUN if missed else _END_CHECKS)
    effects.append(Started(pid, origin, at, preexisting, started_at))
    return TaskState(
        Running(pid, False, at, origin == "live", watched),
        evidence,
        False,
        state.created,
        state.exited,
        state.last_change if moment is None else moment,
    )


def _is_explained_by_start(evidence: Evidence, pid: int) -> bool:
    if isinstance(evidence, UnconfirmedStart):
        return evidence.pid == pid
    return evidence.pid == 0 or isinstance(evidence, (FoundTask, StoppedTask))


def _exit(
    state: TaskState, origin: Origin, at: int, exit_info: ExitInfo, effects: Effects, *, hold: bool = False
) -> TaskState:
    """End the run; ``hold``: an event has just shown the exit. A query shows it seconds after it has happened."""
    run = _run_of(state)
    if state.evidence:
        if exit_info.status is None and (waited := state.find(WaitedExit, run.pid)) is not None:
            exit_info = ExitInfo(waited.exit_status.exit_status, waited.exit_status.exited_at)
        if exit_info.exited_at is not None and exit_info.exited_at <= at:  # otherwise, the clock was set back since
            for pending in state.find_all(PendingExit):
                exited_at = pending.event.exited_at
                if pending.pid != run.pid and exited_at is not None and exited_at <= exit_info.exited_at:
                    state = _drop_pending_exit(state, pending, effects)
        if state.find(OOMKill, run.pid) is not None:
            exit_info = replace(exit_info, oom=True)
        evidence = tuple(each for each in state.evidence if each.pid != run.pid)
        state = replace(state, evidence=evidence)
    if not state.evidence or state.find(UnconfirmedStart) is None:
        effects.append(_CANCEL_QUERY)
    effects.append(Exited(origin, at, exit_info, run.since if run.watched else 0, hold))
    return _remember_exit(state, run.pid, exit_info.exited_at, at)


def _disconnect(state: TaskState, _input: Disconnected, _now: Instant, _effects: Effects) -> TaskState:
    """Forget created tasks, which may start unseen."""
    return replace(
        state,
        task=NO_TASK,
        evidence=tuple(each for each in state.evidence if each.pid and not isinstance(each, StoppedTask)),
        created=tuple(each for each in state.created if state.find(PendingExit, each.pid) is not None),
    )


def _disconnect_run(state: TaskState, input_: Disconnected, now: Instant, effects: Effects) -> TaskState:
    """Forget created tasks. The run is not confirmed any more."""
    run = replace(_run_of(state), watched=False, confirmed=False)
    return replace(_disconnect(state, input_, now, effects), task=run)


def _ignore(state: TaskState, _input: object, _now: Instant, _effects: Effects) -> TaskState:
    """Change nothing."""
    return state


# --- helpers ---


def _run_of(state: TaskState) -> Running:
    assert isinstance(state.task, Running)  # noqa: S101 (TABLE selects the handler by the task)
    return state.task


def _remember_created(state: TaskState, pid: int, at: int) -> tuple[CreatedTask, ...]:
    """Return the created tasks with another one, which replaces that of the same pid, or the oldest of too many."""
    if state.exited and (exited := state.find_exited(pid)) is not None and at <= exited.until:
        at = exited.until + 1  # the clock was set back: the task is another one than that
    others = [each for each in state.created if each.pid != pid]
    return (*others[1 - MAX_CREATED :], CreatedTask(pid, at))


def _remember_exit(
    state: TaskState, pid: int, exited_at: int | None, noticed: int, *, unstarted: bool = False
) -> TaskState:
    """Note that a task has exited, before ``noticed`` if ``exited_at`` or the pid is unknown.

    Unless another task is running, the one created last is the current one.
    """
    task, created_tasks, until = state.task, state.created, noticed if exited_at is None or not pid else exited_at
    others = []
    for each in state.exited:
        if each.pid != pid:
            others.append(each)
        elif each.until > until:
            until = each.until
    for created in created_tasks:
        if created.pid == pid and created.at > until:
            until = created.at
    if not isinstance(task, Running):
        task = NO_TASK
    elif task.pid == pid:
        if task.since > until and task.start_seen:
            until = task.since
        task = NO_TASK
    exited = (*others[1 - MAX_EXITED :], ExitedTask(pid, exited_at, until, unstarted))
    state = TaskState(task, state.evidence, state.unknown, created_tasks, exited, state.last_change)
    if task is not NO_TASK or not created_tasks or created_tasks[-1].pid == pid:  # as a rule
        return state
    return replace(state, task=state.newest_created())


def _add_evidence(state: TaskState, evidence: Evidence, effects: Effects) -> TaskState:
    """Add evidence; of each kind and pid only the newest is kept, and of all not more than ``MAX_EVIDENCE``."""
    others = [each for each in state.evidence if each.pid != evidence.pid or type(each) is not type(evidence)]
    if len(others) == MAX_EVIDENCE:
        effects.append(Count("dropped_evidence"))
        del others[0]
    return replace(state, evidence=(*others, evidence))


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
    # input            NoTask, Created         Running
    (ContainerCreated, _expect_first_task,     _expect_task),
    (ContainerUpdated, _expect_task,           _ignore),
    (ContainerDeleted, _end_checks,            _expect_exit),
    (TaskCreated,      _create,                _create_while_running),
    (TaskStarted,      _start_task,            _start_while_running),
    (TaskExited,       _exit_without_start,    _exit_while_running),
    (TaskDeleted,      _end_checks_of,         _delete_while_running),
    (TaskPaused,       _pause_without_run,     _pause),
    (TaskResumed,      _pause_without_run,     _pause),
    (TaskOOM,          _oom_without_run,       _oom_while_running),
    (NoTaskReported,   _report_no_task,        _report_no_task_while_running),
    (CreatedReported,  _report_created,        _report_created_while_running),
    (RunningReported,  _report_running,        _report_running_while_running),
    (StoppedReported,  _report_stopped,        _report_stopped_while_running),
    (ExitReported,     _report_exit,           _report_exit_while_running),
    (QueryFailed,      _make_unknown,          _unconfirm),
    (TaskFound,        _query_found,           _ignore),
    (TaskWaited,       _remember_wait,         _remember_wait),
    (StartOverdue,     _resolve_overdue_exits, _drop_overdue_exits),
    (Disconnected,     _disconnect,            _disconnect_run),
)
# fmt: on
