"""The state machine of a container's task: one table of cases, and every cell of the machine's table has one.

test_properties.py checks the invariants of the whole tracker on random histories.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import pytest
from msgspec.structs import replace

from bridge.core import task_machine as machine
from bridge.core.container_state import MAX_CREATED, MAX_EVIDENCE, MAX_EXITED, PendingExit, TaskState
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerUpdated,
    ExitStatus,
    Instant,
    RecordedExit,
    TaskOOM,
    TaskStatus,
)
from bridge.core.task_machine import TABLE, step
from bridge.core.time import SECOND, to_seconds
from tests.unit.core.factories import WEB, created, deleted, exited, moment, paused, resumed, started, task, wall

CREATED, RUNNING, STOPPED, PAUSED = TaskStatus.CREATED, TaskStatus.RUNNING, TaskStatus.STOPPED, TaskStatus.PAUSED


class At(NamedTuple):
    """An input that is processed ``seconds`` after the boot; an event without it is processed when it happens.

    ``step``: the seconds by which the wall clock has been set since the boot.
    """

    seconds: float
    input: object
    step: float = 0


Step: TypeAlias = ContainerEvent | At


def set_back(seconds: float, make_event: Callable[..., ContainerEvent], pid: int) -> At:
    """Return an event that happens after the wall clock was set back by an hour."""
    return At(seconds, make_event(pid, seconds - 3600), step=-3600)


def reported(seconds: float, pid: int | None = None, status: TaskStatus = RUNNING, *, synced: bool = True) -> At:
    """Return the report of a task, or of none; a stopped one has exited with status 3."""
    if pid is None:
        return At(seconds, machine.NoTaskReported())
    if status is CREATED:
        return At(seconds, machine.CreatedReported(pid))
    kind = machine.StoppedReported if status is STOPPED else machine.RunningReported
    return At(seconds, kind(task(pid, status), synced))


def waited(seconds: float, pid: int, status: int | None = 9) -> At:
    return At(seconds, machine.TaskWaited(pid, ExitStatus(status, None if status is None else 123)))


def recorded(
    seconds: float, status: int | None = 9, *, oom: bool = False, started: bool = True, synced: bool = True
) -> At:
    """Return CRI's record of a run from second 0.2 to second 1."""
    exited_at = None if status is None else wall(1)
    record = RecordedExit(WEB, wall(0.2) if started else None, status, exited_at, oom)
    return At(seconds, machine.ExitReported(record, synced))


def found(seconds: float, pid: int, status: TaskStatus = RUNNING) -> At:
    return At(seconds, machine.TaskFound(task(pid, status)))


def oom(seconds: float) -> TaskOOM:
    return TaskOOM(WEB, wall(seconds))


def process(*steps: Step) -> tuple[TaskState, TaskState, machine.Effects, Instant]:
    """Process all steps; return the states before and after the last one, its effects and its moment."""
    before = state = TaskState()
    now = moment(0)
    effects: machine.Effects = []
    for each in steps:
        seconds, input_, clock_step = _input_of(each)
        before, now = state, Instant(wall(seconds + clock_step), moment(seconds).monotonic)
        state, effects = step(state, input_, now)
    return before, state, effects, now


def run(*steps: Step) -> str:
    """Process all steps; return the effects of the last one, and the state after it ("?": unconfirmed), as text."""
    before, state, effects, now = process(*steps)
    texts = [text for effect in effects if (text := describe(effect, now))]
    if (pending := state.find(PendingExit)) not in (None, before.find(PendingExit)):
        texts.append(f"wait {to_seconds(pending.deadline - now.monotonic):g}")
    return f"{', '.join(texts)} -> {type(state.task).__name__}{'' if state.confirmed else '?'}".strip()


def _input_of(each: Step) -> At:
    return each if isinstance(each, At) else At(to_seconds(each.at - wall(0)), each)


def describe(effect: machine.Effect, now: Instant) -> str:
    """Return an effect as text: "started live 5 @2" is the start of pid 5, two seconds after the boot."""
    text = ""
    match effect:
        case machine.Started(pid, origin, at, preexisting, started_at):
            text = f"{'present' if preexisting else 'started'} {origin} {pid} @{_seconds(at)}"
            text += "" if started_at is None else f" since {_seconds(started_at)}"
        case machine.PauseChanged(is_paused, origin, at):
            text = f"{'paused' if is_paused else 'unpaused'} {origin} @{_seconds(at)}"
        case machine.Exited(origin, at, exit_info, _, hold):
            text = f"exited {origin} {exit_info.status} @{_seconds(at)}{' oom' * bool(exit_info.oom)}{' hold' * hold}"
        case machine.QueryTask(due):
            text = f"query in {to_seconds(due - now.monotonic):g}" if due else "query"
        case machine.Count(name):
            text = f"count {name}"
        case machine.BeginChecks():
            text = "begin checks"
    return text  # what is cancelled has none; see test_machine_cancels_what_is_not_needed


def _seconds(at: int) -> str:
    return f"{to_seconds(at - wall(0)):g}"


NEW: list[Step] = [created(5, 0.1)]
RUN: list[Step] = [*NEW, started(5, 0.2)]
ENDED: list[Step] = [*RUN, exited(5, 1)]
GONE = At(3, machine.Disconnected())
OVERDUE = At(40, machine.StartOverdue())
FAILED = At(2, machine.QueryFailed())
UPDATED = ContainerUpdated(WEB, wall(2), "busybox", {})
NEXT: list[Step] = [*RUN, created(6, 1), started(6, 2)]  # the exit of 5 is missing

