"""Recover the state of an earlier process from the checkpoint, and change from one source to another.

A checkpoint continues if containerd and host are the same. Otherwise its source ends, with the exits of its containers,
and another one begins; the same happens if another containerd responds while the bridge runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog
from msgspec import Struct

from bridge.core import checkpoint
from bridge.core.checkpoint import CheckpointHeader, SourceId, StoredPosition
from bridge.core.container_metadata import KUBERNETES_NAMESPACE
from bridge.core.container_state import ContainerState, Transition
from bridge.core.containerd_model import Engine, Instant, RecordedExit
from bridge.core.exit_counts import Exits
from bridge.core.ports import StoredCheckpoint
from bridge.core.record_encoder import Gap, SnapshotCoverage
from bridge.core.records import SnapshotReason, SourcePosition
from bridge.core.time import MILLISECOND
from bridge.core.tracker import Tracker
from bridge.watch.journal import Journal
from bridge.watch.state import WatchState

MAX_SOURCES = 8  # sources whose last position is kept: a node rarely has more than one
_log = structlog.get_logger(__name__)


async def open_journal(state: WatchState, engine: Engine) -> Journal:
    """Continue where an earlier process stopped, as far as containerd and boot are the same."""
    recovered = recover(state.outbox.load_checkpoint())
    state.snapshot_reason, header, boot_id = recovered.reason, recovered.header, state.boot_id
    state.previous_positions = {
        source: SourcePosition(position.epoch, position.sequence) for source, position in recovered.positions.items()
    }
    epoch, obsolete_keys = _next_epoch(state, recovered.min_epoch), recovered.obsolete_keys
    state.counters.exits.restore(recovered.exits)
    if header is None:
        return _begin_source(state, engine, epoch, obsolete_keys)
    if header.host != state.settings.host and header.boot_id != boot_id:
        _log.warning(
            "checkpoint_of_other_host",
            host=header.host,
            engine=header.engine.id,
            hint=f"if this machine was renamed, remove the source {header.host} from consumers' states",
        )
        state.counters.exits.restore({})
        return _begin_source(state, engine, epoch, [*obsolete_keys, *recovered.container_keys, checkpoint.EXITS_KEY])
    position = recovered.positions.get(header.source)
    state.watermark_at = None if position is None else position.watermark_at
    tracker = _restore_tracker(state, header, recovered.entries)
    if (header.host, header.engine.id) != (state.settings.host, engine.id or header.engine.id):
        # A new host name alone ends no container.
        _log.warning("checkpoint_source_mismatch", host=header.host, engine=header.engine.id)
        state.replace_tracker(tracker)
        previous = Journal(state, header, epoch, obsolete_keys)
        await _end_source(state, previous, recovered.reason, containers_ended=engine.id != header.engine.id)
        return _begin_source(state, engine, epoch + 1)
    if header.boot_id == boot_id:
        state.replace_tracker(tracker)
    else:
        _log.info("host_rebooted", containers=sum(1 for _ in tracker.incarnations()))
        states = [
            ContainerState(each.key, each.metadata, published_metadata=each.published_metadata)
            for each in tracker.entries()
            if each.metadata is not None and not each.deleted
        ]
        known = [
            each.key
            for each in tracker.entries()
            if each.key.namespace == KUBERNETES_NAMESPACE
            and (each.incarnation or each.state.exited or each.state.evidence)
        ]
        state.pending += await _recorded_exits(state, tracker) + tracker.exit_all(state.clock.now())
        # All containers that run now are new. The label rules may have changed the metadata since it was persisted.
        state.tracker.restore(states, set(), state.clock.now(), persisted=False)
        state.tracker.exits_synced = tracker.exits_synced
        for key in known:  # CRI still remembers these runs, of which there are no more events
            state.tracker.apply_recorded_exit(RecordedExit(key), Instant(0, 0))
        kept_keys = {checkpoint.metadata_key(each.key) for each in states}
        obsolete_keys = obsolete_keys + [key for key in recovered.container_keys if key not in kept_keys]
    return _begin_source(state, engine, epoch, obsolete_keys, header)


async def _recorded_exits(state: WatchState, tracker: Tracker) -> list[Transition]:
    """Return the exits from before a reboot that CRI remembers; it has made up those that the reboot has caused."""
    running = {entry.key for entry, _ in tracker.incarnations()}
    recorded = await state.cri.recorded_exits([key for key in await state.cri.exited_containers() if key in running])
    return [each for exit_ in recorded.values() for each in tracker.apply_recorded_exit(exit_, state.clock.now())]


def _restore_tracker(state: WatchState, header: CheckpointHeader, entries: list[ContainerState]) -> Tracker:
    """Return a tracker with the recovered state, in the boot of the host in which that state was seen."""
    tracker, settings = Tracker(header.boot_id, state.settings.additional_events), state.settings
    unsynced = None if header.unsynced_namespaces is None else set(header.unsynced_namespaces)
    tracker.restore(entries, unsynced, state.clock.now())
    tracker.exits_synced = header.exits_synced
    if header.filter_fingerprint != settings.filter_fingerprint:
        _log.info("filters_changed", containers=len(entries))
        if header.selection_fingerprint != settings.selection_fingerprint:
            tracker.apply_filters(settings.namespace_filter)
        tracker.apply_label_rules(settings.label_rules)
    return tracker


async def replace_engine(state: WatchState, journal: Journal, engine: Engine) -> Journal:
    """End the current source, because another containerd has replaced the old one; return the next one's journal."""
    _log.warning("containerd_replaced")
    now = state.clock.now()
    for item in state.event_queue.abandon():
        if item.metadata is not None:
            state.tracker.update_metadata(item.metadata)
        state.pending += state.tracker.process_event(item.event, now)
    await _end_source(state, journal, "reconnect", containers_ended=True)
    return _begin_source(state, engine, _next_epoch(state, journal.encoder.epoch + 1))


