"""The state machine of lives: containerd's events and answers in, well-formed transitions out.

Invariants, whatever comes in and in whatever order:

- A life (one incarnation of a container) is told by one ``started`` (or was there before anybody looked), then by
  ``paused`` and ``unpaused`` in turn, then by at most one ``exited``. Nothing is told of it afterwards.
- STOPPED beats RUNNING of the same pid: a pid that has ended under an id does not come back.
- What an event alone cannot decide is not guessed: the container is put down to be asked for (``due_questions``),
  and containerd's answer decides (``answer``), unless more events came in meanwhile: then it is asked for again.

The tracker does no I/O and knows no time but the one it is told. Sources of the rules: DESIGN section 3, containerd's
shims (they publish after they changed state, late and repeatedly), whalewatcher (which tasks count as alive).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple, TypeAlias

from msgspec.structs import replace

from bridge.core.events import Origin, RowType, TransitionType
from bridge.core.identity import incarnation
from bridge.core.lives import CREATED_KEPT, Ending, Entry, Life, Question, Transition
from bridge.core.model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    Instant,
    Labels,
    Metadata,
    Task,
    TaskCreated,
    TaskDeleted,
    TaskEnd,
    TaskExited,
    TaskOOM,
    TaskPaused,
    TaskResumed,
    TaskStarted,
    TaskStatus,
)

SECOND = 1_000_000_000
HOLD = 30 * SECOND  # an exit waits that long for its start: shims retry a failed publish for some 15 to 45 s
GRACE = 5 * SECOND  # a life that must be over waits that long for its exit event before containerd is asked
WITNESSED_GRACE = 2 * SECOND  # the same where its exit status is known anyway
GRAVES_KEPT = 10_000  # ids without record and life remembered, to know late and repeated events by

Scope: TypeAlias = Callable[[Metadata | None], bool]


class Change(NamedTuple):
    """An id of which more, less or other things are known than before.

    ``entry`` is None where nothing is known of it any more, ``metadata`` None where its record is not to be kept any
    longer. ``relearned``: the record is another one than before.
    """

    key: ContainerKey
    entry: Entry | None
    metadata: Metadata | None
    relearned: bool


class Tracker:
    """Keeps the lives of all containers of one containerd.

    Args:
        boot_id: The host's boot, part of each incarnation.
        in_scope: Whether a container's lives are told at all; asked once per life, at its beginning.
    """

    def __init__(self, boot_id: str, in_scope: Scope = lambda _metadata: True) -> None:
        self.counts: Counter[str] = Counter()
        self.adopted = 0
        self._boot_id = boot_id
        self._in_scope = in_scope
        self._entries: dict[ContainerKey, Entry] = {}
        self._graves: dict[ContainerKey, Entry] = {}
        self._sandboxes: dict[str, tuple[ContainerKey, Labels | None]] = {}
        self._questions: dict[ContainerKey, int] = {}
        self._holding: set[ContainerKey] = set()
        self._blind: set[str] | None = None
        self._told: list[Transition] = []
        self._changed: dict[ContainerKey, bool] = {}  # since changes() was called last; True: also its record

    # --- what is known ---

    def entries(self) -> Iterator[Entry]:
        """Every container with a record or a life."""
        return iter(self._entries.values())

    def find(self, key: ContainerKey) -> Entry | None:
        """Return what is known under an id, if anything."""
        return self._entries.get(key) or self._graves.get(key)

    def lives(self) -> Iterator[tuple[Entry, Life]]:
        """Every life, told or not."""
        return ((entry, entry.life) for entry in self._entries.values() if entry.life is not None)

    def rows(self, now: Instant) -> list[Transition]:
        """Return a ``present`` row for every living container in scope: the portfolio, which is to be published."""
        for entry, life in self.lives():
            if life.silent:
                life.silent = False
                self._changed.setdefault(entry.key, False)
        return self.portfolio(now)

    def portfolio(self, now: Instant) -> list[Transition]:
        """Return the same rows, only to look at them: they do not count as published."""
        return [
            self._describe(entry, life, "present", "snapshot", now.wall) for entry, life in self.lives() if life.told
        ]

    def remembers(self, namespace: str) -> bool:
        """Whether what lived in a namespace is known, so that a container not known there is a newborn."""
        return self._blind is not None and namespace not in self._blind

    def next_due(self) -> int | None:
        """When (monotonic) a held exit or a question becomes due next; None if nothing waits."""
        dues = [*self._questions.values(), *(self._entries[key].held_until for key in self._holding)]
        return min(dues, default=None)

    # --- what outlives the process ---

    @property
    def blind(self) -> set[str] | None:
        """The namespaces of which nobody knows what lived there; None: all."""
        return self._blind

    @property
    def changed(self) -> bool:
        """Whether something has changed since ``changes`` was called last."""
        return bool(self._changed)

    def changes(self) -> Iterator[Change]:
        """Tell what has changed since the last call."""
        changed, self._changed = self._changed, {}
        for key, relearned in changed.items():
            entry = self._entries.get(key)
            if entry is None:
                yield Change(key, self._graves.get(key), None, relearned=True)
            else:
                yield Change(key, entry, entry.metadata, relearned)

    def restore(self, entries: Iterable[Entry], blind: set[str] | None, now: Instant, *, altered: bool) -> None:
        """Take up what was remembered at some moment in the past; since then anything may have happened unseen.

        ``altered``: it is not as it was written down, so that it counts as changed.
        """
        for entry in entries:
            self._entries[entry.key] = entry
            if entry.metadata is not None:
                self._index(entry.metadata)
            if entry.held is not None:
                entry.held_until = now.monotonic + HOLD
                self._holding.add(entry.key)
            self._close(entry)
        self._blind = blind
        self.disconnect()
        self._changed = dict.fromkeys([*self._entries, *self._graves], True) if altered else {}

    def _index(self, metadata: Metadata) -> None:
        """Remember the labels of a pod, which its sandbox carries, for its other containers."""
        if metadata.kind == "sandbox" and metadata.pod is not None:
            self._sandboxes[metadata.pod.uid] = (metadata.key, metadata.pod_labels)

    # --- what comes in ---

    def learn(self, metadata: Metadata) -> None:
        """Take in a container's record as it is now."""
        entry = self._enter(metadata.key)
        known = entry.metadata
        if known is not None and not metadata.runtime:  # told by an update event alone: the record is gone
            metadata = replace(metadata, runtime=known.runtime, created_at=known.created_at)
        if metadata != known:
            self._changed[metadata.key] = True
        entry.metadata, entry.deleted = metadata, False
        self._index(metadata)

    def step(self, event: ContainerEvent, now: Instant) -> list[Transition]:
        """Take in one event; return what it has to be told as, in order: often nothing."""
        entry = self._enter(event.key)
        if not isinstance(event, TaskOOM):
            entry.version += 1
        _STEPS[type(event)](self, entry, event, now)
        return self._close(entry)

    def expire(self, now: Instant) -> list[Transition]:
        """Decide on the exits that were held for long enough."""
        told: list[Transition] = []
        for key in [key for key in self._holding if self._entries[key].held_until <= now.monotonic]:
            entry = self._entries[key]
            self._conclude(entry, now)
            told += self._close(entry)
        return told

    def ask(self, key: ContainerKey, due: int = 0) -> None:
        """Have a container's task asked for, at once or when ``due`` (monotonic)."""
        self._questions[key] = min(due, self._questions.get(key, due))

    def due_questions(self, now: Instant) -> list[Question]:
        """Hand out the questions that are due; each must be brought back by ``answer`` or ``no_answer``."""
        due = [key for key, at in self._questions.items() if at <= now.monotonic]
        for key in due:
            del self._questions[key]
        return [self.question(key) for key in due]

    def question(self, key: ContainerKey) -> Question:
        """Put the question for a container's task, whatever the reason."""
        entry = self.find(key)
        return Question(key, entry.version if entry is not None else 0)

    def answer(self, question: Question, task: Task | None, now: Instant) -> list[Transition]:
        """Take in containerd's answer to a question; None: there is no such task.

        Where events came in since it was asked, it is asked again: nobody can tell which of the two is newer.
        """
        entry = self._enter(question.key)
        if task is not None and task.status is TaskStatus.UNKNOWN:
            self.no_answer(question)
            return []
        if entry.version != question.version:
            self.ask(question.key)
            return self._close(entry)
        entry.version += 1  # other answers on their way are older
        return self.settle(question.key, task, now)

    def no_answer(self, question: Question) -> None:
        """Containerd could not say: what is known stays, unproven; the audit asks again."""
        entry = self._enter(question.key)
        if entry.version != question.version:
            self.ask(question.key)
        elif entry.life is None:
            entry.unanswered = True
        else:
            entry.life.proven = False
        self._close(entry)

    def witness(self, key: ContainerKey, pid: int, end: TaskEnd, now: Instant) -> None:
        """Take in how a task ended from whoever waited for it: the exit event is on its way, or lost.

        The event is what tells, as it has the time at which it was told and comes in order; where it does not come,
        its status is known all the same.
        """
        entry = self._enter(key)
        if pid in entry.created[-1:] or (entry.life is not None and entry.life.pid == pid):
            entry.witnessed = (pid, end)
            entry.version += 1
        if entry.life is not None and entry.life.pid == pid:
            self.ask(key, now.monotonic + WITNESSED_GRACE)
        self._close(entry)

    def settle(self, key: ContainerKey, task: Task | None, now: Instant) -> list[Transition]:
        """Take containerd's word for how a container's task is; None is its word that there is none."""
        entry = self._enter(key)
        if task is not None and not task.pid:  # a shim that was given up: it can only be the life that is known
            if entry.life is None:
                entry.unanswered = False
                return self._close(entry)
            task = replace(task, pid=entry.life.pid)
        if task is None or task.status is TaskStatus.CREATED:
            self._settle_lifeless(entry, task, now)
        else:
            self._settle_known(entry, task, now)
        entry.unanswered = False
        entry.changed_at = now.monotonic
        return self._close(entry)

    def disconnect(self) -> None:
        """The stream is gone: from now on anything may happen unseen."""
        self._questions.clear()
        for entry in chain(self._entries.values(), self._graves.values()):
            entry.version = 0
            exited = entry.held.pid if entry.held is not None else None
            entry.created = tuple(pid for pid in entry.created if pid == exited)  # the others may be started unseen
            entry.deleted &= entry.metadata is not None  # one never known may be made anew unseen
            if entry.life is not None:
                entry.life.proven = False

    def complete(self, failed: set[str]) -> None:
        """A snapshot is complete but for the namespaces that failed: whoever is unknown elsewhere is a newborn."""
        self._blind = failed if self._blind is None else self._blind & failed

    def end_all(self, now: Instant) -> list[Transition]:
        """Every life is over, because the host was booted or the engine replaced; forget everything."""
        for key in list(self._holding):
            self._conclude(self._entries[key], now)
        for entry, _life in list(self.lives()):
            self._end(entry, "inferred", now.wall, Ending())
        self._changed.update(dict.fromkeys([*self._entries, *self._graves], True))
        for lost in (self._entries, self._graves, self._sandboxes, self._questions):
            lost.clear()
        self._blind = set()
        return self._flush()

    def forget(self, key: ContainerKey) -> None:
        """A listing does not name this container's record any more."""
        entry = self._entries.get(key)
        if entry is not None:
            self._delete(entry)
            self._close(entry)

    # --- one step per event ---

    def _on_container_created(self, entry: Entry, _event: ContainerCreated, _now: Instant) -> None:
        entry.unanswered = False

    def _on_container_updated(self, entry: Entry, _event: ContainerUpdated, _now: Instant) -> None:
        """The record was learned already: it is fetched for each such event."""

    def _on_container_deleted(self, entry: Entry, _event: ContainerDeleted, now: Instant) -> None:
        self._delete(entry)
        if entry.life is not None:
            self.ask(entry.key, now.monotonic + GRACE)

    def _on_created(self, entry: Entry, event: TaskCreated, now: Instant) -> None:
        if self._is_known(entry, event.pid):
            self.counts["late"] += 1
            return
        self._expect(entry, event.pid)
        entry.oom = False
        if entry.life is not None:
            self.ask(entry.key, now.monotonic + GRACE)

    def _on_started(self, entry: Entry, event: TaskStarted, now: Instant) -> None:
        if self._is_known(entry, event.pid):
            self.counts["duplicate"] += 1
            if entry.life is not None and entry.life.pid == event.pid:
                entry.life.proven = True
            return
        late = self._is_late(entry, event.at, now)
        if late or entry.life is not None:
            self.ask(entry.key)
        if entry.life is not None or (late and not self._is_awaited(entry, event.pid)):
            self.counts["doubted"] += 1
            entry.doubted = event
            return
        if entry.held is not None and entry.held.pid != event.pid:
            self._conclude(entry, now)
        self._begin(entry, event.pid, "live", event.at)
        if entry.witnessed is not None and entry.witnessed[0] == event.pid:
            self.ask(entry.key, now.monotonic + WITNESSED_GRACE)
        self._end_by_held(entry)

    def _on_exited(self, entry: Entry, event: TaskExited, now: Instant) -> None:
        if event.exec_id:
            entry.version -= 1  # an exec's exit says nothing about the container
            self.counts["exec_exit"] += 1
        elif entry.life is not None and entry.life.pid == event.pid:
            self._end(entry, "live", event.at, Ending(event.status, event.exited_at, entry.oom))
        elif event.pid == 0:
            if entry.life is not None:
                self.ask(entry.key)
        elif event.pid in entry.ended or (entry.held is not None and entry.held.pid == event.pid):
            self.counts["duplicate"] += 1
        else:
            self._hold(entry, event, now)

    def _on_deleted(self, entry: Entry, event: TaskDeleted, now: Instant) -> None:
        if event.exec_id:
            entry.version -= 1
        elif entry.life is None:
            pass  # its exit was told already, or is held, or nobody ever knew of it
        elif event.pid == entry.life.pid:
            self._end(entry, "inferred", now.wall, Ending(event.status, event.exited_at))
        elif event.pid == 0:
            self.ask(entry.key)

    def _on_paused(self, entry: Entry, event: TaskPaused, now: Instant) -> None:
        self._turn(entry, event.at, now, paused=True)

    def _on_resumed(self, entry: Entry, event: TaskResumed, now: Instant) -> None:
        self._turn(entry, event.at, now, paused=False)

    def _on_oom(self, entry: Entry, _event: TaskOOM, _now: Instant) -> None:
        if entry.life is not None or entry.held is not None or self._is_expected(entry):
            entry.oom = True

    # --- what a step is made of ---

    @staticmethod
    def _is_late(entry: Entry, at: int, now: Instant) -> bool:
        """Whether an event may be older than what is known already; its timestamp raises doubt, it decides nothing.

        The wall clock may be set at any time, so the monotonic moment of the event is what is compared.
        """
        moment = now.monotonic - (now.wall - at)
        if not entry.changed_at <= moment <= now.monotonic:
            return True
        entry.changed_at = moment
        return False

    @staticmethod
    def _is_expected(entry: Entry) -> bool:
        """Whether a task was created and has not ended."""
        return bool(entry.created) and entry.created[-1] not in entry.ended

    @staticmethod
    def _is_awaited(entry: Entry, pid: int) -> bool:
        """Whether a task's start, however late, is the one that is missing."""
        return pid in entry.created[-1:] or (entry.held is not None and entry.held.pid == pid)

    @staticmethod
    def _is_doubted(entry: Entry, pid: int) -> bool:
        return entry.doubted is not None and entry.doubted.pid == pid

    def _is_unstarted(self, entry: Entry, pid: int) -> bool:
        """Whether a task was seen created, and not started."""
        return pid in entry.created and not self._is_doubted(entry, pid)

    def _turn(self, entry: Entry, at: int, now: Instant, *, paused: bool) -> None:
        """Tell a pause or its end where it fits a proven life; else have the task asked for, as it has no pid."""
        life, late = entry.life, self._is_late(entry, at, now)
        if life is not None and life.proven and life.paused is not paused and not late:
            self._set_paused(entry, life, "live", at, paused=paused)
        else:
            self.counts["unexpected_pause"] += 1
            self.ask(entry.key)

    @staticmethod
    def _expect(entry: Entry, pid: int) -> None:
        """A task waits to be started; those before it are remembered for a while, as their exits may come late."""
        if pid not in entry.created:
            entry.created = (*entry.created[1 - CREATED_KEPT :], pid)

    def _hold(self, entry: Entry, event: TaskExited, now: Instant) -> None:
        """Keep an exit whose start has not been seen; another life's being alive has to be checked, too."""
        if entry.held is not None:
            self._conclude(entry, now)
        entry.held, entry.held_until = event, now.monotonic + HOLD
        self._holding.add(entry.key)
        if entry.life is not None:
            self.ask(entry.key)

    def _conclude(self, entry: Entry, now: Instant) -> None:
        """Decide on a held exit: of a life whose start fell into a gap, or of a task that was never started.

        While another life goes on it can only be a late event of an older one, which changes nothing.
        """
        held = entry.held
        assert held is not None  # noqa: S101 (only a held exit is concluded)
        if self._is_unstarted(entry, held.pid) or entry.life is not None:
            self.counts["never_started" if entry.life is None else "late"] += 1
            entry.ended.append(held.pid)
            self._release(entry)
        else:
            self._begin(entry, held.pid, "inferred", now.wall)
            self._end_by_held(entry)

    def _end_by_held(self, entry: Entry) -> None:
        """A life has begun: if its exit was here before, it is over."""
        held = entry.held
        if held is not None:
            self._end(entry, "live", held.at, Ending(held.status, held.exited_at, entry.oom))
            self._release(entry)

    def _release(self, entry: Entry) -> None:
        entry.held = None
        self._holding.discard(entry.key)

    def _settle_lifeless(self, entry: Entry, task: Task | None, now: Instant) -> None:
        """There is no task, or one that is not started yet."""
        life = entry.life
        if task is not None and self._is_known(entry, task.pid):
            return  # the answer is older than what is known
        if life is not None:
            self._end(entry, "inferred", now.wall, Ending())
        if task is not None:
            self._expect(entry, task.pid)
        elif entry.held is not None and self._is_doubted(entry, entry.held.pid):
            self._conclude(entry, now)

    def _settle_known(self, entry: Entry, task: Task, now: Instant) -> None:
        """There is a task that runs or ran, and is not known to have ended."""
        silent = entry.unanswered or not self.remembers(entry.key.namespace)
        if entry.life is not None and entry.life.pid != task.pid:
            self._end(entry, "inferred", now.wall, Ending())
        if task.pid in entry.ended:
            return
        if entry.held is not None and entry.held.pid != task.pid:
            self._conclude(entry, now)
        if entry.held is not None:
            if task.alive or not self._is_unstarted(entry, task.pid):
                self._begin(entry, task.pid, "inferred", now.wall)
                self._end_by_held(entry)
        elif task.alive:
            self._settle_alive(entry, task, now, silent=silent)
        else:
            self._settle_stopped(entry, task, now, silent=silent)

    def _settle_alive(self, entry: Entry, task: Task, now: Instant, *, silent: bool) -> None:
        if entry.life is None:
            self._begin(entry, task.pid, "inferred", now.wall, silent=silent, paused=task.paused)
        life = entry.life
        assert life is not None  # noqa: S101 (just begun, or there before)
        life.proven = True
        if life.paused is not task.paused:
            self._set_paused(entry, life, "inferred", now.wall, paused=task.paused)

    def _settle_stopped(self, entry: Entry, task: Task, now: Instant, *, silent: bool) -> None:
        if entry.life is None:
            if self._is_unstarted(entry, task.pid):
                return  # killed before it was started, as far as anybody saw: its exit event will tell
            if silent:
                entry.ended.append(task.pid)  # it ended before anybody looked
                return
            self._begin(entry, task.pid, "inferred", now.wall)
        self._end(entry, "inferred", now.wall, Ending(task.exit_status, task.exited_at))

    def _begin(
        self, entry: Entry, pid: int, origin: Origin, at: int, *, silent: bool = False, paused: bool = False
    ) -> None:
        """Begin a life; a silent one was there before anybody looked: its first ``present`` row tells it."""
        if entry.doubted is not None and entry.doubted.pid == pid:
            origin, at, silent = "live", entry.doubted.at, False
        entry.unanswered = False
        entry.life = Life(
            pid=pid,
            incarnation=incarnation(self._boot_id, pid),
            paused=silent and paused,
            proven=True,
            told=self._in_scope(entry.metadata),
            silent=silent,
        )
        if silent:
            self.adopted += entry.life.told
        else:
            self._tell(entry, entry.life, "started", origin, at)

    def _set_paused(self, entry: Entry, life: Life, origin: Origin, at: int, *, paused: bool) -> None:
        life.paused = paused
        if not life.silent:
            self._tell(entry, life, "paused" if paused else "unpaused", origin, at)

    def _end(self, entry: Entry, origin: Origin, at: int, ending: Ending) -> None:
        life = entry.life
        assert life is not None  # noqa: S101 (only a life can end)
        if ending.status is None and entry.witnessed is not None and entry.witnessed[0] == life.pid:
            end = entry.witnessed[1]
            ending = Ending(end.exit_status, end.exited_at)
        self._overtake(entry, life, ending)
        entry.life, entry.oom, entry.witnessed = None, False, None
        entry.ended.append(life.pid)
        if entry.doubted is None:
            self._questions.pop(entry.key, None)
        life.paused = False
        if life.silent:
            self._tell(entry, life, "started", "inferred", at)
        self._tell(entry, life, "exited", origin, at, ending)

    def _overtake(self, entry: Entry, life: Life, ending: Ending) -> None:
        """A held exit that is older than the end of a life was that of a life before it, which changes nothing."""
        held = entry.held
        if held is None or held.pid == life.pid or held.exited_at is None or ending.exited_at is None:
            return
        if held.exited_at <= ending.exited_at:
            self.counts["late"] += 1
            entry.ended.append(held.pid)
            self._release(entry)

    def _delete(self, entry: Entry) -> None:
        entry.deleted = True
        pod = entry.metadata.pod if entry.metadata is not None else None
        sandbox = self._sandboxes.get(pod.uid) if pod is not None else None
        if pod is not None and sandbox is not None and sandbox[0] == entry.key:
            del self._sandboxes[pod.uid]

    @staticmethod
    def _is_known(entry: Entry, pid: int) -> bool:
        return pid in entry.ended or (entry.life is not None and entry.life.pid == pid)

    def _tell(
        self,
        entry: Entry,
        life: Life,
        type_: TransitionType,
        origin: Origin,
        at: int,
        ending: Ending | None = None,
    ) -> None:
        if life.told:
            self._told.append(self._describe(entry, life, type_, origin, at, ending))

    def _describe(
        self,
        entry: Entry,
        life: Life,
        type_: TransitionType | RowType,
        origin: Origin,
        at: int,
        ending: Ending | None = None,
    ) -> Transition:
        metadata = entry.metadata
        pod = metadata.pod if metadata is not None else None
        sandbox = self._sandboxes.get(pod.uid) if pod is not None else None
        pod_labels = sandbox[1] if sandbox is not None else None
        return Transition(
            type_, origin, at, entry.key, metadata, pod_labels, life.pid, life.incarnation, life.paused, ending
        )

    def _enter(self, key: ContainerKey) -> Entry:
        """Return the entry of an id, out of its grave if need be."""
        entry = self._entries.get(key)
        if entry is None:
            grave = self._graves.pop(key, None)
            entry = self._entries[key] = Entry(key) if grave is None else grave
        return entry

    def _close(self, entry: Entry) -> list[Transition]:
        """Bury an id that has neither record nor life, and hand over what is to be told."""
        self._changed.setdefault(entry.key, False)
        gone = entry.deleted or entry.metadata is None
        if gone and entry.life is None and entry.held is None and not entry.unanswered:
            del self._entries[entry.key]
            self._graves[entry.key] = entry
            if len(self._graves) > GRAVES_KEPT:
                oldest = next(iter(self._graves))
                del self._graves[oldest]
                self._changed[oldest] = True
        return self._flush()

    def _flush(self) -> list[Transition]:
        told, self._told = self._told, []
        return told


_STEPS: dict[type, Callable[..., None]] = {
    ContainerCreated: Tracker._on_container_created,
    ContainerUpdated: Tracker._on_container_updated,
    ContainerDeleted: Tracker._on_container_deleted,
    TaskCreated: Tracker._on_created,
    TaskStarted: Tracker._on_started,
    TaskExited: Tracker._on_exited,
    TaskDeleted: Tracker._on_deleted,
    TaskPaused: Tracker._on_paused,
    TaskResumed: Tracker._on_resumed,
    TaskOOM: Tracker._on_oom,
}
