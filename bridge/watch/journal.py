"""Journal: transitions are numbered and encoded immediately, and persisted in that order (event sourcing).

Invariant: records are persisted together with the state after them, so that checkpoint and published records agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from bridge.core import checkpoint
from bridge.core.checkpoint import CheckpointHeader, StoredPosition
from bridge.core.container_state import Transition
from bridge.core.containerd_model import Engine
from bridge.core.ports import Outbox
from bridge.core.record_encoder import Gap, RecordEncoder, SnapshotCoverage
from bridge.core.records import Record, Watermark
from bridge.core.tracker import Tracker
from bridge.telemetry.counters import Counters, SnapshotSummary

_WATERMARK_INTERVAL_NS = 60_000_000_000  # maximum time between two persisted watermarks, even without records


class Journal:
    """Write the records of one source to the outbox.

    Args:
        encoder: Numbers and encodes the records.
        outbox: The destination.
        tracker: Its state is persisted with the records.
        counters: Count the records.
        header: The header of the checkpoint; its ``unsynced_namespaces`` are replaced by the tracker's.
        watermark_at: The moment (wall clock) up to which no event can have been missed.
        obsolete_keys: Keys to remove from the checkpoint.

    ``watermark``: the moment before which all events are persisted; None until the first write in this epoch.
    """

    def __init__(
        self,
        encoder: RecordEncoder,
        outbox: Outbox,
        tracker: Tracker,
        counters: Counters,
        header: CheckpointHeader,
        *,
        watermark_at: int | None = None,
        obsolete_keys: Iterable[str] = (),
    ) -> None:
        self.encoder = encoder
        self.header = header
        self._outbox = outbox
        self._tracker = tracker
        self._counters = counters
        self._buffer: list[Record] = []
        self._obsolete_keys: dict[str, bytes | None] = dict.fromkeys(obsolete_keys)
        self.watermark: Watermark | None = None
        self._saved_header = b""  # as last persisted
        self._watermark_at = self._saved_watermark_at = watermark_at

    def set_engine(self, engine: Engine) -> None:
        """Update the engine after a restart of the same source; its version and pid may have changed."""
        self.encoder.set_engine(engine)
        self.header = replace(self.header, engine=engine)

    def set_filter_fingerprint(self, filter_fingerprint: str) -> None:
        """Set the fingerprint of the filters that apply from now on."""
        self.header = replace(self.header, filter_fingerprint=filter_fingerprint)

    def begin_epoch(self, epoch: int) -> None:
        """Continue in another epoch, which must begin with a snapshot; the position before it counts as unknown."""
        self.encoder = RecordEncoder(self.header.host, self.header.engine, epoch)

    def append(self, transitions: Sequence[Transition]) -> None:
        """Number and encode transitions, to be persisted by ``write``."""
        self._buffer += map(self.encoder.encode_transition, transitions)
        self._counters.count_records(transitions)

    def append_snapshot(
        self,
        gap: Gap,
        coverage: SnapshotCoverage,
        transitions: list[Transition],
        snapshot_records: list[Transition],
        now: int,
    ) -> None:
        """Number and encode a snapshot, to be persisted by ``write``."""
        self._buffer += self.encoder.encode_snapshot(gap, coverage, transitions, snapshot_records, now)
        self._counters.count_records(transitions)
        self._counters.count_records(snapshot_records)
        self._counters.count_snapshot(
            SnapshotSummary(self.encoder.snapshot_id, now, gap, coverage, len(snapshot_records), len(transitions))
        )

    def advance_watermark(self, at: int) -> None:
        """Advance the watermark: all events before ``at`` (wall clock) are processed."""
        self._watermark_at = at

    async def write(self, *, save_checkpoint: bool = True, force: bool = False) -> None:
        """Persist the encoded records; when the call returns, the outbox has them.

        Args:
            save_checkpoint: Whether all transitions of the tracker are in the journal, so that its state can be saved.
            force: Persist also what could wait: changes of the state without records.
        """
        watermark_at = self._watermark_at
        if self._buffer or (save_checkpoint and (force or self._is_checkpoint_due())):
            records, self._buffer = self._buffer, []
            await self._outbox.append(
                records,
                self._checkpoint_changes() if save_checkpoint else self._position_entry(self._saved_watermark_at),
            )
        if save_checkpoint and watermark_at is not None and self.encoder.sequence:
            self.watermark = Watermark(self.encoder.epoch, watermark_at)

    def _is_checkpoint_due(self) -> bool:
        """Return whether the new watermark and the state changes before it justify a transaction without records."""
        at, before = self._watermark_at, self._saved_watermark_at
        if at is None or at == before:
            return False
        return before is None or self._tracker.changed or abs(at - before) >= _WATERMARK_INTERVAL_NS

    def _checkpoint_changes(self) -> dict[str, bytes | None]:
        changes, self._obsolete_keys = self._obsolete_keys, {}
        changes.update(checkpoint.encode_changes(self._tracker.changes()))
        unsynced = self._tracker.unsynced_namespaces
        header = replace(self.header, unsynced_namespaces=None if unsynced is None else sorted(unsynced))
        encoded = checkpoint.encode_header(header)
        if encoded != self._saved_header:
            changes[checkpoint.HEADER_KEY] = self._saved_header = encoded
        self._saved_watermark_at = self._watermark_at
        changes.update(self._position_entry(self._watermark_at))
        return changes

    def _position_entry(self, watermark_at: int | None) -> dict[str, bytes | None]:
        if (last := self.encoder.position) is None:
            return {}
        position = StoredPosition(last.epoch, last.sequence, watermark_at)
        return dict([checkpoint.encode_position(self.header.source, position)])