# fmt: off
CASES: dict[str, list[tuple[str, list[Step], str]]] = {
    "container": [
        ("created", [ContainerCreated(WEB, wall(0), "busybox", "runc")], "begin checks -> NoTask"),
        ("created, after a failed query", [FAILED, ContainerCreated(WEB, wall(3), "busybox", "runc")],
         "begin checks -> NoTask"),
        ("created, with a task", [*NEW, ContainerCreated(WEB, wall(1), "busybox", "runc")], "begin checks -> Created"),
        ("created, while running", [*RUN, ContainerCreated(WEB, wall(1), "busybox", "runc")],
         "begin checks -> Running"),
        ("updated", [UPDATED], "begin checks -> NoTask"),
        ("updated, with a task", [*NEW, UPDATED], "begin checks -> Created"),
        ("updated, while running", [*RUN, UPDATED], "-> Running"),
        ("deleted", [ContainerDeleted(WEB, wall(1))], "-> NoTask"),
        ("deleted, with a task", [*NEW, ContainerDeleted(WEB, wall(1))], "-> Created"),
        ("deleted, while running", [*RUN, ContainerDeleted(WEB, wall(1))], "query in 5 -> Running"),
    ],
    "run": [
        ("created", [*NEW], "begin checks -> Created"),
        ("started", [*RUN], "started live 5 @0.2 -> Running"),
        ("paused", [*RUN, paused(3)], "paused live @3 -> Running"),
        ("resumed", [*RUN, paused(3), resumed(4)], "unpaused live @4 -> Running"),
        ("exited", [*RUN, exited(5, 5, 137)], "exited live 137 @5 hold -> NoTask"),
        ("exited, while paused", [*RUN, paused(3), exited(5, 5)], "exited live 0 @5 hold -> NoTask"),
        ("task deleted", [*ENDED, deleted(5, 6)], "-> NoTask"),
        ("next task created", [*ENDED, created(6, 3)], "begin checks -> Created"),
        ("next run", [*ENDED, deleted(5, 2), created(6, 3), started(6, 4)], "started live 6 @4 -> Running"),
        ("started, creation unknown", [started(5, 1)], "started live 5 @1 -> Running"),
    ],
    "repeated": [
        ("created, after exit", [*ENDED, At(4, created(5, 0.1))], "count late -> NoTask"),
        ("started, after exit", [*ENDED, At(4, started(5, 0.2))], "count duplicate, query -> NoTask"),
        ("exited, after exit", [*ENDED, At(4, exited(5, 1, 137))], "count duplicate -> NoTask"),
        ("created, while running", [*RUN, At(4, created(5, 0.1))], "count late -> Running"),
        ("started, while running", [*RUN, At(4, started(5, 0.2))], "count duplicate -> Running"),
        ("start of the previous run", [*ENDED, created(6, 2), started(6, 3), At(4, started(5, 0.2))],
         "count duplicate -> Running"),
        ("exit of the previous run", [*ENDED, created(6, 2), started(6, 3), At(4, exited(5, 1))],
         "count duplicate -> Running"),
        ("task of the previous run deleted", [*RUN, At(4, deleted(4, 0.1))], "-> Running"),
        ("creation of an older task", [*NEW, created(6, 1), exited(6, 2), OVERDUE, At(41, created(5, 0.1))],
         "count late -> NoTask"),
    ],
    "exit before start": [
        ("exit", [exited(5, 1, 9)], "wait 30 -> NoTask"),
        ("exit, after creation", [*NEW, exited(5, 3, 9)], "wait 30 -> Created"),
        ("exit repeated", [exited(5, 1, 9), exited(5, 1, 9)], "count duplicate -> NoTask"),
        ("then the start", [*NEW, exited(5, 3, 9), At(20, started(5, 2))],
         "started live 5 @2, exited live 9 @3 hold -> NoTask"),
        ("then the start, after an OOM event", [*NEW, oom(2), exited(5, 3, 9), At(20, started(5, 2))],
         "started live 5 @2, exited live 9 @3 oom hold -> NoTask"),
        ("then an OOM event and the start", [exited(5, 3, 9), oom(3.1), At(20, started(5, 2))],
         "started live 5 @2, exited live 9 @3 oom hold -> NoTask"),
        ("overdue", [exited(5, 1, 9), OVERDUE], "started inferred 5 @40, exited live 9 @1 -> NoTask"),
        ("overdue, then the start", [exited(5, 1, 9), OVERDUE, At(41, started(5, 0.5))],
         "count duplicate, query -> NoTask"),
        ("overdue, task was created", [*NEW, exited(5, 2, 137), OVERDUE], "count never_started -> NoTask"),
        ("overdue, task was created, then repeated", [*NEW, exited(5, 2, 137), OVERDUE, At(41, exited(5, 2, 137))],
         "count duplicate -> NoTask"),
        ("overdue, while another is running", [*RUN, At(3, exited(4, 0.1)), OVERDUE], "count late -> Running"),
        ("overdue, already resolved", [*NEW, exited(5, 3, 9), At(20, started(5, 2)), OVERDUE], "-> NoTask"),
        ("next exit", [exited(5, 1), exited(6, 2)], "started inferred 5 @2, exited live 0 @1, wait 30 -> NoTask"),
        ("next start", [exited(5, 1), started(6, 2)],
         "started inferred 5 @2, exited live 0 @1, started live 6 @2 -> Running"),
        ("next start, task was created", [*NEW, exited(5, 2, 137), created(6, 3), started(6, 4)],
         "count never_started, started live 6 @4 -> Running"),
        ("next exit, task was created", [*NEW, exited(5, 2, 137), created(6, 3), exited(6, 4)],
         "count never_started, wait 30 -> Created"),
        ("overdue, pids of created tasks are full", [*(created(pid, pid) for pid in range(5, 5 + MAX_CREATED)),
         *(created(pid, pid) for pid in range(5, 5 + MAX_CREATED)), At(20, exited(5, 6, 137)),
         At(60, machine.StartOverdue())],
         "count never_started -> Created"),
        ("no task", [exited(5, 1, 9), reported(2)], "-> NoTask"),
        ("same pid running", [exited(5, 1, 9), reported(2, 5)],
         "started inferred 5 @2, exited live 9 @1, started inferred 5 @2 -> Running"),
        ("same task stopped", [exited(5, 1, 9), reported(2, 5, STOPPED)],
         "started inferred 5 @2, exited live 9 @1 -> NoTask"),
        ("same pid running, task was created", [*NEW, exited(5, 2), reported(3, 5)],
         "count never_started, started inferred 5 @3 -> Running"),
        ("same task stopped, task was created", [*NEW, exited(5, 2), reported(3, 5, STOPPED)], "-> Created"),
        ("other task running", [exited(5, 1), reported(2, 6)],
         "started inferred 5 @2, exited live 0 @1, started inferred 6 @2 -> Running"),
        ("other task running, as is known", [*RUN, At(3, exited(4, 1)), reported(3, 5)], "count late -> Running"),
        ("other task running, as is known, which exits", [*RUN, At(3, exited(4, 1)), reported(3, 5), exited(5, 4)],
         "exited live 0 @4 hold -> NoTask"),
        ("of an earlier run, then the exit", [*RUN, At(3, exited(6, 1)), At(4, exited(5, 2))],
         "count late, exited live 0 @2 hold -> NoTask"),
        ("of the next run, then the exit", [*RUN, At(3, exited(6, 3)), At(4, exited(5, 2)), OVERDUE],
         "started inferred 6 @40, exited live 0 @3 -> NoTask"),
        ("of an earlier run, then the deletion", [*RUN, At(3, exited(6, 1)), At(4, deleted(5, 2))],
         "count late, exited inferred 0 @4 hold -> NoTask"),
        ("at an unknown time, then the exit", [*RUN, At(3, replace(exited(6, 1), exited_at=None)), At(4, exited(5, 2)),
         OVERDUE],
         "started inferred 6 @40, exited live 0 @1 -> NoTask"),
        ("then the exit at an unknown time", [*RUN, At(3, exited(6, 1)), At(4, replace(exited(5, 2), exited_at=None)),
         OVERDUE],
         "started inferred 6 @40, exited live 0 @1 -> NoTask"),
    ],
    "lost exit": [
        ("task deleted", [*RUN, At(2.5, deleted(5, 2, 137))], "exited inferred 137 @2.5 hold -> NoTask"),
        ("task deleted, then the exit", [*RUN, At(2.5, deleted(5, 2, 137)), At(3, exited(5, 1, 137))],
         "count duplicate -> NoTask"),
        ("next task created", [*RUN, created(6, 1)], "query in 5, begin checks -> Running"),
        ("next task started", [*NEXT], "query, count unconfirmed_start -> Running"),
        ("next task started, then running", [*NEXT, reported(3, 6)],
         "exited inferred None @3, started live 6 @2 -> Running"),
        ("next task started, then paused", [*NEXT, reported(3, 6, PAUSED)],
         "exited inferred None @3, started live 6 @2, paused inferred @3 -> Running"),
        ("next task started, then its creation", [*RUN, At(2, started(6, 2)), At(2.01, created(6, 1.9))],
         "count late -> Running"),
        ("next task started, then its creation and running",
         [*RUN, At(2, started(6, 2)), At(2.01, created(6, 1.9)), reported(3, 6)],
         "exited inferred None @3, started live 6 @2 -> Running"),
        ("next task created, after a start of its pid", [*RUN, At(2, started(6, 2)), At(2.6, created(6, 2.5))],
         "exited inferred None @2.6, started live 6 @2, exited inferred None @2.5, begin checks -> Created"),
        ("next task started, then the exit", [*NEXT, At(3, exited(5, 0.9))], "exited live 0 @0.9 hold -> Created"),
        ("next task started, then the exit and running", [*NEXT, At(3, exited(5, 0.9)), reported(3, 6)],
         "started live 6 @2 -> Running"),
        ("next task exited", [*NEXT, exited(6, 3)], "query, wait 30 -> Running"),
        ("next task exited, then none", [*NEXT, exited(6, 3), reported(3)],
         "exited inferred None @3, started live 6 @2, exited live 0 @3 -> NoTask"),
        ("next task exited, then stopped", [*NEXT, exited(6, 3), reported(3, 6, STOPPED)],
         "exited inferred None @3, started live 6 @2, exited live 0 @3 -> NoTask"),
        ("next task started, then none", [*NEXT, reported(2.5)],
         "exited inferred None @2.5, started live 6 @2, query in 5 -> Running"),
        ("next task started, then none and the exit", [*NEXT, reported(2.5), At(3, exited(6, 2.2))],
         "exited live 0 @2.2 hold -> NoTask"),
        ("next task started, then none twice", [*NEXT, reported(2.5), reported(7.5)],
         "exited inferred None @7.5 -> NoTask"),
        ("next task exited, then its start", [*RUN, At(3, exited(6, 2)), At(3, started(6, 2))],
         "query, count unconfirmed_start -> Running"),
        ("creation and exit unknown", [*RUN, started(6, 2), reported(2.1, 6)],
         "exited inferred None @2.1, started live 6 @2 -> Running"),
        ("exit without pid", [*RUN, exited(0, 1, 255)], "query -> Running"),
        ("exit without pid, not running", [exited(0, 1, 255)], "-> NoTask"),
        ("task without pid deleted", [*RUN, deleted(0, 1, 255)], "query -> Running"),
        ("task without pid deleted, not running", [deleted(0, 1, 255)], "-> NoTask"),
        ("task without pid deleted, not started", [*NEW, deleted(0, 1, 255)], "-> Created"),
    ],
    "exit recorded by CRI": [
        ("run unseen", [recorded(3)],
         "started inferred 0 @3 since 0.2, exited inferred 9 @3 -> NoTask"),
        ("run unseen, OOM kill", [recorded(3, 137, oom=True)],
         "started inferred 0 @3 since 0.2, exited inferred 137 @3 oom -> NoTask"),
        ("run unseen, OOM event", [oom(2), recorded(3, 137)],
         "started inferred 0 @3 since 0.2, exited inferred 137 @3 oom -> NoTask"),
        ("run unseen, status unknown", [recorded(3, None)],
         "started inferred 0 @3 since 0.2, exited inferred None @3 -> NoTask"),
        ("run unseen, again", [recorded(3), recorded(4)], "-> NoTask"),
        ("run unseen, then its late creation", [recorded(3), At(3.5, created(5, 0.1))], "count late -> NoTask"),
        ("run unseen, then its late start", [recorded(3), At(3.5, started(5, 1.1))],
         "count duplicate, query -> NoTask"),
        ("run unseen, then its late exit", [recorded(3), At(3.5, exited(5, 1))], "count duplicate -> NoTask"),
        ("run unseen, then its late deletion", [recorded(3), At(3.5, deleted(5, 1))], "-> NoTask"),
        ("run unseen, then its task stopped", [recorded(3), reported(3.5, 5, STOPPED)], "-> NoTask"),
        ("run unseen, then no task", [recorded(3), reported(3.5)], "-> NoTask"),
        ("before the bridge watched", [recorded(3, synced=False)], "-> NoTask"),
        ("before the bridge watched, then again", [recorded(3, synced=False), recorded(4)], "-> NoTask"),
        ("never started", [recorded(3, 128, started=False)], "-> NoTask"),
        ("never started, then again", [recorded(3, 128, started=False), recorded(4)], "-> NoTask"),
        ("after a failed query", [FAILED, recorded(3)],
         "started inferred 0 @3 since 0.2, exited inferred 9 @3 -> NoTask"),
        ("task created", [*NEW, recorded(3)], "started inferred 5 @3 since 0.2, exited inferred 9 @3 -> NoTask"),
        ("task created, then its exit", [*NEW, recorded(3), At(4, exited(5, 1))], "count duplicate -> NoTask"),
        ("exit seen", [exited(5, 1, 7), recorded(3)],
         "started inferred 5 @3 since 0.2, exited live 7 @1 -> NoTask"),
        ("exit seen, OOM kill", [exited(5, 1, 137), recorded(3, 137, oom=True)],
         "started inferred 5 @3 since 0.2, exited live 137 @1 oom -> NoTask"),
        ("exit seen, never started", [exited(5, 1, 7), recorded(3, started=False)], "-> NoTask"),
        ("running", [*RUN, recorded(3)], "exited inferred 9 @3 -> NoTask"),
        ("running, OOM kill", [*RUN, recorded(3, 137, oom=True)], "exited inferred 137 @3 oom -> NoTask"),
        ("running, status known from the wait only", [*RUN, waited(2, 5, 4), recorded(3, None)],
         "exited inferred 4 @3 -> NoTask"),
        ("running, then the exit event", [*RUN, recorded(3), At(4, exited(5, 1))], "count duplicate -> NoTask"),
        ("running again", [*ENDED, created(6, 2), started(6, 3), recorded(4)], "-> Running"),
        ("ended", [*ENDED, recorded(3)], "-> NoTask"),
    ],
    "several lost exits": [
        ("second task created", [*NEXT, exited(6, 3, 26), deleted(6, 3.1), created(7, 4)],
         "query in 5, begin checks -> Running"),
        ("then stopped", [*NEXT, exited(6, 3, 26), deleted(6, 3.1), created(7, 4), started(7, 5), exited(7, 6),
         reported(7, 7, STOPPED)],
         "exited inferred None @7, started live 6 @2, exited live 26 @3, started live 7 @5, "
         "exited live 0 @6 -> NoTask"),
        ("then running", [*NEXT, exited(6, 3, 26), created(7, 4), started(7, 5), reported(7, 7)],
         "exited inferred None @7, started live 6 @2, exited live 26 @3, started live 7 @5 -> Running"),
        ("then created", [*NEXT, created(7, 4), reported(5, 7, CREATED)],
         "exited inferred None @5, started live 6 @2, exited inferred None @5 -> Created"),
        ("then none", [*NEXT, exited(6, 3, 26), created(7, 4), started(7, 5), reported(7)],
         "exited inferred None @7, started live 6 @2, exited live 26 @3, started live 7 @5, query in 5 -> Running"),
        ("then none, without exits", [*NEXT, created(7, 4), started(7, 5), reported(7)],
         "exited inferred None @7, started live 6 @2, query in 5, exited inferred None @7, started live 7 @5, "
         "query in 5 -> Running"),
        ("then overdue", [*NEXT, exited(6, 3), OVERDUE], "-> Running"),
        ("many tasks", [*NEXT, exited(6, 2.5, 26), *(created(pid, pid) for pid in range(7, 6 + MAX_CREATED)),
         created(6 + MAX_CREATED, 20)],
         "exited inferred None @20, started live 6 @2, exited live 26 @2.5, begin checks -> Created"),
        ("restarted after a gap", [*NEXT, exited(6, 3, 26), At(4, machine.Disconnected()), reported(5)],
         "exited inferred None @5, started live 6 @2, exited live 26 @3 -> NoTask"),
    ],
    "pid returns": [
        ("created", [*ENDED, created(5, 2)], "begin checks -> Created"),
        ("started", [*ENDED, created(5, 2), started(5, 3)], "started live 5 @3 -> Running"),
        ("exited", [*ENDED, created(5, 2), started(5, 3), exited(5, 4, 7)], "exited live 7 @4 hold -> NoTask"),
        ("then the first exit again", [*ENDED, created(5, 2), started(5, 3), At(4, exited(5, 1))],
         "query, count duplicate -> Running"),
        ("then an exit in between", [*ENDED, created(5, 2), started(5, 3), At(4, exited(5, 1.5, 137))],
         "query, count duplicate -> Running"),
        ("then the first deletion", [*ENDED, created(5, 2), started(5, 3), At(4, deleted(5, 1))],
         "query, count duplicate -> Running"),
        ("then the first start again", [*ENDED, created(5, 2), started(5, 3), At(4, started(5, 0.2))],
         "count duplicate -> Running"),
        ("then the first creation again", [*ENDED, created(5, 2), started(5, 3), At(4, created(5, 0.1))],
         "count late -> Running"),
        ("then a start in between", [*ENDED, created(5, 2), started(5, 3), At(4, started(5, 1.5))],
         "count duplicate -> Running"),
        ("then the wait of the first", [*ENDED, created(5, 2), started(5, 3),
         At(4, machine.TaskWaited(5, ExitStatus(0, wall(1))))], "-> Running"),
        ("another pid, then the exit of the first", [*ENDED, created(6, 2), started(6, 3),
         At(4, machine.TaskWaited(6, ExitStatus(0, wall(1))))], "query -> Running"),
        ("then its exit before its start", [*ENDED, created(5, 2), exited(5, 4, 7), At(5, started(5, 3))],
         "started live 5 @3, exited live 7 @4 hold -> NoTask"),
        ("created, then the first exit again", [*ENDED, created(5, 2), At(3, exited(5, 1))],
         "count duplicate -> Created"),
        ("creation unseen", [*ENDED, started(5, 3)], "query, count unconfirmed_start -> NoTask"),
        ("creation unseen, then running", [*ENDED, started(5, 3), reported(4, 5)], "started live 5 @3 -> Running"),
        ("creation unseen, then none", [*ENDED, started(5, 3), reported(4)], "-> NoTask"),
        ("creation unseen, then its exit and none", [*ENDED, started(5, 3), exited(5, 4, 7), reported(5)],
         "started live 5 @3, exited live 7 @4 -> NoTask"),
        ("creation unseen, late", [*ENDED, reported(3), At(4, started(5, 2)), reported(5)], "-> NoTask"),
        ("found", [*ENDED, found(3, 5), reported(5, 5)], "started inferred 5 @5 -> Running"),
        ("stopped", [*ENDED, At(3, machine.StoppedReported(replace(task(5, STOPPED), exited_at=wall(2)), True))],
         "started inferred 5 @3, exited inferred 3 @3 -> NoTask"),
        ("ended before the clock was set back", [*ENDED, reported(2, 5), reported(0.5), At(3, started(5, 0.9))],
         "count duplicate, query -> NoTask"),
        ("created after the clock was set back", [*ENDED, reported(2, 5), reported(0.5), At(3, created(5, 0.9))],
         "count late, query -> NoTask"),
        ("created after the clock was set back, then created", [*ENDED, reported(2, 5), reported(0.5),
         At(3, created(5, 0.9)), reported(3, 5, CREATED)], "begin checks -> Created"),
        ("exited after the clock was set back", [*ENDED, created(5, 2), started(5, 3), reported(2, 5),
         At(2.5, exited(5, 2.2, 7))], "query -> Running"),
        ("exited after the clock was set back, then none", [*ENDED, created(5, 2), started(5, 3), reported(2, 5),
         At(2.5, exited(5, 2.2, 7)), reported(2.6)], "exited inferred 7 @2.6 -> NoTask"),
        ("first exit lost, created", [*RUN, oom(1), created(5, 2)],
         "exited inferred None @2 oom, begin checks -> Created"),
        ("first exit lost, created, then the exit", [*RUN, created(5, 2), At(3, exited(5, 1))],
         "count duplicate -> Created"),
        ("exit of another task lost, whole run meanwhile", [*RUN, created(6, 2), started(6, 3), exited(6, 4, 9),
         created(6, 5)],
         "exited inferred None @5, started live 6 @3, exited live 9 @4, begin checks -> Created"),
        ("exit of another task lost, started meanwhile", [*RUN, created(6, 2), started(6, 3), created(6, 5)],
         "exited inferred None @5, started live 6 @3, exited inferred None @5, begin checks -> Created"),
        ("first exit lost, started", [*RUN, started(5, 2)], "exited inferred None @2, started live 5 @2 -> Running"),
        ("killed before its start, created", [*NEW, exited(5, 1, 137), created(5, 2)],
         "count never_started, begin checks -> Created"),
        ("start after the exit", [exited(5, 1, 9), started(5, 2)],
         "started live 5 @2, exited live 9 @1 hold, query -> NoTask"),
        ("then the exit of the first, published late", [*ENDED, created(5, 2),
         At(3, replace(exited(5, 2.5), exited_at=wall(1.5)))], "count duplicate -> Created"),
        ("stopped, exit at an unknown time", [*RUN, replace(exited(5, 0.4), exited_at=None), reported(2, 5, STOPPED)],
         "-> NoTask"),
        ("late creation after the exit", [exited(5, 2, 9), At(3, created(5, 1))], "count late -> NoTask"),
        ("late creation after the exit, overdue", [exited(5, 2, 9), At(3, created(5, 1)), OVERDUE],
         "count never_started -> NoTask"),
        ("creation of the running task", [started(5, 1), At(2, created(5, 0.5))], "count late -> Running"),
        ("start of the reported task", [reported(1, 5), At(2, started(5, 0.5)), exited(5, 3)],
         "exited live 0 @3 hold -> NoTask"),
    ],
    "clock set back": [
        ("killed before its start, then created", [*NEW, exited(5, 1), set_back(2, created, 5)],
         "count never_started, begin checks -> Created"),
        ("killed before its start, then started", [*NEW, exited(5, 1), set_back(2, created, 5),
         set_back(3, started, 5)], "started live 5 @-3597 -> Running"),
        ("ended, then a whole run", [*ENDED, set_back(2, created, 5), set_back(3, started, 5), set_back(4, exited, 5),
         At(5, reported(5, 5, STOPPED).input, step=-3600)],
         "exited inferred 3 @-3595 -> NoTask"),
        ("ended, then the first start again", [*ENDED, set_back(2, created, 5), At(3, started(5, 0.2), step=-3600)],
         "count duplicate, query -> Created"),
        ("created again", [*NEW, set_back(2, created, 5)], "count late -> Created"),
        ("created twice", [*NEW, At(2, created(5, 0.1), step=-3600)], "count late -> Created"),
        ("ended, then created", [*ENDED, set_back(2, created, 5)], "begin checks -> Created"),
        ("ended, then created twice", [*ENDED, set_back(2, created, 5), At(3, created(5, 2 - 3600), step=-3600)],
         "count late, query -> Created"),
        ("next task killed before its start", [*ENDED, created(5, 2), set_back(3, exited, 5)], "wait 30 -> Created"),
        ("next task created, then the first exit", [*ENDED, created(5, 2), At(3, exited(5, 1), step=-3600)],
         "count duplicate -> Created"),
        ("next task running, then an earlier exit", [*ENDED, set_back(2, created, 5), set_back(3, started, 5),
         At(4, reported(4, 5).input, step=-3600), At(5, exited(5, 1.5), step=-3600)],
         "query, count duplicate -> Running"),
        ("exit from the wait, then a whole run, all late", [*RUN,
         At(4, machine.TaskWaited(5, ExitStatus(7, wall(1))), step=-3600),
         *(At(4, each, step=-3600) for each in (started(6, 2 - 3600), exited(6, 3 - 3600))),
         At(5, reported(5, 6, STOPPED).input, step=-3600)],
         "exited inferred 7 @-3595, started live 6 @-3598, exited live 0 @-3597 -> NoTask"),
        ("late start, then its exit again", [*RUN, set_back(2, exited, 5), At(3, started(5, 1), step=-3600),
         At(4, exited(5, 2 - 3600), step=-3600)], "count duplicate -> NoTask"),
    ],
    "clock set forward while events wait": [
        ("killed before its start, then created", [*NEW, At(200, exited(5, 1), step=7200),
         At(200, created(5, 2), step=7200)], "count never_started, begin checks -> Created"),
        ("killed before its start, then late creation", [*NEW, At(200, exited(5, 1), step=7200),
         At(200, created(5, 0.1), step=7200)], "count late -> Created"),
    ],
    "absurd events": [
        ("pid of an old start", [*(started(pid, pid) for pid in range(100, 100 + 2 * MAX_EVIDENCE))],
         "query, count unconfirmed_start, count dropped_evidence -> Running"),
        ("start in the future", [At(1, started(5, 1e6))], "query, count unconfirmed_start -> NoTask"),
        ("start in the past", [*RUN, exited(5, 1), At(2, started(6, -1e6)), reported(3, 6)],
         "started live 6 @-1e+06 -> Running"),
    ],
    "wait": [
        ("returned", [*RUN, waited(1, 5)], "query in 2 -> Running"),
        ("returned, then no task", [*RUN, waited(1, 5), reported(3)], "exited inferred 9 @3 -> NoTask"),
        ("returned, then the exit", [*RUN, waited(1, 5), At(1.2, exited(5, 1.1, 8))],
         "exited live 8 @1.1 hold -> NoTask"),
        ("returned twice", [*RUN, waited(1, 5), waited(2, 5, None), reported(3)], "exited inferred 9 @3 -> NoTask"),
        ("returned without status", [*RUN, waited(1, 5, None), reported(3)], "exited inferred None @3 -> NoTask"),
        ("returned before the start", [*NEW, waited(1, 5)], "query in 2 -> Created"),
        ("returned before the start, then the start", [*NEW, waited(2, 5), At(3, started(5, 1.5))],
         "started live 5 @1.5, query in 2 -> Running"),
        ("returned before the start, then the start and no task", [*NEW, waited(2, 5), At(3, started(5, 1.5)),
         reported(5)],
         "exited inferred 9 @5 -> NoTask"),
        ("with the exit of the next task",
         [*RUN, At(1, machine.TaskWaited(5, ExitStatus(3, wall(0.5)))), reported(4, 6, STOPPED)],
         "exited inferred None @4, started inferred 6 @4, exited inferred 3 @4 -> NoTask"),
        ("of an unknown task", [waited(1, 5)], "-> NoTask"),
        ("of an earlier task", [*RUN, waited(1, 4)], "-> Running"),
        ("of an earlier task, then no task", [*NEW, waited(1, 5), created(6, 2), started(6, 3), reported(4)],
         "exited inferred None @4 -> NoTask"),
        ("after the exit", [*NEW, exited(5, 1), waited(2, 5)], "-> Created"),
    ],
    "late start": [
        ("of an earlier run", [*RUN, At(3, created(4, 0.05)), At(3, started(4, 0.06))],
         "query, count unconfirmed_start -> Running"),
        ("of an earlier run, then running", [*RUN, At(3, started(4, 0.06)), reported(3, 5)], "-> Running"),
        ("unexpected", [*RUN, paused(2), exited(5, 3), At(4, started(4, 0.1))],
         "query, count unconfirmed_start -> NoTask"),
        ("exit is pending", [paused(2), exited(5, 3), At(4, started(5, 1))],
         "query, started live 5 @1, exited live 0 @3 hold -> NoTask"),
        ("expected", [created(5, 1), paused(3), At(4, started(5, 2))], "query, started live 5 @2 -> Running"),
        ("expected, another exit is pending", [exited(4, 1, 9), created(5, 1), paused(3), At(4, started(5, 2))],
         "query, started inferred 4 @4, exited live 9 @1, query, started live 5 @2 -> Running"),
        ("expected, then paused", [created(5, 1), paused(3), At(4, started(5, 2)), reported(4, 5, PAUSED)],
         "paused inferred @4 -> Running"),
    ],
    "pause": [
        ("no task", [paused(1)], "count unexpected_pause, query -> NoTask"),
        ("resumed, no task", [resumed(1)], "count unexpected_pause, query -> NoTask"),
        ("not started", [*NEW, paused(1)], "count unexpected_pause, query -> Created"),
        ("resumed, not started", [*NEW, resumed(1)], "count unexpected_pause, query -> Created"),
        ("late", [*RUN, At(2, paused(0.1))], "count unexpected_pause, query -> Running"),
        ("repeated", [*RUN, resumed(1)], "count unexpected_pause, query -> Running"),
        ("from the future", [*RUN, At(2, paused(9))], "count unexpected_pause, query -> Running"),
        ("once more", [*RUN, paused(2), paused(3)], "count unexpected_pause, query -> Running"),
        ("after the resume", [*RUN, resumed(3), At(4, paused(2))], "count unexpected_pause, query -> Running"),
        ("older than a report", [*RUN, reported(3, 5), At(4, paused(2))], "count unexpected_pause, query -> Running"),
        ("not confirmed", [*RUN, At(1, machine.Disconnected()), paused(2)],
         "count unexpected_pause, query -> Running?"),
        ("confirmed by a repeated start", [*RUN, GONE, At(6, started(5, 0.2)), paused(7)], "paused live @7 -> Running"),
        ("not confirmed by another start", [*ENDED, started(6, 2), GONE, At(4, started(5, 0.2)), paused(5)],
         "count unexpected_pause, query -> Running?"),
    ],
    "oom": [
        ("unknown task", [oom(1)], "-> NoTask"),
        ("created", [*NEW, oom(1)], "-> Created"),
        ("running", [*RUN, oom(1)], "-> Running"),
        ("running, then the exit", [*RUN, oom(1), oom(1), exited(5, 2, 137)], "exited live 137 @2 oom hold -> NoTask"),
        ("of the previous run", [*RUN, oom(0.5), exited(5, 1), created(6, 2), started(6, 3), exited(6, 4)],
         "exited live 0 @4 hold -> NoTask"),
        ("after the exit", [*ENDED, oom(2)], "count late -> NoTask"),
        ("after the exit, then the next exit", [*ENDED, oom(2), started(6, 3), exited(6, 4)],
         "exited live 0 @4 hold -> NoTask"),
        ("next task created, then no task", [*RUN, oom(1), created(6, 1.5), reported(2)],
         "exited inferred None @2 oom -> Created"),
        ("of the next task", [*RUN, created(6, 1.5), oom(2), exited(5, 3)], "exited live 0 @3 hold -> Created"),
        ("of the next task, then its exit", [*RUN, created(6, 1.5), oom(2), exited(5, 3), started(6, 4), exited(6, 5)],
         "exited live 0 @5 oom hold -> NoTask"),
        ("before its late start", [oom(2), At(3, started(5, 1)), exited(5, 4)], "exited live 0 @4 oom hold -> NoTask"),
        ("before the next start", [*ENDED, oom(2), started(6, 3), exited(6, 4)], "exited live 0 @4 hold -> NoTask"),
        ("of a found task", [found(2, 5), oom(3), reported(4, 5), exited(5, 5)], "exited live 0 @5 oom hold -> NoTask"),
    ],
    "unknown task reported": [
        ("none", [reported(1)], "-> NoTask"),
        ("running", [reported(1, 5)], "started inferred 5 @1 -> Running"),
        ("paused", [reported(1, 5, PAUSED)], "started inferred 5 @1, paused inferred @1 -> Running"),
        ("pausing", [reported(1, 5, TaskStatus.PAUSING)], "started inferred 5 @1, paused inferred @1 -> Running"),
        ("stopped", [reported(1, 5, STOPPED)], "started inferred 5 @1, exited inferred 3 @1 -> NoTask"),
        ("created", [reported(1, 5, CREATED)], "begin checks -> Created"),
        ("created, then the exit, overdue", [reported(1, 5, CREATED), exited(5, 2), OVERDUE],
         "count never_started -> NoTask"),
        ("created, then running", [*NEW, reported(1, 5)], "started inferred 5 @1 -> Running"),
        ("created again", [*NEW, reported(1, 5, CREATED)], "-> Created"),
        ("created, then none", [*NEW, reported(1)], "-> Created"),
        ("running, not synced", [reported(1, 5, synced=False)], "present inferred 5 @1 -> Running"),
        ("paused, not synced", [reported(1, 5, PAUSED, synced=False)],
         "present inferred 5 @1, paused inferred @1 -> Running"),
        ("stopped, not synced", [reported(1, 5, STOPPED, synced=False)], "-> NoTask"),
        ("stopped, not synced, then the exit", [reported(1, 5, STOPPED, synced=False), At(3, exited(5, 0.5))],
         "count duplicate -> NoTask"),
        ("running, after a failed query", [FAILED, reported(3, 5)], "present inferred 5 @3 -> Running"),
        ("stopped, after a failed query", [FAILED, reported(3, 5, STOPPED)], "-> NoTask"),
        ("running, without pid", [FAILED, reported(3, 0)], "-> NoTask"),
        ("stopped, without pid", [FAILED, reported(3, 0, STOPPED)], "-> NoTask"),
        ("created, without pid", [FAILED, reported(3, 0, CREATED)], "-> NoTask"),
    ],
    "reported while running": [
        ("none", [*RUN, reported(1)], "exited inferred None @1 -> NoTask"),
        ("running", [*RUN, reported(1, 5)], "-> Running"),
        ("paused", [*RUN, reported(1, 5, PAUSED)], "paused inferred @1 -> Running"),
        ("paused, once more", [*RUN, reported(1, 5, PAUSED), reported(2, 5, PAUSED)], "-> Running"),
        ("resumed", [*RUN, paused(0.5), reported(1, 5)], "unpaused inferred @1 -> Running"),
        ("stopped", [*RUN, reported(1, 5, STOPPED)], "exited inferred 3 @1 -> NoTask"),
        ("created again", [*RUN, reported(1, 5, CREATED)], "exited inferred None @1, begin checks -> Created"),
        ("running, without pid", [*RUN, reported(1, 0)], "-> Running"),
        ("stopped, without pid", [*RUN, reported(1, 0, STOPPED)], "exited inferred 3 @1 -> NoTask"),
        ("created, without pid", [*RUN, reported(1, 0, CREATED)], "-> Running"),
        ("other running", [*RUN, reported(1, 6)], "exited inferred None @1, started inferred 6 @1 -> Running"),
        ("other running, not synced", [*RUN, reported(1, 6, synced=False)],
         "exited inferred None @1, present inferred 6 @1 -> Running"),
        ("other stopped", [*RUN, reported(1, 6, STOPPED)],
         "exited inferred None @1, started inferred 6 @1, exited inferred 3 @1 -> NoTask"),
        ("other created", [*RUN, reported(1, 6, CREATED)], "exited inferred None @1, begin checks -> Created"),
        ("exited one stopped", [*ENDED, created(6, 2), started(6, 3), reported(4, 5, STOPPED)],
         "exited inferred None @4 -> NoTask"),
    ],
    "reported after exit": [
        ("running", [*ENDED, reported(2, 5)], "started inferred 5 @2 -> Running"),
        ("stopped", [*ENDED, reported(2, 5, STOPPED)], "-> NoTask"),
        ("created", [*ENDED, reported(2, 5, CREATED)], "begin checks -> Created"),
    ],
    "stopped before its start": [
        ("reported", [*NEW, reported(1, 5, STOPPED)], "query in 30 -> Created"),
        ("reported again", [*NEW, reported(1, 5, STOPPED), reported(2, 5, STOPPED)], "query in 29 -> Created"),
        ("after the wait", [*NEW, reported(1, 5, STOPPED), reported(31, 5, STOPPED)],
         "started inferred 5 @31, exited inferred 3 @31 -> NoTask"),
        ("after the wait, not synced", [*NEW, reported(1, 5, STOPPED), reported(31, 5, STOPPED, synced=False)],
         "-> NoTask"),
        ("then the exit", [*NEW, reported(1, 5, STOPPED), exited(5, 2), OVERDUE],
         "count never_started -> NoTask"),
        ("then the start", [*NEW, reported(1, 5, STOPPED), At(2, started(5, 1.5))], "started live 5 @1.5 -> Running"),
        ("then another task", [*NEW, reported(1, 5, STOPPED), created(6, 2), reported(35, 6, STOPPED)],
         "query in 30 -> Created"),
        ("after a gap", [*NEW, created(6, 1), exited(6, 2), GONE, reported(4, 5, STOPPED)],
         "count never_started, started inferred 5 @4, exited inferred 3 @4 -> NoTask"),
        ("after a gap, with the exit", [*NEW, created(6, 1), exited(6, 2), GONE, reported(4, 5, STOPPED), OVERDUE],
         "-> NoTask"),
    ],
    "start check": [
        ("running", [found(2, 5)], "query in 2 -> NoTask"),
        ("running, after creation", [*NEW, found(2, 5)], "query in 2 -> Created"),
        ("created", [found(2, 5, CREATED)], "query -> NoTask"),
        ("stopped", [found(2, 5, STOPPED)], "query in 2 -> NoTask"),
        ("running, then reported", [found(2, 5), reported(4, 5)], "started inferred 5 @4 -> Running"),
        ("running, then none", [found(2, 5), waited(3, 5, 7), reported(4)],
         "started inferred 5 @4, exited inferred 7 @4 -> NoTask"),
        ("running, then another", [found(2, 5), reported(4, 6)],
         "started inferred 5 @4, exited inferred None @4, started inferred 6 @4 -> Running"),
        ("running, then another created", [found(2, 5), reported(4, 6, CREATED)],
         "started inferred 5 @4, exited inferred None @4, begin checks -> Created"),
        ("running, then another stopped", [found(2, 5), reported(4, 6, STOPPED)],
         "started inferred 5 @4, exited inferred None @4, started inferred 6 @4, exited inferred 3 @4 -> NoTask"),
        ("running, then its exit", [found(2, 5), exited(5, 3)], "wait 30 -> NoTask"),
        ("running, then its exit and none", [found(2, 5), exited(5, 3), reported(4)],
         "started inferred 5 @4, exited live 0 @3 -> NoTask"),
        ("running, then its start", [found(2, 5), At(3, started(5, 2))], "started live 5 @2 -> Running"),
        ("running, then another start", [found(2, 6), At(3, started(5, 1))], "started live 5 @1 -> Running"),
        ("running, then another start, then reported", [found(2, 6), At(3, started(5, 1)), reported(4, 6)],
         "exited inferred None @4, started inferred 6 @4 -> Running"),
        ("running, an event was faster", [*RUN, found(2, 6)], "-> Running"),
    ],
    "gap": [
        ("no task", [GONE], "-> NoTask"),
        ("created", [*NEW, GONE], "-> NoTask"),
        ("created, then the exit, overdue", [*NEW, GONE, exited(5, 4), OVERDUE],
         "started inferred 5 @40, exited live 0 @4 -> NoTask"),
        ("running", [*RUN, GONE], "-> Running?"),
        ("running, then the exit", [*RUN, GONE, exited(5, 4)], "exited live 0 @4 hold -> NoTask"),
    ],
    "query failed": [
        ("no task", [FAILED], "-> NoTask?"),
        ("created", [*NEW, FAILED], "-> Created?"),
        ("running", [*RUN, FAILED], "-> Running?"),
        ("running, then the pause", [*RUN, FAILED, paused(3)], "count unexpected_pause, query -> Running?"),
        ("then the start", [FAILED, started(5, 3)], "started live 5 @3 -> Running"),
    ],
}
# fmt: on


