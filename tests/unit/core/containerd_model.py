"""Model of a containerd with its shims: its true state, and the events, listings and query results that a bridge gets.

Every choice is drawn from one ``random.Random``, which hypothesis provides, so that failing examples shrink. The state
changes first, and the event is published afterwards, as shims do.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NamedTuple, TypeAlias

from msgspec.structs import replace

from bridge.core.container_state import DueExit
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    ExitStatus,
    Instant,
    Metadata,
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
from bridge.core.reconcile import Listing
from bridge.core.time import SECOND

KEYS = [ContainerKey("default", "a"), ContainerKey("default", "b"), ContainerKey("shop", "a")]
MAX_INCARNATIONS_PER_ID = 14  # fewer than the tracker remembers per id
RUNTIME = "io.containerd.runc.v2"
STARTED_AT = 1_795_447_267 * SECOND


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The faults that a history may contain."""

    duplicates: bool = False  # a shim's event arrives twice, the second time immediately or much later
    late: bool = False  # a publish fails and is repeated after later events
    lost: bool = False  # an event is dropped although containerd is up
    gaps: bool = False  # connections end, and events until the next connection are not received
    query_failures: bool = False  # shims do not respond: tasks are missing or UNKNOWN, and namespaces fail
    dead_shims: bool = False  # exits with pid 0, tasks without a pid
    lag: bool = False  # events wait in containerd's queue during listings and queries
    silent: bool = False  # some containers have shims that send no events
    falling_silent: bool = False  # shims stop to send events
    task_waits: bool = False  # Tasks.Wait returns for some exits: not a fault, but another order of inputs
    clock: Literal["steady", "stepping", "random"] = "steady"
    pids: Literal["returning", "growing"] = "returning"  # returning: a container often gets a pid that it had before


Process: TypeAlias = tuple[ContainerKey, int]  # a container and a pid, which several of its runs may have had
Move: TypeAlias = Callable[[ContainerKey], None]


class TrueTransition(NamedTuple):
    """A transition that happened; only exits have ``status`` and ``oom``."""

    type: str
    key: ContainerKey
    pid: int
    status: int | None = None
    oom: bool | None = None


class DeliveredEvent(NamedTuple):
    """An event as a bridge receives it, with the container's metadata if the bridge fetches it for the event."""

    event: ContainerEvent
    metadata: Metadata | None


class TaskWaitResult(NamedTuple):
    """Result of containerd's Tasks.Wait."""

    key: ContainerKey
    pid: int
    exit_status: ExitStatus


class DueExits(NamedTuple):
    """Held exits that the bridge releases after the items before."""

    exits: list[DueExit]


@dataclass
class TrueTask:
    """The true state of one task."""

    pid: int
    number: int
    status: TaskStatus = TaskStatus.CREATED
    exit_status: int | None = None
    exited_at: int | None = None
    started: bool = False
    oom: bool = False
    shim_gone: bool = False  # the shim is gone, so containerd no longer knows the pid


