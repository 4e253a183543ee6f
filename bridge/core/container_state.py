"""What the tracker knows of a container: the state of its task, and what consumers know of it.

``TaskState`` is the state of the state machine (``task_machine.py``): immutable, and without a container's metadata.
``ContainerState`` is the entry of one container id in the container store.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from bridge.core.containerd_model import ContainerKey, ExitStatus, Labels, Metadata, Task, TaskExited, TaskStarted
from bridge.core.label_rules import LabelRules, filter_labels
from bridge.core.records import AdditionalEventType, Origin, SnapshotRecordType, TransitionType

MAX_EXITED = 16  # exited tasks kept per container id, to recognize late and duplicate events
MAX_CREATED = 4  # created tasks kept per container id, to recognize exits of tasks that were never started
MAX_EVIDENCE = 32  # pieces of evidence kept per container id; rarely more than two are needed


# --- the task ---


class NoTask(Struct, frozen=True):
    """No task is known to exist."""


class Created(Struct, frozen=True, gc=False):
    """A task exists that has not started, as far as is known."""

    pid: int


class Running(Struct, frozen=True, gc=False):
    """A task is running or paused.

    ``since`` (wall clock): the time of the start event if ``start_seen``, otherwise when a report showed the task.
    ``watched``: the start event arrived on the present connection, so that no event of the run was missed.
    ``confirmed``: an event or a query has confirmed the run since the stream was last connected.
    """

    pid: int
    paused: bool = False
    since: int = 0
    start_seen: bool = False
    watched: bool = False
    confirmed: bool = True


KnownTask: TypeAlias = NoTask | Created | Running


class CreatedTask(Struct, frozen=True, array_like=True, gc=False):
    """A task whose creation is known; ``at`` (wall clock) is the time of the event, or when a report showed it."""

    pid: int
    at: int = 0


class ExitedTask(Struct, frozen=True, array_like=True, gc=False):
    """The newest task of a pid that is known to have exited.

    pid 0: its pid is unknown, so that it may be any; if ``until`` is 0 as well, it was a task before a reboot.
    ``exited_at`` is None if unknown. Events of this pid up to ``until`` (wall clock), the newest known time of the
    task, belong to it or to an earlier one; later events belong to another task that has got the same pid.
    ``unstarted``: it was created, and no start was seen. Unless CRI knows better, it was killed before its start.
    """

    pid: int
    exited_at: int | None = None
    until: int = 0
    unstarted: bool = False


# --- evidence about tasks that the known task does not explain ---


class PendingExit(Struct, frozen=True):
    """An exit whose start has not been seen; the start may still arrive until ``deadline`` (monotonic)."""

    pid: int
    event: TaskExited
    deadline: int


class UnconfirmedStart(Struct, frozen=True):
    """A start that arrived late or during another run, to be confirmed by a task query.

    ``late``: it may be that of an earlier run.
    """

    pid: int
    event: TaskStarted
    late: bool = False


class FoundTask(Struct, frozen=True):
    """A running task that a start check has found and no event has reported."""

    pid: int


class StoppedTask(Struct, frozen=True):
    """A created task that has stopped according to a query, and has not started as far as is known.

    Until ``deadline`` (monotonic) its exit event may still arrive.
    """

    pid: int
    deadline: int


class WaitedExit(Struct, frozen=True):
    """A task whose Tasks.Wait has returned ``exit_status``, which counts if the exit event is lost."""

    pid: int
    exit_status: ExitStatus


class OOMKill(Struct, frozen=True):
    """A task for which an OOM event arrived at a moment (monotonic); ``pid`` is 0 if no task was known then."""

    pid: int
    at: int = 0


Evidence: TypeAlias = PendingExit | UnconfirmedStart | FoundTask | StoppedTask | WaitedExit | OOMKill
_E = TypeVar("_E", PendingExit, UnconfirmedStart, FoundTask, StoppedTask, WaitedExit, OOMKill)


class TaskState(Struct, frozen=True, gc=False):  # like all that it contains, it is part of no cycle
    """State of the task of one container id.

    ``evidence`` is in the order of arrival, one of each kind per pid. ``unknown``: a task query has failed while no
    task was running. ``created`` and ``exited``: the tasks that were created and that have exited, one of each per pid,
    the newest last. ``last_change``: the moment (monotonic) of the newest known change; an earlier event is late.
    """

    task: KnownTask = NoTask()
    evidence: tuple[Evidence, ...] = ()
    unknown: bool = False
    created: tuple[CreatedTask, ...] = ()
    exited: tuple[ExitedTask, ...] = ()
    last_change: int = 0

    @property
    def running(self) -> Running | None:
        """Return the running task, if any."""
        return self.task if isinstance(self.task, Running) else None

    @property
    def confirmed(self) -> bool:
        """Return whether no task query is needed to know the state."""
        return self.task.confirmed if isinstance(self.task, Running) else not self.unknown

    @property
    def newest_unstarted(self) -> ExitedTask | None:
        """Return the task that has exited last if no start of it was seen."""
        return self.exited[-1] if self.exited and self.exited[-1].unstarted else None

    def find(self, kind: type[_E], pid: int | None = None) -> _E | None:
        """Return the first evidence of a kind, about the task ``pid`` if given."""
        for each in self.evidence:
            if isinstance(each, kind) and pid in (None, each.pid):
                return each
        return None

    def find_all(self, kind: type[_E]) -> list[_E]:
        """Return all evidence of a kind, in the order of arrival."""
        return [each for each in self.evidence if isinstance(each, kind)]

    def find_exited(self, pid: int) -> ExitedTask | None:
        """Return the newest task of this pid, or of an unknown one, that has exited; another may have the pid now."""
        unknown = None
        for each in self.exited:
            if each.pid == pid:
                return each
            if not each.pid:
                unknown = each
        return unknown

    def find_created(self, pid: int) -> CreatedTask | None:
        """Return the task of this pid that was created and has not exited, if its creation is known."""
        for each in self.created:
            if each.pid == pid:
                return None if self.is_over(pid, each.at) else each
        return None

    def is_over(self, pid: int, at: int) -> bool:
        """Return whether the task that had this pid at a time (wall clock) has exited."""
        exited = self.find_exited(pid)
        return exited is not None and at <= exited.until

    def is_known_exit(self, task: Task) -> bool:
        """Return whether the exit of a stopped task is known, rather than that of an earlier one with the same pid."""
        exited = self.find_exited(task.pid)
        if exited is None or task.exited_at is None or (exited.pid and exited.exited_at is None):
            return exited is not None
        return task.exited_at <= exited.until

    def expects_start(self, pid: int) -> bool:
        """Return whether the start of this task is still to come."""
        return (
            (bool(self.created) and self.created[-1].pid == pid and self.find_created(pid) is not None)
            or self.find(FoundTask, pid) is not None
            or self.find(PendingExit, pid) is not None
        )

    def is_unstarted(self, pid: int) -> bool:
        """Return whether the creation of this task was seen, but not its start."""
        return (
            self.find_created(pid) is not None
            and self.find(UnconfirmedStart, pid) is None
            and self.find(FoundTask, pid) is None
        )

    def newest_created(self) -> NoTask | Created:
        """Return the task created last, unless it has exited."""
        if self.created and self.find_created(self.created[-1].pid) is not None:
            return Created(self.created[-1].pid)
        return NO_TASK


NO_TASK = NoTask()
NEW_TASK_STATE = TaskState()


# --- what is published ---


class Incarnation(Struct, gc=False):
    """The run of a container as consumers know it; the task is running.

    ``in_scope``: the container filter matches, decided once per incarnation. ``preexisting``: the run began before the
    bridge watched or has entered the scope, and the next ``present`` record is not published yet. ``was_published``: it
    was published before it left the scope.
    """

    pid: int
    id: str
    paused: bool
    in_scope: bool
    preexisting: bool = False
    was_published: bool = False


NO_INCARNATION = Incarnation(pid=0, id="", paused=False, in_scope=False)


class ExitInfo(Struct, frozen=True, array_like=True, gc=False):
    """How a task exited, as far as known; ``oom`` is None if it is unknown whether the kernel killed for memory."""

    status: int | None = None
    exited_at: int | None = None
    oom: bool | None = None


class Transition(Struct, frozen=True):
    """A change or state of a container to publish, with ``metadata`` and ``pod_labels`` as known at that moment.

    ``pid`` is 0 and ``incarnation`` is "" if the container has no published incarnation; ``pid`` alone is 0 if it is
    unknown. ``started_at``: of a start, when it happened, if that is known.
    """

    type: TransitionType | SnapshotRecordType | AdditionalEventType
    origin: Origin
    at: int
    key: ContainerKey
    metadata: Metadata | None
    pod_labels: Labels | None
    pid: int
    incarnation: str
    paused: bool
    exit_info: ExitInfo | None = None
    started_at: int | None = None

    def with_label_rules(self, rules: LabelRules) -> Transition:
        """Return the transition with only the labels that ``rules`` keep, whichever rules it was made with."""
        pod_labels = None if self.pod_labels is None else rules.apply(self.pod_labels)
        metadata = None if self.metadata is None else filter_labels(self.metadata, rules)
        return replace(self, metadata=metadata, pod_labels=pod_labels)


class HeldExit(Struct, frozen=True):
    """An exit that waits for an OOM event until ``deadline`` (monotonic).

    ``transitions`` are the exit and the additional events behind it. ``oom`` is the exit's value if no OOM event comes.
    ``paused``: consumers know the container as paused until they see the exit.
    """

    transitions: tuple[Transition, ...]
    deadline: int
    oom: bool | None
    paused: bool


class DueExit(NamedTuple):
    """A held exit whose time has passed: it is released when all events received until then are processed.

    ``killed``: by SIGKILL, so that the OOM event may be lost. ``oom``: CRI has recorded an OOM kill.
    """

    key: ContainerKey
    incarnation: str
    killed: bool = False
    oom: bool = False


class TaskQuery(NamedTuple):
    """A container whose task must be queried, and the generation of its state when the query was made."""

    key: ContainerKey
    generation: int


class ContainerState(Struct):
    """Everything known about one container id.

    ``incarnation`` is set while ``state.task`` is running. ``generation`` counts the events and results since the
    stream ended, so that the result of a call made before one of them is recognized as older. ``held_exit``: the last
    exit, while it waits for an OOM event. ``deleted_at`` (wall clock): time of the last event that deleted the
    container. ``published_metadata``: the metadata last published to consumers of additional events; None if none was.
    ``check_delay`` (ns): time before the next start check, after the current run if there is one; 0: there is none,
    because the shim's events arrive. ``last_pid`` is the pid of the last run, and ``pid_cycle`` counts the runs whose
    pid was not greater than that of the run before: both together identify a run, even if its pid returns.
    """

    key: ContainerKey
    metadata: Metadata | None = None
    state: TaskState = NEW_TASK_STATE
    generation: int = 0
    incarnation: Incarnation | None = None
    held_exit: HeldExit | None = None
    deleted: bool = False
    deleted_at: int = 0
    published_metadata: Metadata | None = None
    check_delay: int = 0
    last_pid: int = 0
    pid_cycle: int = 0

    @property
    def touched(self) -> bool:
        """Return whether an event or a result has arrived since the stream ended, so that a listing may be older."""
        return self.generation > 0

    @property
    def current_pid(self) -> int:
        """Return the pid of the task that runs, or that was created and has not exited; 0 if there is none."""
        return 0 if isinstance(self.state.task, NoTask) else self.state.task.pid

    def has_waited_exit(self, pid: int) -> bool:
        """Return whether Tasks.Wait has returned for a task."""
        return self.state.find(WaitedExit, pid) is not None
