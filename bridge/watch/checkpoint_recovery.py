"""Recover the state of an earlier process from the checkpoint, as far as it is valid under the current settings."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from msgspec import Struct

from bridge.core import checkpoint
from bridge.core.checkpoint import CheckpointHeader, SourceId, StoredPosition
from bridge.core.container_state import ContainerState
from bridge.core.containerd_model import Instant
from bridge.core.ports import StoredCheckpoint
from bridge.core.records import SnapshotReason, SourcePosition
from bridge.core.time import MILLISECOND
from bridge.core.tracker import Tracker
from bridge.watch.settings import WatchSettings

MAX_SOURCES = 8  # sources whose last position is kept: a node rarely has more than one
_log = structlog.get_logger(__name__)


class RecoveredState(Struct, kw_only=True):
    """State recovered from the checkpoint; ``header`` is None if it contains no containers.

    ``container_keys`` are the checkpoint's keys of containers, ``obsolete_keys`` the keys to remove.
    """

    reason: SnapshotReason = "start"
    header: CheckpointHeader | None = None
    positions: dict[SourceId, StoredPosition] = {}
    min_epoch: int = 0
    entries: list[ContainerState] = []
    container_keys: list[str] = []
    obsolete_keys: list[str] = []

    @property
    def watermark_at(self) -> int | None:
        """Return the moment (wall clock) up to which no event can have been missed; None if unknown."""
        position = self.positions.get(self.header.source) if self.header is not None else None
        return None if position is None else position.watermark_at

    @property
    def unsynced_namespaces(self) -> set[str] | None:
        """Return the namespaces that are not synced; None if no namespace is synced."""
        namespaces = self.header.unsynced_namespaces if self.header is not None else None
        return None if namespaces is None else set(namespaces)

    def previous_position(self, source: SourceId) -> SourcePosition | None:
        """Return the last epoch and sequence of a source; None if unknown."""
        position = self.positions.get(source)
        return None if position is None else SourcePosition(position.epoch, position.sequence)

    def build_tracker(self, settings: WatchSettings, now: Instant) -> Tracker:
        """Return a tracker with the recovered state, in the boot of the host in which that state was seen."""
        boot_id = self.header.boot_id if self.header is not None else ""
        tracker = Tracker(boot_id, settings.additional_events)
        tracker.restore(self.entries, self.unsynced_namespaces, now)
        if self.header is not None and self.header.filter_fingerprint != settings.filter_fingerprint:
            _log.info("filters_changed", containers=len(self.entries))
            tracker.apply_filters(settings.namespace_filter, settings.label_rules)
        return tracker


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
        _log.warning("state_dir_copied", host=host, engine=engine, hint="do not restore or copy state_dir; delete it")
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
        container_keys=list(checkpoint.container_keys(values)),
        obsolete_keys=[checkpoint.position_key(source) for source in newest[MAX_SOURCES:]],
    )


def _min_epoch(stored: StoredCheckpoint, positions: Mapping[SourceId, StoredPosition]) -> int:
    """Return the least epoch that is greater than all known ones."""
    return max([stored.last_written // MILLISECOND + 1, *(each.epoch + 1 for each in positions.values())])
