"""Recover the state of an earlier process from the checkpoint, as far as it is valid under the current settings."""

from __future__ import annotations

import structlog
from msgspec import Struct

from bridge.core import memory
from bridge.core.events import Previous, Reason
from bridge.core.lives import Entry
from bridge.core.memory import Position, SourceName, Watched
from bridge.core.model import Instant
from bridge.core.ports import Recollection
from bridge.core.tracker import Tracker
from bridge.watch.settings import WatchSettings

SOURCES_KEPT = 8  # sources whose last position is kept: a node rarely has more than one
_MILLISECOND = 1_000_000
_log = structlog.get_logger(__name__)


class Past(Struct, kw_only=True):
    """State recovered from the checkpoint; ``header`` is None if it contains no containers.

    ``container_keys`` are the checkpoint's keys of containers, ``obsolete_keys`` the keys to remove.
    """

    reason: Reason = "start"
    watched: Watched | None = None
    positions: dict[SourceName, Position] = {}
    least_epoch: int = 0
    entries: list[Entry] = []
    keys: list[str] = []
    outdated: list[str] = []

    @property
    def proven_at(self) -> int | None:
        """Return the moment (wall clock) up to which no event can have been missed; None if unknown."""
        position = self.positions.get(self.watched.source) if self.watched is not None else None
        return None if position is None else position.proven_at

    @property
    def blind(self) -> set[str] | None:
        """Return the namespaces that are not synced; None if no namespace is synced."""
        namespaces = self.watched.blind if self.watched is not None else None
        return None if namespaces is None else set(namespaces)

    def previous(self, source: SourceName) -> Previous | None:
        """Return the last epoch and sequence of a source; None if unknown."""
        position = self.positions.get(source)
        return None if position is None else Previous(position.epoch, position.sequence)

    def tracker(self, settings: WatchSettings, now: Instant) -> Tracker:
        """Return a tracker with the recovered state, in the boot of the host in which that state was seen."""
        boot_id = self.watched.boot_id if self.watched is not None else ""
        tracker = Tracker(boot_id, settings.extras)
        tracker.restore(self.entries, self.blind, now)
        if self.watched is not None and self.watched.scope != settings.scope:
            _log.info("filters_changed", containers=len(self.entries))
            tracker.restrict(settings.namespaces, settings.rules)
        return tracker


def recall(recollection: Recollection) -> Past:
    """Decode a stored checkpoint; treat an unreadable one as lost, with snapshot reason ``outbox_reset``."""
    values = recollection.values
    try:
        restored = memory.decode(values)
    except ValueError as error:
        _log.critical("checkpoint_unreadable", error=str(error))
        return Past(reason="outbox_reset", outdated=list(values))
    positions = restored.positions
    newest = sorted(positions, key=lambda source: positions[source].epoch, reverse=True)
    return Past(
        reason="outbox_reset" if recollection.reset else "start",
        watched=restored.watched,
        positions=positions,
        least_epoch=max(
            [recollection.last_written // _MILLISECOND + 1, *(each.epoch + 1 for each in positions.values())]
        ),
        entries=restored.entries,
        keys=list(memory.keys_of_containers(values)),
        outdated=[memory.key_of_position(source) for source in newest[SOURCES_KEPT:]],
    )
