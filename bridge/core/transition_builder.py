"""Base class of the tracker that builds transitions, snapshot records and additional events.

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


class TransitionBuilder(ContainerStore):
    """A container store that emits transitions when its states change.

    ``additional_events``: the optional event types to emit; may be replaced at any time. ``preexisting_count``: the
    number of incarnations that began before the bridge watched.
    """

    def __init__(self, additional_events: Collection[AdditionalEventType]) -> None:
        super().__init__()
        self.preexisting_count = 0
        self.additional_events = additional_events
        self._emitted: list[Transition] = []

    def snapshot_records(self, now: Instant) -> list[Transition]:
        """Return a ``present`` transition for every running container in scope; the caller must publish them."""
        for entry, incarnation in self.incarnations():
            if incarnation.preexisting:
                incarnation.preexisting = False
                self._changed.setdefault(entry.key, False)
        return self.running_containers(now)

    def running_containers(self, now: Instant) -> list[Transition]:
        """Return a ``present`` record for every running container in scope, without counting it as published."""
        return [
            self._make_transition(entry, incarnation, "present", "snapshot", now.wall)
            for entry, incarnation in self.incarnations()
            if incarnation.in_scope
        ]

    def reevaluate_scope(self, key: ContainerKey) -> None:
        """Reevaluate from the current metadata whether a container's incarnation is in scope.

        A container that enters the scope is first published in the next snapshot; one that leaves it is omitted there.
        """
        entry = self._get_or_create(key)
        if entry.incarnation is not None:
            matches = in_scope(entry.metadata)
            entry.incarnation.preexisting = matches and (
                entry.incarnation.preexisting or not entry.incarnation.in_scope
            )
            entry.incarnation.in_scope = matches
        self._evict_if_idle(entry)

    def emit_metadata_change(self, key: ContainerKey, now: Instant) -> list[Transition]:
        """Emit a change of a container's metadata that a listing has shown, as an additional event."""
        entry = self._get_or_create(key)
        self._emit_metadata_change(entry, now.wall)
        return self._finish_step(entry)

    # --- held exits ---

    def take_due_exits(self, now: Instant) -> list[DueExit]:
        """Return the held exits whose time has passed.

        Pass them to ``release_exits`` after all events received so far: an OOM event may be among these.
        """
        due: list[DueExit] = []
        for key in [key for key, deadline in self._held_exits.items() if deadline <= now.monotonic]:
            del self._held_exits[key]
            held = self._entries[key].held_exit
            assert held is not None  # noqa: S101 (each deadline belongs to a held exit)
            due.append(DueExit(key, held.transitions[0].incarnation))
        return due

    def release_exits(self, due: Collection[DueExit]) -> list[Transition]:
        """Emit due exits that are still held; without an OOM event, ``oom`` is False where that is known."""
        transitions: list[Transition] = []
        for key, incarnation in due:
            entry = self._entries.get(key)
            held = None if entry is None else entry.held_exit
            if entry is not None and held is not None and held.transitions[0].incarnation == incarnation:
                self._release_exit(entry, held.oom)
                transitions += self._finish_step(entry)
        return transitions

    def release_all_exits(self) -> list[Transition]:
        """Emit all held exits at once, before a snapshot or the end of the connection; ``oom`` is unknown."""
        transitions: list[Transition] = []
        for entry in [entry for entry in self._entries.values() if entry.held_exit is not None]:
            self._release_exit(entry)
            transitions += self._finish_step(entry)
        return transitions

    def _hold_exit(self, entry: ContainerState, held: HeldExit) -> None:
        """Hold an exit until its deadline."""
        self._release_exit(entry)
        entry.held_exit = held
        self._held_exits[entry.key] = held.deadline

    def _release_exit(self, entry: ContainerState, oom: bool | None = None) -> None:
        """Emit the held exit of a container, if any, and what waits behind it."""
        if (held := entry.held_exit) is None:
            return
        exited, *others = held.transitions
        if exited.exit_info is not None:
            exited = replace(exited, exit_info=exited.exit_info._replace(oom=oom))
        self._emitted += [exited, *others]
        entry.held_exit = None
        self._held_exits.pop(entry.key, None)

    # --- emitting ---

    def _emit_metadata_change(
        self, entry: ContainerState, at: int, event_type: AdditionalEventType | None = None
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
        if after is not None and (event_type == "created" or self.has_synced(entry.key.namespace)):
            self._emit_additional(entry, "created", _origin(event_type == "created"), at, after)

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
        pod_labels = self._pod_labels(metadata)
        transition = Transition(
            type_,
            origin,
            at,
            entry.key,
            metadata,
            pod_labels,
            incarnation.pid,
            incarnation.id,
            incarnation.paused,
        )
        if (held := entry.held_exit) is None:
            self._emitted.append(transition)
        elif type_ == "oom":  # of the run whose exit is held, and before that exit
            exited = held.transitions[0]
            self._emitted.append(
                replace(transition, pid=exited.pid, incarnation=exited.incarnation, paused=held.paused)
            )
        else:
            entry.held_exit = replace(held, transitions=(*held.transitions, transition))

    def _emit(
        self,
        entry: ContainerState,
        incarnation: Incarnation,
        type_: TransitionType,
        origin: Origin,
        at: int,
        exit_info: ExitInfo | None = None,
    ) -> None:
        self._release_exit(entry)
        if incarnation.in_scope:
            self._emitted.append(self._make_transition(entry, incarnation, type_, origin, at, exit_info))

    def _make_transition(
        self,
        entry: ContainerState,
        incarnation: Incarnation,
        type_: TransitionType | SnapshotRecordType,
        origin: Origin,
        at: int,
        exit_info: ExitInfo | None = None,
    ) -> Transition:
        metadata = entry.metadata
        return Transition(
            type_,
            origin,
            at,
            entry.key,
            metadata,
            self._pod_labels(metadata),
            incarnation.pid,
            incarnation.id,
            incarnation.paused,
            exit_info,
        )

    def _finish_step(self, entry: ContainerState) -> list[Transition]:
        """Finish a step: note the change, and return the emitted transitions."""
        self._evict_if_idle(entry)
        return self._take_transitions()

    def _take_transitions(self) -> list[Transition]:
        emitted, self._emitted = self._emitted, []
        return emitted


def in_scope(metadata: Metadata | None) -> bool:
    """Return whether a container is in scope; true if its metadata is unknown."""
    return metadata is None or metadata.in_scope


def _origin(live: bool) -> Origin:
    return "live" if live else "inferred"
