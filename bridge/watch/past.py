"""What an earlier process has left, and what of it still holds under today's settings."""

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

SOURCES_KEPT = 8  # of which the last position is remembered: a node rarely has more than one
_MILLISECOND = 1_000_000
_log = structlog.get_logger(__name__)


class Past(Struct, kw_only=True):
    """What is remembered; ``watched`` is None where no containers are.

    ``keys`` are those under which containers are remembered, ``outdated`` those to be removed.
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
        """Up to which moment (wall clock) nothing can have been missed."""
        position = self.positions.get(self.watched.source) if self.watched is not None else None
        return None if position is None else position.proven_at

    @property
    def blind(self) -> set[str] | None:
        """The namespaces of which nobody knows what lived there; None: all."""
        blind = self.watched.blind if self.watched is not None else None
        return None if blind is None else set(blind)

    def previous(self, source: SourceName) -> Previous | None:
        """Return the last epoch and sequence of a source."""
        known = self.positions.get(source)
        return None if known is None else Previous(known.epoch, known.sequence)

    def tracker(self, settings: WatchSettings, now: Instant) -> Tracker:
        """Return a tracker that knows what is remembered, as of the boot in which it was seen."""
        boot_id = self.watched.boot_id if self.watched is not None else ""
        tracker = Tracker(boot_id, settings.extras)
        tracker.restore(self.entries, self.blind, now)
        if self.watched is not None and self.watched.scope != settings.scope:
            _log.info("filters_changed", containers=len(self.entries))
            tracker.restrict(settings.namespaces, settings.rules)
        return tracker


def recall(recollection: Recollection) -> Past:
    """Read what was left; what cannot be understood is as good as lost, and is told as that."""
    values = recollection.values
    try:
        remembered = memory.decode(values)
    except ValueError as error:
        _log.critical("checkpoint_unreadable", error=str(error))
        return Past(reason="outbox_reset", outdated=list(values))
    positions = remembered.positions
    newest = sorted(positions, key=lambda source: positions[source].epoch, reverse=True)
    return Past(
        reason="outbox_reset" if recollection.reset else "start",
        watched=remembered.watched,
        positions=positions,
        least_epoch=max(
            [recollection.last_written // _MILLISECOND + 1, *(each.epoch + 1 for each in positions.values())]
        ),
        entries=remembered.entries,
        keys=list(memory.keys_of_containers(values)),
        outdated=[memory.key_of_position(source) for source in newest[SOURCES_KEPT:]],
    )
