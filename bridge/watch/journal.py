"""Journal: transitions are numbered and encoded immediately, and persisted in that order (event sourcing).

Invariant: records are persisted together with the state after them, so that checkpoint and published records agree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from msgspec.structs import replace

from bridge.core import checkpoint
from bridge.core.checkpoint import CheckpointHeader, StoredPosition
from bridge.core.container_state import Transition
from bridge.core.containerd_model import Engine
from bridge.core.reconcile import Listing, has_unconfirmed
from bridge.core.record_encoder import Gap, RecordEncoder, SnapshotCoverage
from bridge.core.records import Record, SourcePosition, Watermark
from bridge.core.time import SECOND
from bridge.telemetry.counters import SnapshotSummary
from bridge.watch.settings import WatchSettings
from bridge.watch.state import WatchState

_WATERMARK_INTERVAL_NS = 60 * SECOND  # maximum time between two persisted watermarks, even without records


class Journal:
    """Write the records of one source to the outbox.

    Args:
        state: Its tracker and its watermark are persisted with the records.
        header: The header of the checkpoint; ``unsynced_namespaces`` and ``exits_synced`` are the tracker's.
        epoch: The epoch of the first record.
        obsolete_keys: Keys to remove from the checkpoint.

    ``watermark``: the moment before which all events are persisted; None until the first write in this epoch.
    """

    def __init__(
        self, state: WatchState, header: CheckpointHeader, epoch: int, obsolete_keys: Iterable[str] = ()
    ) -> None:
        self.header = header
        self.watermark: Watermark | None = None
        self._state = state
        self.encoder = self._create_encoder(epoch, state.previous_positions.get(header.source))
        self._buffer: list[Record] = []
        self._obsolete_keys: dict[str, bytes | None] = dict.fromkeys(obsolete_keys)
        self._saved_header = b""  # as last persisted
        self._saved_watermark_at = state.watermark_at
        self._preexisting_count = state.tracker.preexisting_count  # of the last snapshot

    def _create_encoder(self, epoch: int, previous: SourcePosition | None) -> RecordEncoder:
        attributes = self._state.settings.attributes
        return RecordEncoder(self.header.host, self.header.engine, epoch, previous=previous, attributes=attributes)

    def set_engine(self, engine: Engine) -> None:
        """Update the engine after a restart of the same source; its version and pid may have changed."""
        self.encoder.set_engine(engine)
        self.header = replace(self.header, engine=engine)

    def expect_filters(self, settings: WatchSettings) -> None:
        """Note that the filters have changed, but are not applied yet: they count as changed until ``apply_filters``.

        Metadata that is read from now on is filtered by them, while the scope of other containers is the old one.
        """
        known = self.header.selection_fingerprint
        selection = known if settings.selection_fingerprint == known else ""
        self.header = replace(self.header, filter_fingerprint="", selection_fingerprint=selection)

    def apply_filters(self, settings: WatchSettings, failed: Collection[str]) -> None:
        """Apply the current filters, after held exits are published with the old ones.

        ``settings`` are those under which containerd was listed. If they have changed since, or if namespaces in
        ``failed`` could not be listed, the filters count as changed again at the next listing.
        """
        selection, known = settings.selection_fingerprint, self.header.selection_fingerprint
        is_complete = not failed and not self._state.requests.is_pending("filters_changed")
        self.release_held_exits()
        self._state.apply_filters(selection_changed=selection != known)
        self.header = replace(
            self.header,
            filter_fingerprint=settings.filter_fingerprint if is_complete else "",
            selection_fingerprint=selection if is_complete or selection == known else "",
        )

    def begin_epoch(self, epoch: int) -> None:
        """Continue in another epoch, which must begin with a snapshot; the position before it counts as unknown."""
        self.encoder = self._create_encoder(epoch, None)

    def publish(self, transitions: list[Transition]) -> None:
        """Number and encode transitions, to be persisted by ``write``; before the first snapshot, collect them."""
        if not self._state.synced:
            self._state.pending += transitions
        elif transitions:
            self._append(transitions)

    def release_held_exits(self) -> None:
        """Publish the held exits: nothing may overtake them, and nothing that follows may change them."""
        self.publish(self._state.tracker.release_all_exits())

    def publish_pending(self) -> None:
        """Publish what was collected for a snapshot without one, unless the epoch must begin with a snapshot."""
        if self.encoder.sequence:
            self._append(self._state.pending)
            self._state.pending = []

    def complete_listing(self, gap: Gap, listing: Listing, repairs: list[Transition], *, forced: bool) -> int | None:
        """Publish a snapshot of what a listing has confirmed, if anything has changed.

        Args:
            gap: The reason of the snapshot, and the interval in which events may have been missed.
            listing: The listing; its failed namespaces stay as they are.
            repairs: The missed transitions.
            forced: Publish a snapshot in any case.

        Returns:
            The number of containers in the snapshot; None if none was published.
        """
        tracker = self._state.tracker
        tracker.mark_synced(set(listing.failed))
        self._state.excluded_namespaces = [] if listing.namespaces else listing.excluded
        if not (forced or repairs or tracker.preexisting_count != self._preexisting_count):
            return None
        return self.publish_snapshot(
            gap, SnapshotCoverage(listing.namespaces, listing.failed, has_unconfirmed(tracker)), repairs
        )

    def publish_snapshot(self, gap: Gap, coverage: SnapshotCoverage, repairs: list[Transition]) -> int:
        """Number and encode a snapshot with all pending transitions; return the number of its containers."""
        state, tracker, now = self._state, self._state.tracker, self._state.clock.now()
        self.release_held_exits()  # of containers that the snapshot does not list
        transitions, state.pending = state.pending + repairs, []
        snapshot_records = tracker.snapshot_records(now)
        self._buffer += self.encoder.encode_snapshot(gap, coverage, transitions, snapshot_records, now.wall)
        counters = state.counters
        counters.count_records(transitions)
        counters.count_records(snapshot_records)
        counters.count_snapshot(
            SnapshotSummary(self.encoder.snapshot_id, now.wall, gap, coverage, len(snapshot_records), len(transitions))
        )
        self._preexisting_count = tracker.preexisting_count
        return len(snapshot_records)

    async def write(self, *, force: bool = False) -> None:
        """Persist the encoded records; when the call returns, the outbox has them.

        The state is persisted as well unless transitions are pending, because it contains them. ``force``: persist also
        what could wait, which is changes of the state without records.
        """
        watermark_at, save_checkpoint = self._state.watermark_at, not self._state.pending
        if self._buffer or (save_checkpoint and (force or self._is_checkpoint_due())):
            records, self._buffer = self._buffer, []
            changes = self._checkpoint_changes() if save_checkpoint else self._position_entry(self._saved_watermark_at)
            exit_counts = self._state.counters.exits
            if (exits := exit_counts.unpersisted()) is not None and self._state.settings.keeps_checkpoint:
                changes[checkpoint.EXITS_KEY] = checkpoint.encode_exits(exits)
            await self._state.outbox.append(records, changes)
            if exits is not None:
                exit_counts.expose(exits)
        if save_checkpoint and watermark_at is not None and self.encoder.sequence:
            self.watermark = Watermark(self.encoder.epoch, watermark_at)

    def _append(self, transitions: list[Transition]) -> None:
        self._buffer += map(self.encoder.encode_transition, transitions)
        self._state.counters.count_records(transitions)

    def _is_checkpoint_due(self) -> bool:
        """Return whether the new watermark and the state changes before it justify a transaction without records."""
        at, before = self._state.watermark_at, self._saved_watermark_at
        if at is None or at == before:
            return False
        return before is None or self._state.tracker.changed or abs(at - before) >= _WATERMARK_INTERVAL_NS

    def _checkpoint_changes(self) -> dict[str, bytes | None]:
        tracker, watermark_at = self._state.tracker, self._state.watermark_at
        if not self._state.settings.keeps_checkpoint:
            deque(tracker.changes(), maxlen=0)  # forgotten, not encoded: no later process could read them
            self._saved_watermark_at = watermark_at
            return {}
        changes, self._obsolete_keys = self._obsolete_keys, {}
        changes.update(checkpoint.encode_changes(tracker.changes()))
        unsynced = tracker.unsynced_namespaces
        header = replace(
            self.header,
            unsynced_namespaces=None if unsynced is None else sorted(unsynced),
            exits_synced=tracker.exits_synced,
        )
        encoded = checkpoint.encode_header(header)
        if encoded != self._saved_header:
            changes[checkpoint.HEADER_KEY] = self._saved_header = encoded
        self._saved_watermark_at = watermark_at
        changes.update(self._position_entry(watermark_at))
        return changes

    def _position_entry(self, watermark_at: int | None) -> dict[str, bytes | None]:
        if (last := self.encoder.position) is None:
            return {}
        position = StoredPosition(last.epoch, last.sequence, watermark_at)
        return dict([checkpoint.encode_position(self.header.source, position)])
