"""Model of containerd: containers, their tasks, and decoded events.

Times are integers: nanoseconds since the Unix epoch, with containerd's full precision. ``None`` means unknown.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

Labels: TypeAlias = dict[str, str]
Kind: TypeAlias = Literal["container", "sandbox"]


class ContainerKey(NamedTuple):
    """Identity of a container within one containerd: ids are unique only within a namespace."""

    namespace: str
    id: str


class Instant(NamedTuple):
    """One moment on both clocks, in nanoseconds: ``wall`` for timestamps, ``monotonic`` for intervals and deadlines."""

    wall: int
    monotonic: int


class PodReference(Struct, frozen=True):
    """The Kubernetes pod of a CRI container, from its labels; ``container`` is "" for the sandbox."""

    name: str
    namespace: str
    uid: str
    container: str


class Metadata(Struct, frozen=True):
    """Metadata of a container in containerd, after the label rules; it contains no task state.

    ``labels`` is None if the container was removed before its metadata could be fetched. ``pod_labels`` are the pod's
    own labels, if this is a sandbox container, or if they are from CRI because the pod has none. ``in_scope``: the
    container filter, applied to containerd's labels before the label rules, matches the container; true if the labels
    are unknown. ``image_digest`` is what the name in ``image`` pointed to when the container was created.
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
    image_digest: str | None = None


class Image(Struct, frozen=True):
    """What the name of an image points to, and since when: any later change of the image sets ``updated_at``."""

    digest: str
    updated_at: int | None


class TaskStatus(IntEnum):
    """Task states of containerd, with containerd's numbers (``containerd.v1.types.Status``)."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


class Task(Struct, frozen=True):
    """A task as containerd listed or returned it; exit status and time are set for stopped tasks only."""

    key: ContainerKey
    pid: int
    status: TaskStatus
    exit_status: int | None = None
    exited_at: int | None = None

    @property
    def paused(self) -> bool:
        """Return whether whalewatcher would report the task as paused: PAUSING or PAUSED."""
        return self.status in (TaskStatus.PAUSED, TaskStatus.PAUSING)

    @property
    def running(self) -> bool:
        """Return whether whalewatcher would list the task: running, pausing or paused."""
        return self.paused or self.status is TaskStatus.RUNNING


class ExitStatus(Struct, frozen=True):
    """Result of containerd's Tasks.Wait: how a task exited; both None if the task was gone before the call."""

    exit_status: int | None
    exited_at: int | None


class RecordedExit(Struct, frozen=True):
    """CRI's record of a container that has exited, until kubelet removes it. CRI starts a container once.

    ``started_at`` is None if the container was never started, exit status and time if CRI does not know them either.
    ``oom``: CRI has recorded an OOM kill; false proves nothing.
    """

    key: ContainerKey
    started_at: int | None = None
    exit_status: int | None = None
    exited_at: int | None = None
    oom: bool = False


class Engine(Struct, frozen=True):
    """One containerd: ``id`` is its server UUID ("" if it reports none), ``pid`` is 0 if unknown."""

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
    """``/containers/update``: ``labels`` is the complete new set as containerd sent it, before the label rules."""

    key: ContainerKey
    at: int
    image: str
    labels: Labels


class ContainerDeleted(Struct, frozen=True):
    """``/containers/delete``."""

    key: ContainerKey
    at: int


class TaskCreated(Struct, frozen=True):
    """``/tasks/create``: the init process exists but is not started yet."""

    key: ContainerKey
    at: int
    pid: int


class TaskStarted(Struct, frozen=True):
    """``/tasks/start``."""

    key: ContainerKey
    at: int
    pid: int


class TaskExited(Struct, frozen=True):
    """``/tasks/exit``: of the init process if ``exec_id`` is "", otherwise of an exec process."""

    key: ContainerKey
    at: int
    exec_id: str
    pid: int
    status: int
    exited_at: int | None


class TaskDeleted(Struct, frozen=True):
    """``/tasks/delete``: of the init process if ``exec_id`` is "", otherwise of an exec process."""

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
    """``/tasks/oom``: an OOM kill in the container's cgroup, not necessarily of the init process."""

    key: ContainerKey
    at: int


class Marker(Struct, frozen=True):
    """A marker event of this or another bridge: ``/whalebridge/marker/<nonce>/<number>``."""

    nonce: str
    number: int


class Ignored(Struct, frozen=True):
    """An event that does not concern a container; ``known`` is false if containerd's topic is new to this version."""

    topic: str
    known: bool


class Undecodable(Struct, frozen=True):
    """An event whose payload cannot be decoded, and the reason."""

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
Event: TypeAlias = ContainerEvent | Marker | Ignored | Undecodable
