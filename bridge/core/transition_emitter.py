"""Transition emitter: effects of the state machine as transitions, snapshot records and additional events.

Invariants:
- Whether an incarnation is in scope is decided when it starts; only changed filters reevaluate the decision.
- Additional events (``created``, ``deleted``, ``oom``, ``renamed``) do not affect incarnations: they name only
  incarnations that consumers know, and all other records are the same with and without them.
- An exit can be held until its OOM event must have arrived. Nothing of the same container overtakes it: additional
  events wait behind it, and any other transition releases it first.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from bridge.core.container_metadata import incarnation_id
from bridge.core.container_state import (
    NO_INCARNATION,
    ContainerState,
    DueExit,
    ExitInfo,
    HeldExit,
    Incarnation,
    Transition,
)
from bridge.core.container_store import ContainerStore
from bridge.core.containerd_model import ContainerKey, Instant, Metadata
from bridge.core.records import AdditionalEventType, Origin, SnapshotRecordType, TransitionType
from bridge.core.task_machine import Exited, PauseChanged, ReleaseExit, Started
from bridge.core.time import MILLISECOND, SECOND

# The shim publishes the OOM event and the exit from different threads, so the OOM event may come second. An OOM kill of
# the initial process looks like any SIGKILL, and few consumers need to know of one at once; other exits are held only
# because an OOM kill of a child process may have caused them. The grace times are ten times the longest delays seen.
OOM_GRACE_NS = 30 * MILLISECOND
KILLED_OOM_GRACE_NS = 250 * MILLISECOND
RELEASE_SLACK_NS = 20 * MILLISECOND  # a held exit waits this long for other events, to be persisted with them
SIGKILL_STATUS = 128 + 9
# containerd before 2.2 starts to watch for OOM kills only after it has started the container.
OOM_BLIND_NS = SECOND
# Runtimes whose shim, as far as known, publishes each OOM kill in the container's cgroup.
OOM_REPORTING_RUNTIMES = frozenset({"io.containerd.runc.v2", "io.containerd.runc.v1"})


class TransitionEmitter:
    """Emit transitions for the containers of a store.

    Args:
        store: Provides the labels of pods.
        boot_id: The boot id of the host, part of each incarnation id.
        additional_events: The optional event types to emit; may be replaced at any time.

    ``preexisting_count``: the number of incarnations that began before the bridge watched. ``connected_at`` (wall
    clock): the events of runs that began earlier may have been missed.
    """

    def __init__(self, store: ContainerStore, boot_id: str, additional_events: Collection[AdditionalEventType]) -> None:
        self.preexisting_count = 0
        self.connected_at = 0
        self.additional_events = additional_events
        self._store = store
        self._boot_id = boot_id
        self._held_exits: dict[ContainerKey, int] = {}  # deadlines (monotonic)
        self._emitted: list[Transition] = []

    def take(self) -> list[Transition]:
        """Return the transitions emitted since the last call, in order."""
        emitted, self._emitted = self._emitted, []
        return emitted

    # --- effects ---

    def started(self, entry: ContainerState, effect: Started, _now: Instant) -> None:
        """Emit a start, unless the run is preexisting."""
        self.release_exit(entry)
        pid, preexisting, matches = effect.pid, effect.preexisting, in_scope(entry.metadata)
        if pid:
            entry.pid_cycle += pid <= entry.last_pid
            entry.last_pid = pid
        id_ = incarnation_id(self._boot_id, pid, entry.pid_cycle)
        incarnation = entry.incarnation = Incarnation(pid, id_, False, matches, preexisting)
        if preexisting:
            self.preexisting_count += matches
        elif matches:
            started_at = effect.at if effect.origin == "live" else effect.started_at
            started = self._make_transition(
                entry, incarnation, "started", effect.origin, effect.at, started_at=started_at
            )
            self._emitted.append(started)

    def pause_changed(self, entry: ContainerState, effect: PauseChanged, _now: Instant) -> None:
        """Emit a pause or resume, unless the run is preexisting."""
        incarnation = _incarnation_of(entry)
        incarnation.paused = effect.paused
        if not incarnation.preexisting:
            self._emit(entry, incarnation, "paused" if effect.paused else "unpaused", effect.origin, effect.at)

    def exited(self, entry: ContainerState, effect: Exited, now: Instant) -> None:
        """Emit or hold an exit; the start of a preexisting run, unless consumers know it, comes first."""
        incarnation, entry.incarnation = _incarnation_of(entry), None
        was_paused, incarnation.paused = incarnation.paused and not incarnation.preexisting, False
        if incarnation.preexisting and not incarnation.was_published:
            self._emit(entry, incarnation, "started", "inferred", effect.at)
        if incarnation.in_scope:
            self.release_exit(entry)
            exited = self._make_transition(entry, incarnation, "exited", effect.origin, effect.at, effect.exit_info)
            if not effect.hold or effect.exit_info.oom:
                self._emitted.append(exited)
            else:
                grace = KILLED_OOM_GRACE_NS if effect.exit_info.status == SIGKILL_STATUS else OOM_GRACE_NS
                oom = False if _reports_oom(entry, effect, self.connected_at) else None
                self._hold_exit(entry, HeldExit((exited,), now.monotonic + grace, oom, was_paused))
        if entry.deleted:
            self.metadata_changed(entry, effect.at)

    def exit_released(self, entry: ContainerState, _effect: ReleaseExit, _now: Instant) -> None:
        """Emit the held exit, if any."""
        self.release_exit(entry)

    def _hold_exit(self, entry: ContainerState, held: HeldExit) -> None:
        entry.held_exit = held
        self._held_exits[entry.key] = held.deadline

    # --- snapshot records and scope ---

    def present(self, now: Instant) -> list[Transition]:
        """Return a ``present`` transition for every running container in scope."""
        return [
            self._make_transition(entry, incarnation, "present", "snapshot", now.wall)
            for entry, incarnation in self._store.incarnations()
            if incarnation.in_scope
        ]

    # --- held exits ---

    def next_release(self) -> int | None:
        """Return when (monotonic) the next held exit is to be released; None if none is held."""
        return min(self._held_exits.values()) + RELEASE_SLACK_NS if self._held_exits else None

    def take_due_exits(self, now: Instant) -> list[DueExit]:
        """Return the held exits whose time has passed, each once."""
        due: list[DueExit] = []
        for key in [key for key, deadline in self._held_exits.items() if deadline <= now.monotonic]:
            del self._held_exits[key]
            entry = self._store.find(key)
            assert entry is not None and entry.held_exit is not None  # noqa: S101, PT018 (it has a deadline)
            exited = entry.held_exit.transitions[0]
            killed = exited.exit_info is not None and exited.exit_info.status == SIGKILL_STATUS
            due.append(DueExit(key, exited.incarnation, killed))
        return due

    def release_due_exit(self, due: DueExit) -> ContainerState | None:
        """Emit a due exit if it is still held, with ``oom`` as far as known; return the state of its container."""
        entry = self._store.find(due.key)
        held = None if entry is None else entry.held_exit
        if entry is None or held is None or held.transitions[0].incarnation != due.incarnation:
            return None
        self.release_exit(entry, due.oom or held.oom)
        return entry

    def release_exit(self, entry: ContainerState, oom: bool | None = None) -> None:
        """Emit the held exit of a container, if any, and what waits behind it."""
        if (held := entry.held_exit) is None:
            return
        exited, *others = held.transitions
        if oom is not None and exited.exit_info is not None:
            exited = replace(exited, exit_info=replace(exited.exit_info, oom=oom))
        self._emitted += [exited, *others]
        entry.held_exit = None
        self._held_exits.pop(entry.key, None)

    def restore(self, entry: ContainerState, now: Instant) -> None:
        """Take over a restored state: a held exit is due at once."""
        if entry.held_exit is not None:
            self._held_exits[entry.key] = now.monotonic

    def forget(self, key: ContainerKey) -> None:
        """Forget a container that was removed from the store."""
        self._held_exits.pop(key, None)

    # --- additional events ---

    def metadata_changed(
        self,
        entry: ContainerState,
        at: int,
        event_type: AdditionalEventType | None = None,
    ) -> None:
        """Emit the difference between published and current metadata; ``event_type``: type of the live event, if any.

        A deletion without a live event is emitted only after the exit that must have preceded it.
        """
        before, after = entry.published_metadata, None if entry.deleted else entry.metadata
        if after is None and entry.incarnation is not None and event_type is None:
            return
        entry.published_metadata = after
        if before is not None and after is not None and before.created_at in (after.created_at, None):
            if before.name != after.name:
                self._emit_additional(entry, "renamed", _origin(event_type == "renamed"), at, after)
            return
        if before is not None:
            self._emit_additional(entry, "deleted", _origin(event_type == "deleted"), at, before)
        if after is not None and (event_type == "created" or self._store.has_synced(entry.key.namespace)):
            self._emit_additional(entry, "created", _origin(event_type == "created"), at, after)

    def oom(self, entry: ContainerState, at: int) -> None:
        """Emit an OOM event, and the held exit whose cause it is."""
        self._emit_additional(entry, "oom", "live", at, entry.metadata)
        self.release_exit(entry, oom=True)

    def _emit_additional(
        self, entry: ContainerState, type_: AdditionalEventType, origin: Origin, at: int, metadata: Metadata | None
    ) -> None:
        """Emit an additional event if it is enabled and in scope; name the incarnation only if it is published."""
        if type_ not in self.additional_events:
            return
        incarnation = entry.incarnation
        if not (in_scope(metadata) if incarnation is None else incarnation.in_scope):
            return
        if incarnation is None or incarnation.preexisting:
            incarnation = NO_INCARNATION
        pid, id_, paused = incarnation.pid, incarnation.id, incarnation.paused
        held = entry.held_exit
        if held is not None and type_ == "oom":  # of the run whose exit is held, and before that exit
            exited = held.transitions[0]
            pid, id_, paused = exited.pid, exited.incarnation, held.paused
        pod_labels = self._store.pod_labels(metadata)
        transition = Transition(type_, origin, at, entry.key, metadata, pod_labels, pid, id_, paused)
        if held is None or type_ == "oom":
            self._emitted.append(transition)
        else:
            entry.held_exit = replace(held, transitions=(*held.transitions, transition))

    # --- emitting ---

    def _emit(
        self, entry: ContainerState, incarnation: Incarnation, type_: TransitionType, origin: Origin, at: int
    ) -> None:
        self.release_exit(entry)
        if incarnation.in_scope:
            self._emitted.append(self._make_transition(entry, incarnation, type_, origin, at))

    def _make_transition(
        self,
        entry: ContainerState,
        incarnation: Incarnation,
        type_: TransitionType | SnapshotRecordType,
        origin: Origin,
        at: int,
        exit_info: ExitInfo | None = None,
        started_at: int | None = None,
    ) -> Transition:
        metadata = entry.metadata
        pod_labels = self._store.pod_labels(metadata) if metadata is not None and metadata.pod is not None else None
        pid, id_, paused = incarnation.pid, incarnation.id, incarnation.paused
        return Transition(type_, origin, at, entry.key, metadata, pod_labels, pid, id_, paused, exit_info, started_at)


def in_scope(metadata: Metadata | None) -> bool:
    """Return whether a container is in scope; true if its metadata is unknown."""
    return metadata is None or metadata.in_scope


def _incarnation_of(entry: ContainerState) -> Incarnation:
    assert entry.incarnation is not None  # noqa: S101 (the machine has emitted Started before)
    return entry.incarnation


def _reports_oom(entry: ContainerState, effect: Exited, connected_at: int) -> bool:
    """Return whether containerd would have sent an OOM event if an OOM kill had led to this exit.

    SIGKILL proves nothing: there is no OOM event if the whole machine is out of memory on cgroup v1, or if the shim is
    too late to read the counters of a removed cgroup.
    """
    if effect.origin != "live" or entry.metadata is None or entry.metadata.runtime not in OOM_REPORTING_RUNTIMES:
        return False
    exit_info = effect.exit_info
    if not effect.watched_from or effect.watched_from < connected_at:
        return False
    if exit_info.exited_at is None or exit_info.status == SIGKILL_STATUS:
        return False
    return exit_info.exited_at - effect.watched_from >= OOM_BLIND_NS


def _origin(live: bool) -> Origin:
    return "live" if live else "inferred"
