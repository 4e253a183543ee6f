"""State machine of incarnations: turns containerd's events and query results into well-formed transitions.

Invariants, for any input in any order:

- An incarnation (one run of a container) begins with one ``started`` (or is preexisting), continues with ``paused``
  and ``unpaused`` in turn, and finishes with at most one ``exited``. No transition follows the exit.
- STOPPED overrides RUNNING of the same pid: a pid that has exited under an id does not return.
- If an event alone is inconclusive, the tracker schedules a task query (``due_queries``), and its result decides
  (``apply_query_result``), unless more events arrived in the meantime: then the tracker schedules another query.

The tracker does no I/O and takes the time only from its arguments. Sources of the rules: containerd's shims, which
publish after they change state, late and repeatedly, and whalewatcher, which defines the tasks that count as running.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from msgspec.structs import replace

from bridge.core.book import HOLD, SECOND
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

GRACE = 5 * SECOND  # wait for the exit event of a task that must have exited, before the task is queried
WITNESSED_GRACE = 2 * SECOND  # the same if Tasks.Wait has returned the exit status


class Tracker(Teller):
    """Track the incarnations of all containers of one containerd.

    Args:
        boot_id: The boot id of the host, part of each incarnation id.
        additional_events: The optional event types to emit; may be replaced at any time.
    """

    def __init__(self, boot_id: str, extras: Collection[ExtraType] = ()) -> None:
        super().__init__(extras)
        self.counts: Counter[str] = Counter()
        self._boot_id = boot_id

    # --- inputs ---

    def step(self, event: ContainerEvent, now: Instant) -> list[Transition]:
        """Process one event; return the resulting transitions in order, often none."""
        entry = self._enter(event.key)
        if not isinstance(event, TaskOOM):
            entry.version += 1
        _STEPS[type(event)](self, entry, event, now)
        return self._close(entry)

    def expire(self, now: Instant) -> list[Transition]:
        """Resolve the pending exits whose deadline has passed."""
        transitions: list[Transition] = []
        for key in [key for key in self._holding if self._entries[key].held_until <= now.monotonic]:
            entry = self._entries[key]
            self._conclude(entry, now)
            transitions += self._close(entry)
        return transitions

    def answer(self, question: Question, task: Task | None, now: Instant) -> list[Transition]:
        """Apply the result of a task query; None: there is no such task.

        If events arrived after the query was made, the order of event and result is unknown, so the query is repeated.
        """
        entry = self._enter(question.key)
        if task is not None and task.status is TaskStatus.UNKNOWN:
            self.no_answer(question)
            return []
        if entry.version != question.version:
            self.ask(question.key)
            return self._close(entry)
        entry.version += 1  # other results in flight are older
        return self.settle(question.key, task, now)

    def no_answer(self, question: Question) -> None:
        """Handle a failed task query: the state is kept as unconfirmed, and the audit repeats the query."""
        entry = self._enter(question.key)
        if entry.version != question.version:
            self.ask(question.key)
        elif entry.life is None:
            entry.unanswered = True
        else:
            entry.life.proven = False
        self._close(entry)

    def witness(self, key: ContainerKey, pid: int, end: TaskEnd, now: Instant) -> None:
        """Process the result of Tasks.Wait: the exit event is in flight, or lost.

        The exit event takes precedence, because it has the time of publication and arrives in order. If it does not
        arrive, the exit status is known nevertheless.
        """
        entry = self._enter(key)
        if pid in entry.created[-1:] or (entry.life is not None and entry.life.pid == pid):
            entry.witnessed = (pid, end)
            entry.version += 1
        if entry.life is not None and entry.life.pid == pid:
            self.ask(key, now.monotonic + WITNESSED_GRACE)
        self._close(entry)

    def settle(self, key: ContainerKey, task: Task | None, now: Instant) -> list[Transition]:
        """Apply the state of a container's task as reported by containerd; None: there is no task."""
        entry = self._enter(key)
        if task is not None and not task.pid:  # the shim is gone: the task can only be the known one
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
        """Emit the exit of every incarnation, after a reboot or a replacement of the engine, and clear all state."""
        for key in list(self._holding):
            self._conclude(self._entries[key], now)
        for entry, _incarnation in list(self.lives()):
            self._end(entry, "inferred", now.wall, Ending())
        self._changed.update(dict.fromkeys([*self._entries, *self._graves], True))
        for collection in (self._entries, self._graves, self._sandboxes, self._questions):
            collection.clear()
        self._blind = set()
        return self._flush()

    # --- one handler per event type ---

    def _on_container_created(self, entry: Entry, event: ContainerCreated, _now: Instant) -> None:
        entry.unanswered = False
        self._announce(entry, event.at, "created")

    def _on_container_updated(self, entry: Entry, event: ContainerUpdated, _now: Instant) -> None:
        """Emit a new name; the metadata is current already, because it is fetched for each such event."""
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
            self.counts["unconfirmed_start"] += 1
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
            entry.version -= 1  # an exec process does not affect the container
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
            pass  # the exit was emitted already or is pending, or the task was never known
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

    # --- building blocks ---

    def _turn(self, entry: Entry, at: int, now: Instant, *, paused: bool) -> None:
        """Emit a pause or resume that fits a confirmed incarnation; otherwise query, because the event has no pid."""
        incarnation, late = entry.life, entry.is_late(at, now)
        if incarnation is not None and incarnation.proven and incarnation.paused is not paused and not late:
            self._set_paused(entry, incarnation, "live", at, paused=paused)
        else:
            self.counts["unexpected_pause"] += 1
            self.ask(entry.key)

    def _hold(self, entry: Entry, event: TaskExited, now: Instant) -> None:
        """Defer an exit whose start has not been seen; if another task is believed to be running, query it."""
        if entry.held is not None:
            self._conclude(entry, now)
        entry.held, entry.held_until = event, now.monotonic + HOLD
        self._holding.add(entry.key)
        if entry.life is not None:
            self.ask(entry.key)

    def _conclude(self, entry: Entry, now: Instant) -> None:
        """Resolve a pending exit: its start fell into a gap, or its task was never started.

        During another incarnation, the exit can only be a late event of an earlier one, and is ignored.
        """
        pending = entry.held
        assert pending is not None  # noqa: S101 (callers check that an exit is pending)
        if entry.is_unstarted(pending.pid) or entry.life is not None:
            self.counts["never_started" if entry.life is None else "late"] += 1
            entry.ended.append(pending.pid)
            self._release(entry)
        else:
            self._begin(entry, pending.pid, "inferred", now.wall)
            self._end_by_held(entry)

    def _end_by_held(self, entry: Entry) -> None:
        """Emit the exit of an incarnation that has just started if its exit arrived before."""
        pending = entry.held
        if pending is not None:
            self._end(entry, "live", pending.at, Ending(pending.status, pending.exited_at, entry.oom))
            self._release(entry)

    def _release(self, entry: Entry) -> None:
        entry.held = None
        self._holding.discard(entry.key)

    def _settle_lifeless(self, entry: Entry, task: Task | None, now: Instant) -> None:
        """Apply that there is no task, or one that is not started yet."""
        incarnation = entry.life
        if task is not None and entry.is_known(task.pid):
            return  # the result is older than the state
        if incarnation is not None:
            self._end(entry, "inferred", now.wall, Ending())
        if task is not None:
            entry.expect(task.pid)
        elif entry.held is not None and entry.is_doubted(entry.held.pid):
            self._conclude(entry, now)

    def _settle_known(self, entry: Entry, task: Task, now: Instant) -> None:
        """Apply a task that is running or stopped."""
        preexisting = entry.unanswered or not self.remembers(entry.key.namespace)
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
            self._settle_alive(entry, task, now, silent=preexisting)
        else:
            self._settle_stopped(entry, task, now, silent=preexisting)

    def _settle_alive(self, entry: Entry, task: Task, now: Instant, *, silent: bool) -> None:
        if entry.life is None:
            self._begin(entry, task.pid, "inferred", now.wall, silent=silent, paused=task.paused)
        incarnation = entry.life
        assert incarnation is not None  # noqa: S101 (started above, or earlier)
        incarnation.proven = True
        if incarnation.paused is not task.paused:
            self._set_paused(entry, incarnation, "inferred", now.wall, paused=task.paused)

    def _settle_stopped(self, entry: Entry, task: Task, now: Instant, *, silent: bool) -> None:
        if entry.life is None:
            if entry.is_unstarted(task.pid):
                return  # apparently killed before its start: wait for the exit event
            if silent:
                entry.ended.append(task.pid)  # it exited before the bridge watched
                return
            self._begin(entry, task.pid, "inferred", now.wall)
        self._end(entry, "inferred", now.wall, Ending(task.exit_status, task.exited_at))

    def _begin(
        self, entry: Entry, pid: int, origin: Origin, at: int, *, silent: bool = False, paused: bool = False
    ) -> None:
        """Start an incarnation; a preexisting one is first published as ``present`` instead of ``started``."""
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
        incarnation = entry.life
        assert incarnation is not None  # noqa: S101 (only a started incarnation can exit)
        if ending.status is None and entry.witnessed is not None and entry.witnessed[0] == incarnation.pid:
            waited = entry.witnessed[1]
            ending = Ending(waited.exit_status, waited.exited_at)
        self._overtake(entry, incarnation, ending)
        entry.life, entry.oom, entry.witnessed = None, False, None
        entry.ended.append(incarnation.pid)
        if entry.doubted is None:
            self._questions.pop(entry.key, None)
        incarnation.paused = False
        if incarnation.silent:
            self._tell(entry, incarnation, "started", "inferred", at)
        self._tell(entry, incarnation, "exited", origin, at, ending)
        if entry.deleted:
            self._announce(entry, at)

    def _overtake(self, entry: Entry, life: Life, ending: Ending) -> None:
        """Discard a pending exit that is older than this exit: it belongs to an earlier incarnation."""
        pending = entry.held
        if pending is None or pending.pid == life.pid or pending.exited_at is None or ending.exited_at is None:
            return
        if pending.exited_at <= ending.exited_at:
            self.counts["late"] += 1
            entry.ended.append(pending.pid)
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