@dataclass
class ContainerdModel:
    """The true state of a containerd, and its history.

    ``ended`` are the tasks that have exited, started or not. ``ambiguous`` are the tasks that an observer cannot
    recognize as never started. ``in_scope`` are the containers that the bridge's filters match, which a fetch of
    metadata reports. ``waited`` are the tasks whose exits the bridge waits for; only the exits of containers with a
    silent shim are certain to be reported to it.
    """

    rng: Random
    faults: Faults = field(default_factory=Faults)
    metadata: dict[ContainerKey, Metadata] = field(default_factory=dict)
    tasks: dict[ContainerKey, TrueTask] = field(default_factory=dict)
    history: list[TrueTransition] = field(default_factory=list)
    ended: dict[Process, list[TrueTask]] = field(default_factory=lambda: defaultdict(list))
    ambiguous: set[Process] = field(default_factory=set)
    in_scope: frozenset[ContainerKey] = frozenset(KEYS)
    waited: set[tuple[ContainerKey, int, int]] = field(default_factory=set)
    subscribed: bool = False
    stream: deque[DeliveredEvent | TaskWaitResult | DueExits] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._resends: list[ContainerEvent] = []
        self._silent_keys: set[ContainerKey] = set()
        self._known_keys: set[ContainerKey] = set()  # containers whose metadata the bridge has fetched or listed
        self._monotonic = 1_000 * SECOND
        self._offset = STARTED_AT
        self._pid = 100
        self._pids: dict[ContainerKey, list[int]] = defaultdict(list)
        self._updates = 0
        self._incarnation_counts: Counter[ContainerKey] = Counter()

    # --- queries of an observer ---

    def now(self) -> Instant:
        return Instant(self._wall(), self._monotonic)

    def running(self) -> dict[ContainerKey, tuple[int, bool]]:
        return {key: (task.pid, task.paused) for key in self.tasks if (task := self.task(key)) and task.running}

    def task(self, key: ContainerKey) -> Task | None:
        """Return the current result of ``Tasks.Get``."""
        task = self.tasks.get(key)
        if task is None:
            return None
        return Task(key, 0 if task.shim_gone else task.pid, task.status, task.exit_status, task.exited_at)

    def container(self, key: ContainerKey) -> Metadata | None:
        """Return the current result of ``Containers.Get``."""
        metadata = self.metadata.get(key)
        return None if metadata is None else replace(metadata, in_scope=key in self.in_scope)

    def wait(self, key: ContainerKey, pid: int) -> None:
        """Call ``Tasks.Wait``, unless it was called; for a task that has ended it returns at once."""
        task, call = self.tasks.get(key), (key, pid, self._incarnation_counts[key])
        if call in self.waited:
            return
        self.waited.add(call)
        if key in self._silent_keys and (task is None or task.pid != pid):
            self.stream.append(TaskWaitResult(key, pid, ExitStatus(None, None)))
        elif key in self._silent_keys and task is not None and task.status is TaskStatus.STOPPED:
            self.stream.append(TaskWaitResult(key, pid, ExitStatus(task.exit_status, task.exited_at)))

    def subscribe(self) -> None:
        self.subscribed = True
        self._known_keys.clear()

    def unsubscribe(self) -> None:
        """End the connection and drop the events in containerd's queue."""
        self.subscribed = False
        self.stream.clear()
        self.ambiguous.update((key, task.pid) for key, task in self.tasks.items())
        for event in self._resends:
            self._add_ambiguous(event)

    def add_queued_ambiguous(self) -> None:
        """Make the tasks of queued events ambiguous, because query results overtake the events."""
        for item in self.stream:
            if isinstance(item, DeliveredEvent):
                self._add_ambiguous(item.event)

    def may_have_started(self, process: Process) -> int:
        """Return how many tasks of a pid have started, as far as an observer can know."""
        key, pid = process
        task = self.tasks.get(key)
        running = task is not None and task.pid == pid and task.status not in (TaskStatus.CREATED, TaskStatus.STOPPED)
        return running + sum(process in self.ambiguous or each.started for each in self.ended[process])

    def listing(self, meanwhile: Callable[[], None], *, with_metadata: bool) -> Listing:
        """List everything; ``meanwhile`` is called before each entry, so that the state can change in between."""
        listing = Listing()
        for namespace in sorted({key.namespace for key in KEYS}):
            listing.namespaces.append(namespace)
            if self.faults.query_failures and self.flip(0.15):
                listing.failed.append(namespace)
                continue
            keys = [key for key in KEYS if key.namespace == namespace]
            for key in keys if with_metadata else []:
                meanwhile()
                if metadata := self.container(key):
                    listing.containers[key] = metadata
                    self._known_keys.add(key)
            for key in keys:
                meanwhile()
                task = self.listed_task(key)
                if task is not None:
                    listing.tasks[key] = task
        return listing

    def listed_task(self, key: ContainerKey) -> Task | None:
        """Return the current entry in ``Tasks.List``."""
        task = self.task(key)
        if task is None or not self.faults.query_failures or self.flip(0.8):
            return task
        return Task(key, 0, TaskStatus.UNKNOWN) if self.flip(0.5) else None

    # --- moves ---

    def step(self) -> None:
        """Make one random move."""
        self.advance(self.rng.choice([1, 1, 1, 1_000, 8_000]) * SECOND // 1_000)
        if self._resends and self.flip(0.3):
            self._resend()
            return
        key = self.rng.choice(KEYS)
        self.rng.choice(self._possible_moves(key))(key)

    def advance(self, nanoseconds: int) -> None:
        self._monotonic += nanoseconds
        if self.faults.clock == "stepping" and not self.stream and self.flip(0.1):
            self._offset += self.rng.choice([-7_200, -3, 3, 7_200]) * SECOND + 1  # nothing happens at the same time

    def stop_faults(self) -> None:
        """End all faults; events to be sent again arrive, unless they are lost."""
        while self._resends:
            self._resend()
        self.faults = Faults(clock=self.faults.clock, pids=self.faults.pids)

    def flip(self, probability: float) -> bool:
        return self.rng.random() < probability

    def _wall(self) -> int:
        if self.faults.clock == "random":
            return self.rng.randrange(4 * 10**9) * SECOND
        return self._offset + self._monotonic

    def _possible_moves(self, key: ContainerKey) -> list[Move]:
        task = self.tasks.get(key)
        if key not in self.metadata:
            return [self._create_container]
        if task is None:
            creations = 4 if self._incarnation_counts[key] < MAX_INCARNATIONS_PER_ID else 0
            return [*creations * [self._create_task], self._update_container, self._delete_container]
        if task.status is TaskStatus.CREATED:
            return [*4 * [self._start], self._kill_unstarted]
        if task.status is TaskStatus.STOPPED:
            return [*2 * [self._delete_task], self._exit_exec]
        toggle_pause = self._resume if task.status is TaskStatus.PAUSED else self._pause
        exits = [self._exit, self._lose_shim if self.faults.dead_shims else self._exit]
        return [*2 * [toggle_pause], *exits, self._exit_exec, self._update_container, self._oom]

    def _create_container(self, key: ContainerKey) -> None:
        self._write_metadata(key, self._wall())
        self._silent_keys.discard(key)
        if self.faults.silent and self.flip(0.5):
            self._silent_keys.add(key)
        self._broadcast(ContainerCreated(key, self._wall(), "busybox", RUNTIME))

    def _update_container(self, key: ContainerKey) -> None:
        labels = self._write_metadata(key, self.metadata[key].created_at)
        self._broadcast(ContainerUpdated(key, self._wall(), "busybox", labels))

    def _write_metadata(self, key: ContainerKey, created_at: int | None) -> dict[str, str]:
        self._updates += 1
        labels = {"update": str(self._updates)}
        name = self.rng.choice(["web", "db"])
        self.metadata[key] = Metadata(key, name, "", "", "busybox", RUNTIME, created_at, self._wall(), labels)
        return labels

    def _delete_container(self, key: ContainerKey) -> None:
        del self.metadata[key]
        self._broadcast(ContainerDeleted(key, self._wall()))

    def _create_task(self, key: ContainerKey) -> None:
        pid = self._next_pid(key)
        self._incarnation_counts[key] += 1
        self.tasks[key] = TrueTask(pid, self._incarnation_counts[key])
        if not self.subscribed:
            self.ambiguous.add((key, pid))
        self._publish(TaskCreated(key, self._wall(), pid))

    def _next_pid(self, key: ContainerKey) -> int:
        if self._pids[key] and self.faults.pids == "returning" and self.flip(0.4):
            return self.rng.choice(self._pids[key])
        self._pid += 1
        self._pids[key].append(self._pid)
        return self._pid

    def _start(self, key: ContainerKey) -> None:
        task = self._set_status(key, TaskStatus.RUNNING, "started")
        self._publish(TaskStarted(key, self._wall(), task.pid))

    def _pause(self, key: ContainerKey) -> None:
        self._set_status(key, TaskStatus.PAUSED, "paused")
        self._publish(TaskPaused(key, self._wall()))

    def _resume(self, key: ContainerKey) -> None:
        self._set_status(key, TaskStatus.RUNNING, "unpaused")
        self._publish(TaskResumed(key, self._wall()))

    def _set_status(self, key: ContainerKey, status: TaskStatus, transition_type: str) -> TrueTask:
        task = self.tasks[key]
        task.status, task.started = status, True
        self.history.append(TrueTransition(transition_type, key, task.pid))
        return task

    def _oom(self, key: ContainerKey) -> None:
        self.tasks[key].oom = True
        self._publish(TaskOOM(key, self._wall()))

    def _exit(self, key: ContainerKey) -> None:
        status = self.rng.choice([0, 1, 137])
        task = self._stop(key, status)
        ooms = [] if self.flip(0.7) else [TaskOOM(key, self._wall())]
        task.oom |= bool(ooms)
        self.history.append(TrueTransition("exited", key, task.pid, status, task.oom))
        self._publish(TaskExited(key, self._wall(), "", task.pid, status, task.exited_at))
        for oom in ooms:  # the shim sends both, in any order
            self._publish(oom)
        if self.faults.duplicates and self.flip(0.2):
            self._publish(TaskExited(key, self._wall(), "", task.pid, 137, task.exited_at))

    def _kill_unstarted(self, key: ContainerKey) -> None:
        task = self._stop(key, 137)
        self._publish(TaskExited(key, self._wall(), "", task.pid, 137, task.exited_at))

    def _lose_shim(self, key: ContainerKey) -> None:
        """Kill the shim and its task; containerd publishes an exit without pid, and may remove the task."""
        task = self._stop(key, 255)
        task.shim_gone = True
        if self.flip(0.5):
            del self.tasks[key]
        self.history.append(TrueTransition("exited", key, task.pid, 255, task.oom))
        self._broadcast(TaskExited(key, self._wall(), "", 0, 255, None))

    def _stop(self, key: ContainerKey, status: int) -> TrueTask:
        task = self.tasks[key]
        task.status, task.exit_status, task.exited_at = TaskStatus.STOPPED, status, self._wall()
        self.ended[key, task.pid].append(task)
        if key in self._silent_keys:
            if self.subscribed and (key, task.pid, task.number) in self.waited:
                self.stream.append(TaskWaitResult(key, task.pid, ExitStatus(status, task.exited_at)))
        elif self.faults.task_waits and self.subscribed and self.flip(0.5):
            exit_status = ExitStatus(status, task.exited_at) if self.flip(0.7) else ExitStatus(None, None)
            self.stream.append(TaskWaitResult(key, task.pid, exit_status))
        return task

    def _exit_exec(self, key: ContainerKey) -> None:
        self._pid += 1
        self._publish(TaskExited(key, self._wall(), "exec-1", self._pid, self.rng.choice([0, 126]), self._wall()))
        self._publish(TaskDeleted(key, self._wall(), "exec-1", self._pid, 0, self._wall()))

    def _delete_task(self, key: ContainerKey) -> None:
        task = self.tasks.pop(key)
        pid = 0 if task.shim_gone else task.pid
        self._publish(TaskDeleted(key, self._wall(), "", pid, task.exit_status or 0, task.exited_at))

    # --- publishing ---

    def _publish(self, event: ContainerEvent) -> None:
        """Publish as a shim does: a publish may fail and be repeated later, out of order."""
        if self.faults.falling_silent and self.flip(0.05):
            self._silent_keys.add(event.key)
        if event.key in self._silent_keys or (self.faults.lost and self.flip(0.05)):
            self._add_ambiguous(event)
            return
        down = not self.subscribed and self.flip(0.5)  # containerd is down as well: the shim tries again later
        if down or (self.faults.late and self.flip(0.15)):
            self._add_ambiguous(event)
            self._resends.append(event)
            return
        self._broadcast(event)
        if self.faults.duplicates and self.flip(0.15):
            if self.flip(0.5):
                self._broadcast(event)
            else:
                self._resends.append(event)

    def _add_ambiguous(self, event: ContainerEvent) -> None:
        """Make a task ambiguous: without its events in order, an observer may take an unstarted task for started."""
        if isinstance(event, (TaskCreated, TaskExited)):
            self.ambiguous.add((event.key, event.pid))

    def _resend(self) -> None:
        event = self._resends.pop(self.rng.randrange(len(self._resends)))
        if not (self.faults.lost and self.flip(0.3)):
            self._broadcast(event)

    def _broadcast(self, event: ContainerEvent) -> None:
        if not self.subscribed:
            return
        fetched = isinstance(event, (ContainerCreated, ContainerUpdated)) or event.key not in self._known_keys
        self._known_keys.add(event.key)
        self.stream.append(DeliveredEvent(event, self.container(event.key) if fetched else None))
