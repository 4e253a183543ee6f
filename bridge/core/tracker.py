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
from collections.abc import Callable, Collection

from msgspec.structs import replace

from bridge.core.book import HOLD
from bridge.core.events import ExtraType, Origin
from bridge.core.identity import incarnation
from bridge.core.lives import Ending, Entry, Life, Question, Transition
from bridge.core.model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    Instant,
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
from bridge.core.telling import Teller, in_scope
from bridge.core.time import SECOND

GRACE = 5 * SECOND  # a life that must be over waits that long for its exit event before containerd is asked
WITNESSED_GRACE = 2 * SECOND  # the same where its exit status is known anyway


class Tracker(Teller):
    """Keeps the lives of all containers of one containerd.

    Args:
        boot_id: The host's boot, part of each incarnation.
        extras: Which types of extra records are told, too; may be replaced at any time.
    """

    def __init__(self, boot_id: str, extras: Collection[ExtraType] = ()) -> None:
        super().__init__(extras)
        self.counts: Counter[str] = Counter()
        self._boot_id = boot_id

    # --- what comes in ---

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

    # --- one step per event ---

    def _on_container_created(self, entry: Entry, event: ContainerCreated, _now: Instant) -> None:
        entry.unanswered = False
        self._announce(entry, event.at, "created")

    def _on_container_updated(self, entry: Entry, event: ContainerUpdated, _now: Instant) -> None:
        """The record was learned already: it is fetched for each such event."""
        self._announce(entry, event.at, "renamed")

    def _on_container_deleted(self, entry: Entry, event: ContainerDeleted, now: Instant) -> None:
        if not entry.deleted:
            entry.announced = entry.announced or entry.metadata
        entry.deleted_at = event.at
        self._delete(entry)
        self._announce(entry, event.at, "deleted")
        if entry.life is not None:
            self.ask(entry.key, now.monotonic + GRACE)

    def _on_created(self, entry: Entry, event: TaskCreated, now: Instant) -> None:
        if entry.is_known(event.pid):
            self.counts["late"] += 1
            return
        entry.expect(event.pid)
        entry.oom = False
        if entry.life is not None:
            self.ask(entry.key, now.monotonic + GRACE)

    def _on_started(self, entry: Entry, event: TaskStarted, now: Instant) -> None:
        if entry.is_known(event.pid):
            self.counts["duplicate"] += 1
            if entry.life is not None and entry.life.pid == event.pid:
                entry.life.proven = True
            return
        late = entry.is_late(event.at, now)
        if late or entry.life is not None:
            self.ask(entry.key)
        if entry.life is not None or (late and not entry.is_awaited(event.pid)):
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

    def _on_oom(self, entry: Entry, event: TaskOOM, _now: Instant) -> None:
        if entry.life is not None or entry.held is not None or entry.is_expected():
            entry.oom = True
        self._tell_extra(entry, "oom", "live", event.at, entry.metadata)

    # --- what a step is made of ---

    def _turn(self, entry: Entry, at: int, now: Instant, *, paused: bool) -> None:
        """Tell a pause or its end where it fits a proven life; else have the task asked for, as it has no pid."""
        life, late = entry.life, entry.is_late(at, now)
        if life is not None and life.proven and life.paused is not paused and not late:
            self._set_paused(entry, life, "live", at, paused=paused)
        else:
            self.counts["unexpected_pause"] += 1
            self.ask(entry.key)

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
        if entry.is_unstarted(held.pid) or entry.life is not None:
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
        if task is not None and entry.is_known(task.pid):
            return  # the answer is older than what is known
        if life is not None:
            self._end(entry, "inferred", now.wall, Ending())
        if task is not None:
            entry.expect(task.pid)
        elif entry.held is not None and entry.is_doubted(entry.held.pid):
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
            if task.alive or not entry.is_unstarted(task.pid):
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
            if entry.is_unstarted(task.pid):
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
            told=in_scope(entry.metadata),
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
        if entry.deleted:
            self._announce(entry, at)

    def _overtake(self, entry: Entry, life: Life, ending: Ending) -> None:
        """A held exit that is older than the end of a life was that of a life before it, which changes nothing."""
        held = entry.held
        if held is None or held.pid == life.pid or held.exited_at is None or ending.exited_at is None:
            return
        if held.exited_at <= ending.exited_at:
            self.counts["late"] += 1
            entry.ended.append(held.pid)
            self._release(entry)


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
