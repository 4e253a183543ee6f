"""The model: containers, their tasks, their lives, and containerd's events about them.

Times are integers: nanoseconds since the Unix epoch, as exact as containerd tells them. ``None`` stands for what is
not known.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

Labels: TypeAlias = dict[str, str]
Kind: TypeAlias = Literal["container", "sandbox"]


class ContainerKey(NamedTuple):
    """What names a container on one containerd: ids are unique within a namespace only."""

    namespace: str
    id: str


class Instant(NamedTuple):
    """One moment on both clocks, in nanoseconds: the wall clock is told, only the monotonic one is reckoned with."""

    wall: int
    monotonic: int


class PodReference(Struct, frozen=True):
    """The Kubernetes pod that a CRI container belongs to, from its labels; ``container`` is "" for the sandbox."""

    name: str
    namespace: str
    uid: str
    container: str


class Metadata(Struct, frozen=True):
    """What containerd's record of a container says, after the label rules; a record says nothing about a task.

    ``labels`` is None where the record was gone before it could be asked for. ``pod_labels`` are the pod's own
    labels, which only a sandbox container carries. ``in_scope``: it is one of those that are published, which was
    decided on its labels as containerd has them, before the rules; true where nobody could see them.
    """

    key: ContainerKey
    name: str
    project: str
    service: str
    image: str
    runtime: str
    created_at: int | None
    updated_at: int | None
    labels: Labels | None
    kind: Kind = "container"
    pod: PodReference | None = None
    pod_labels: Labels | None = None
    in_scope: bool = True


class TaskStatus(IntEnum):
    """containerd's task states, under containerd's numbers (``containerd.v1.types.Status``)."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


class Task(Struct, frozen=True):
    """A task as listed or asked for; exit status and time are known of stopped ones only."""

    key: ContainerKey
    pid: int
    status: TaskStatus
    exit_status: int | None = None
    exited_at: int | None = None

    @property
    def paused(self) -> bool:
        """Whether whalewatcher would call it paused: containerd's PAUSING and PAUSED alike."""
        return self.status in (TaskStatus.PAUSED, TaskStatus.PAUSING)

    @property
    def alive(self) -> bool:
        """Whether whalewatcher would list it: running, pausing or paused."""
        return self.paused or self.status is TaskStatus.RUNNING


class TaskEnd(Struct, frozen=True):
    """How a task ended, as whoever waited for it was told; both None where it was gone before."""

    exit_status: int | None
    exited_at: int | None


class Engine(Struct, frozen=True):
    """One containerd: ``id`` is its server UUID ("" where it tells none), ``pid`` 0 where unknown."""

    id: str
    version: str
    api: str
    pid: int
    type: str = "containerd.io"


# --- containerd's events, decoded. ``at`` is the envelope's timestamp. ---


class ContainerCreated(Struct, frozen=True):
    """``/containers/create``: carries no labels."""

    key: ContainerKey
    at: int
    image: str
    runtime: str


class ContainerUpdated(Struct, frozen=True):
    """``/containers/update``: ``labels`` are all labels as they are now, as containerd sent them: no rule seen yet."""

    key: ContainerKey
    at: int
    image: str
    labels: Labels


class ContainerDeleted(Struct, frozen=True):
    """``/containers/delete``."""

    key: ContainerKey
    at: int


class TaskCreated(Struct, frozen=True):
    """``/tasks/create``: the init process waits to be started."""

    key: ContainerKey
    at: int
    pid: int


class TaskStarted(Struct, frozen=True):
    """``/tasks/start``."""

    key: ContainerKey
    at: int
    pid: int


class TaskExited(Struct, frozen=True):
    """``/tasks/exit``: of the init process where ``exec_id`` is "", else of an exec."""

    key: ContainerKey
    at: int
    exec_id: str
    pid: int
    status: int
    exited_at: int | None


class TaskDeleted(Struct, frozen=True):
    """``/tasks/delete``: of the init process where ``exec_id`` is "", else of an exec."""

    key: ContainerKey
    at: int
    exec_id: str
    pid: int
    status: int
    exited_at: int | None


class TaskPaused(Struct, frozen=True):
    """``/tasks/paused``: carries no pid."""

    key: ContainerKey
    at: int


class TaskResumed(Struct, frozen=True):
    """``/tasks/resumed``: carries no pid."""

    key: ContainerKey
    at: int


class TaskOOM(Struct, frozen=True):
    """``/tasks/oom``: some process of the container's cgroup, not the init process necessarily."""

    key: ContainerKey
    at: int


class Mark(Struct, frozen=True):
    """A mark, our own or another bridge's: ``/whalebridge/marker/<nonce>/<number>``."""

    nonce: str
    number: int


class Ignored(Struct, frozen=True):
    """An event that says nothing about a container's life; ``known`` tells a topic of containerd's from a new one."""

    topic: str
    known: bool


class Undecodable(Struct, frozen=True):
    """An event whose payload could not be read, and why."""

    topic: str
    reason: str


ContainerEvent: TypeAlias = (
    ContainerCreated
    | ContainerUpdated
    | ContainerDeleted
    | TaskCreated
    | TaskStarted
    | TaskExited
    | TaskDeleted
    | TaskPaused
    | TaskResumed
    | TaskOOM
)
Event: TypeAlias = ContainerEvent | Mark | Ignored | Undecodable
