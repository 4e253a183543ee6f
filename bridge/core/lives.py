"""What the tracker keeps of a container, and what it tells of it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from bridge.core.events import ExtraType, Origin, RowType, TransitionType
from bridge.core.labels import LabelRules, ruled
from bridge.core.model import ContainerKey, Instant, Labels, Metadata, TaskEnd, TaskExited, TaskStarted

ENDED_KEPT = 16  # pids of ended lives remembered per id, to know late and repeated events by
CREATED_KEPT = 4  # pids of created tasks remembered per id, to tell by which exits are of tasks that never were started


class Life(Struct):
    """One incarnation of a container.

    ``proven``: an event or containerd's word has confirmed it since the stream was connected last. ``told``: it is in
    scope, which is decided once per life. ``silent``: it was there before anybody looked, and its first ``present``
    row is still to come.
    """

    pid: int
    incarnation: str
    paused: bool
    proven: bool
    told: bool
    silent: bool = False


NO_LIFE = Life(pid=0, incarnation="", paused=False, proven=False, told=False)


class Ending(NamedTuple):
    """How a life ended, as far as known; ``oom`` None where the exit is inferred."""

    status: int | None = None
    exited_at: int | None = None
    oom: bool | None = None


class Transition(Struct, frozen=True):
    """What is to be told of a container; ``metadata`` and ``pod_labels`` as they are known at that moment.

    ``pid`` is 0 and ``incarnation`` "" where there is no life that was told.
    """

    type: TransitionType | RowType | ExtraType
    origin: Origin
    at: int
    key: ContainerKey
    metadata: Metadata | None
    pod_labels: Labels | None
    pid: int
    incarnation: str
    paused: bool
    ending: Ending | None = None

    def ruled(self, rules: LabelRules) -> Transition:
        """Return it with the labels that may be told under other rules than those that it was made under."""
        pod_labels = None if self.pod_labels is None else rules.apply(self.pod_labels)
        metadata = None if self.metadata is None else ruled(self.metadata, rules)
        return replace(self, metadata=metadata, pod_labels=pod_labels)


class Question(NamedTuple):
    """A container whose task has to be asked for, and the version of what was known when the question arose."""

    key: ContainerKey
    version: int


class Entry(Struct):
    """All that is known under one id.

    ``created``: pids of the tasks seen created last. ``doubted``: a start that came late or while another life went on,
    for containerd to confirm. ``held``: an exit without a start, and until when (monotonic) the start may still come.
    ``witnessed``: the end of the task with that pid as whoever waited for it was told, in case its exit event gets
    lost. ``deleted_at`` (wall clock): when an event said last that its record is. ``unanswered``: containerd was asked
    for its task and could not say, before anything was known of it.
    ``version`` counts what has been seen. ``changed_at``: the moment (monotonic) of the newest change known; an event
    of an earlier one comes late. ``announced``: the record as readers know it who are told of records, too; None where
    they know of none.
    """

    key: ContainerKey
    metadata: Metadata | None = None
    life: Life | None = None
    created: tuple[int, ...] = ()
    doubted: TaskStarted | None = None
    held: TaskExited | None = None
    held_until: int = 0
    witnessed: tuple[int, TaskEnd] | None = None
    oom: bool = False
    deleted: bool = False
    deleted_at: int = 0
    unanswered: bool = False
    version: int = 0
    changed_at: int = 0
    announced: Metadata | None = None
    ended: deque[int] = field(default_factory=lambda: deque(maxlen=ENDED_KEPT))

    def is_known(self, pid: int) -> bool:
        """Whether a task's life was told or is being told."""
        return pid in self.ended or (self.life is not None and self.life.pid == pid)

    def is_late(self, at: int, now: Instant) -> bool:
        """Whether an event may be older than what is known already; its timestamp raises doubt, it decides nothing.

        The wall clock may be set at any time, so the monotonic moment of the event is what is compared.
        """
        moment = now.monotonic - (now.wall - at)
        if not self.changed_at <= moment <= now.monotonic:
            return True
        self.changed_at = moment
        return False

    def expect(self, pid: int) -> None:
        """A task waits to be started; those before it are remembered for a while, as their exits may come late."""
        if pid not in self.created:
            self.created = (*self.created[1 - CREATED_KEPT :], pid)

    def is_expected(self) -> bool:
        """Whether a task was created and has not ended."""
        return bool(self.created) and self.created[-1] not in self.ended

    def is_awaited(self, pid: int) -> bool:
        """Whether a task's start, however late, is the one that is missing."""
        return pid in self.created[-1:] or (self.held is not None and self.held.pid == pid)

    def is_doubted(self, pid: int) -> bool:
        """Whether a task's start waits for containerd to confirm it."""
        return self.doubted is not None and self.doubted.pid == pid

    def is_unstarted(self, pid: int) -> bool:
        """Whether a task was seen created, and not started."""
        return pid in self.created and not self.is_doubted(pid)
