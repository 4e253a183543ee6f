"""State of containers in the tracker, and the transitions that it emits."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from bridge.core.containerd_model import ContainerKey, ExitStatus, Instant, Labels, Metadata, TaskExited, TaskStarted
from bridge.core.label_rules import LabelRules, filter_labels
from bridge.core.records import AdditionalEventType, Origin, SnapshotRecordType, TransitionType

MAX_EXITED_PIDS = 16  # pids of exited tasks kept per container id, to recognize late and duplicate events
MAX_CREATED_PIDS = 4  # pids of created tasks kept per id, to recognize exits of tasks that were never started


class Incarnation(Struct):
    """One incarnation of a container: a single run of its task.

    ``confirmed``: an event or a query has confirmed the run since the stream was last connected. ``in_scope``: the
    container filter matches, decided once per incarnation. ``preexisting``: the run began before the bridge watched,
    and its first ``present`` record is not published yet. ``watched_from``: the time (wall clock) of the start event if
    it arrived on the present connection, so that no event of the run was missed; otherwise 0.
    """

    pid: int
    id: str
    paused: bool
    confirmed: bool
    in_scope: bool
    preexisting: bool = False
    watched_from: int = 0


NO_INCARNATION = Incarnation(pid=0, id="", paused=False, confirmed=False, in_scope=False)


class ExitInfo(NamedTuple):
    """How a task exited, as far as known; ``oom`` is None if it is unknown whether the kernel killed for memory."""

    status: int | None = None
    exited_at: int | None = None
    oom: bool | None = None


class Transition(Struct, frozen=True):
    """A change or state of a container to publish, with ``metadata`` and ``pod_labels`` as known at that moment.

    ``pid`` is 0 and ``incarnation`` is "" if the container has no published incarnation.
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
    """A held exit whose time has passed: it is released when all events received until then are processed."""

    key: ContainerKey
    incarnation: str


class TaskQuery(NamedTuple):
    """A container whose task must be queried, and the generation of its state when the query was made."""

    key: ContainerKey
    generation: int


class ContainerState(Struct):
    """Everything known about one container id.

    ``created_pids``: pids of the tasks created last. ``unconfirmed_start``: a start that arrived late or during
    another incarnation, to be confirmed by a query. ``pending_exit``: an exit without a start, which may still arrive
    until ``pending_exit_deadline`` (monotonic). ``waited_exit``: pid and exit status of a task from Tasks.Wait, in
    case the exit event is lost. ``start_check_delay`` (ns): time before the next start check, after the current run if
    there is one; 0: there is none, because the shim's events arrive.
    ``found_pid``: a running task that a start check has found and no event has reported; 0 if there is none.
    ``stopped_deadline`` (monotonic): until then, the exit event of a stopped task that has not started, as far as is
    known, may still arrive. ``oom_pids``: pids of the tasks for which an OOM event has arrived. ``held_exit``: the last
    exit, while it waits for an OOM event. ``deleted_at`` (wall clock): time of the last event that deleted the
    container.
    ``state_unknown``: a task query failed while nothing was known about the container.
    ``generation`` counts the inputs. ``last_change``: the moment (monotonic) of the newest known change; an earlier
    event is late. ``published_metadata``: the metadata last published to consumers of additional events; None if
    none was.
    """

    key: ContainerKey
    metadata: Metadata | None = None
    incarnation: Incarnation | None = None
    created_pids: tuple[int, ...] = ()
    unconfirmed_start: TaskStarted | None = None
    pending_exit: TaskExited | None = None
    pending_exit_deadline: int = 0
    waited_exit: tuple[int, ExitStatus] | None = None
    start_check_delay: int = 0
    found_pid: int = 0
    stopped_deadline: int = 0
    oom_pids: tuple[int, ...] = ()
    held_exit: HeldExit | None = None
    deleted: bool = False
    deleted_at: int = 0
    state_unknown: bool = False
    generation: int = 0
    last_change: int = 0
    published_metadata: Metadata | None = None
    exited_pids: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_EXITED_PIDS))

    def is_known(self, pid: int) -> bool:
        """Return whether a task is the current incarnation or has already exited."""
        return pid in self.exited_pids or (self.incarnation is not None and self.incarnation.pid == pid)

    def has_exited(self, pid: int) -> bool:
        """Return whether the exit of a task is known, be it published or pending."""
        return pid in self.exited_pids or (self.pending_exit is not None and self.pending_exit.pid == pid)

    def has_waited_exit(self, pid: int) -> bool:
        """Return whether Tasks.Wait has returned for a task."""
        return self.waited_exit is not None and self.waited_exit[0] == pid

    @property
    def current_pid(self) -> int:
        """Return the pid of the task that runs, or that was created and has not exited; 0 if there is none."""
        if self.incarnation is not None:
            return self.incarnation.pid
        return self.created_pids[-1] if self.has_created_task() else 0

    def is_late(self, at: int, now: Instant) -> bool:
        """Return whether an event may be older than the known state; the timestamp only triggers a query.

        The wall clock may be set at any time, so the event's moment on the monotonic clock is compared.
        """
        moment = now.monotonic - (now.wall - at)
        if not self.last_change <= moment <= now.monotonic:
            return True
        self.last_change = moment
        return False

    def add_created_pid(self, pid: int) -> None:
        """Add the pid of a created task; earlier pids are kept for a while because their exits may arrive late."""
        if pid not in self.created_pids:
            self.created_pids = (*self.created_pids[1 - MAX_CREATED_PIDS :], pid)

    def has_created_task(self) -> bool:
        """Return whether a task was created and has not exited."""
        return bool(self.created_pids) and self.created_pids[-1] not in self.exited_pids

    def run_pid(self) -> int:
        """Return the pid of the incarnation, or else of the pending exit; 0 if there is neither."""
        run = self.incarnation or self.pending_exit
        return 0 if run is None else run.pid

    def newest_pid(self) -> int:
        """Return the pid of the newest task whose exit is not published; 0 if there is none."""
        return self.created_pids[-1] if self.has_created_task() else self.run_pid() or self.found_pid

    def add_oom_pid(self, pid: int) -> None:
        """Note that an OOM event has arrived for a task; there are at most as many as created tasks."""
        if pid not in self.oom_pids:
            self.oom_pids = (*self.oom_pids[1 - MAX_CREATED_PIDS :], pid)

    def remove_oom_pid(self, pid: int) -> bool:
        """Forget a task's OOM event; return whether there was one."""
        known = pid in self.oom_pids
        if known:
            self.oom_pids = tuple(each for each in self.oom_pids if each != pid)
        return known

    def expects_start(self, pid: int) -> bool:
        """Return whether the tracker is still waiting for the start of this task."""
        return pid in (*self.created_pids[-1:], self.found_pid) or (
            self.pending_exit is not None and self.pending_exit.pid == pid
        )

    def is_unconfirmed(self, pid: int) -> bool:
        """Return whether the start of this task is still unconfirmed."""
        return self.unconfirmed_start is not None and self.unconfirmed_start.pid == pid

    def is_unstarted(self, pid: int) -> bool:
        """Return whether the creation of this task was seen, but not its start."""
        return pid in self.created_pids and not self.is_unconfirmed(pid)