async def _end_source(state: WatchState, journal: Journal, reason: SnapshotReason, *, containers_ended: bool) -> None:
    """Publish that none of a source's containers is running, with their exits if they have ended."""
    now = state.clock.now()
    state.pending += state.tracker.release_all_exits()
    exits = state.tracker.exit_all(now)
    gap = Gap(reason, state.watermark_at, now.wall)
    journal.publish_snapshot(gap, SnapshotCoverage([], [], False), exits if containers_ended else [])
    await journal.write()
    state.previous_positions[journal.header.source] = journal.encoder.position
    state.replace_tracker(Tracker(state.boot_id, state.settings.additional_events))
    state.watermark_at, state.snapshot_reason = None, "start"


def _begin_source(
    state: WatchState,
    engine: Engine,
    epoch: int,
    obsolete_keys: Sequence[str] = (),
    continued: CheckpointHeader | None = None,
) -> Journal:
    _log.info("containerd_connected", engine=engine.id, version=engine.version, api=engine.api, epoch=epoch)
    filters = state.settings if continued is None else continued
    header = CheckpointHeader(
        state.settings.host,
        engine,
        state.boot_id,
        filters.filter_fingerprint,
        None,
        selection_fingerprint=filters.selection_fingerprint,
    )
    return Journal(state, header, epoch, obsolete_keys)


def _next_epoch(state: WatchState, minimum: int) -> int:
    """Return an epoch greater than any earlier one, even if the clock was set back."""
    return max(minimum, state.clock.now().wall // MILLISECOND)


class RecoveredState(Struct, kw_only=True):
    """State recovered from the checkpoint; ``header`` is None if it contains no containers.

    ``container_keys`` are the checkpoint's keys of containers, ``obsolete_keys`` the keys to remove.
    """

    reason: SnapshotReason = "start"
    header: CheckpointHeader | None = None
    positions: dict[SourceId, StoredPosition] = {}
    min_epoch: int = 0
    entries: list[ContainerState] = []
    exits: Exits = {}
    container_keys: list[str] = []
    obsolete_keys: list[str] = []


def recover(stored: StoredCheckpoint) -> RecoveredState:
    """Decode a stored checkpoint; treat an unreadable one as lost, with snapshot reason ``outbox_reset``."""
    values = stored.values
    try:
        restored = checkpoint.decode(values)
    except ValueError as error:
        _log.critical("checkpoint_unreadable", error=str(error))
        return RecoveredState(reason="outbox_reset", obsolete_keys=list(values))
    positions = restored.positions
    if stored.copied and restored.header is not None:
        # Repeating what the original published since, or ending its containers, would be wrong for consumers.
        host, engine = restored.header.source.host, restored.header.engine.id
        hint = "nothing now; the next time, delete state_dir instead of copying or restoring it"
        _log.warning("state_dir_copied", host=host, engine=engine, hint=hint)
        return RecoveredState(
            reason="outbox_reset",
            min_epoch=_min_epoch(stored, positions),
            obsolete_keys=list(values),
        )
    newest = sorted(positions, key=lambda source: positions[source].epoch, reverse=True)
    return RecoveredState(
        reason="outbox_reset" if stored.reset else "start",
        header=restored.header,
        positions=positions,
        min_epoch=_min_epoch(stored, positions),
        entries=restored.entries,
        exits=restored.exits,
        container_keys=list(checkpoint.container_keys(values)),
        obsolete_keys=[
            *(checkpoint.position_key(source) for source in newest[MAX_SOURCES:]),
            *restored.unknown_keys,
        ],
    )


def _min_epoch(stored: StoredCheckpoint, positions: Mapping[SourceId, StoredPosition]) -> int:
    """Return the least epoch that is greater than all known ones."""
    return max([stored.last_written // MILLISECOND + 1, *(each.epoch + 1 for each in positions.values())])