PARAMETERS = [
    pytest.param(steps, expected, id=f"{subject}: {name}")
    for subject, cases in CASES.items()
    for name, steps, expected in cases
]


@pytest.mark.parametrize(("steps", "expected"), PARAMETERS)
def test_machine_returns_effects_and_next_state(steps: list[Step], expected: str) -> None:
    assert run(*steps) == expected


def test_every_cell_of_table_has_case() -> None:
    cells = set()
    for steps in (steps for cases in CASES.values() for _name, steps, _expected in cases):
        state = TaskState()
        for each in steps:
            seconds, input_, _ = _input_of(each)
            cells.add((type(input_), type(state.task)))
            state, _ = step(state, input_, moment(seconds))
    assert cells == {(input_, task_) for input_, handlers in TABLE.items() for task_ in handlers}


def test_exited_pids_are_remembered_across_many_restarts() -> None:
    restarts = [each for pid in range(6, 5 + MAX_EXITED) for each in (started(pid, pid), exited(pid, pid + 0.5))]
    assert run(*ENDED, *restarts, At(100, started(5, 0.2))) == "count duplicate, query -> NoTask"
    assert run(*ENDED, *restarts, At(100, exited(5, 1))) == "count duplicate -> NoTask"


@pytest.mark.parametrize("hours", [-2, 2])
def test_fault_17_clock_steps_while_running(hours: int) -> None:
    _, state, _, _ = process(*RUN, paused(2))
    at = 3 + hours * 3600
    _, effects = step(state, resumed(at), Instant(wall(at), 3 * SECOND))
    assert effects == [machine.PauseChanged(False, "live", wall(at))]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param([*RUN, exited(5, 1)], machine.CancelQuery(), id="no query after the exit"),
        pytest.param([*RUN, exited(5, 1)], machine.ResumeChecks(), id="checks resumed after the exit"),
        pytest.param([*RUN], machine.EndChecks(), id="checks ended by the start"),
        pytest.param([*NEW, exited(5, 1)], machine.EndChecks(), id="checks ended by the exit"),
        pytest.param([*NEW, deleted(5, 1)], machine.EndChecks(), id="checks ended by the deletion of the task"),
        pytest.param([ContainerDeleted(WEB, wall(1))], machine.EndChecks(), id="checks ended by the deletion"),
        pytest.param([reported(1, 5)], machine.EndChecks(resume=True), id="checks suspended by a missed start"),
        pytest.param([*ENDED, created(6, 2)], machine.ReleaseExit(), id="exit released by the next task"),
    ],
)
def test_machine_cancels_what_is_not_needed(steps: list[Step], expected: machine.Effect) -> None:
    assert expected in process(*steps)[2]


def test_query_is_kept_when_exit_precedes_unconfirmed_start() -> None:
    assert machine.CancelQuery() not in process(*NEXT, At(3, exited(5, 0.9)))[2]
