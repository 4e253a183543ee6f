"""Journal: transitions are numbered and encoded immediately, and persisted in that order (event sourcing).

Invariant: records are persisted together with the state after them, so that checkpoint and published records agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from bridge.core import memory
from bridge.core.encode import Coverage, Gap, Ledger
from bridge.core.events import Proof, Record
from bridge.core.lives import Transition
from bridge.core.memory import Position, Watched
from bridge.core.model import Engine
from bridge.core.ports import Outbox
from bridge.core.tracker import Tracker
from bridge.telemetry.tally import SnapshotNote, Tally

_PROOF_KEPT = 60_000_000_000  # maximum time between two persisted watermarks, even without records


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
        ledger: Ledger,
        outbox: Outbox,
        tracker: Tracker,
        tally: Tally,
        watched: Watched,
        *,
        proven_at: int | None = None,
        outdated: Iterable[str] = (),
    ) -> None:
        self.ledger = ledger
        self.watched = watched
        self._outbox = outbox
        self._tracker = tracker
        self._tally = tally
        self._unwritten: list[Record] = []
        self._outdated: dict[str, bytes | None] = dict.fromkeys(outdated)
        self.proof: Proof | None = None
        self._header = b""  # as last persisted
        self._proven_at = self._proof_written = proven_at

    def follow(self, engine: Engine) -> None:
        """Update the engine after a restart of the same source; its version and pid may have changed."""
        self.ledger.set_engine(engine)
        self.watched = replace(self.watched, engine=engine)

    def rescope(self, scope: str) -> None:
        """Set the fingerprint of the filters that apply from now on."""
        self.watched = replace(self.watched, scope=scope)

    def tell(self, transitions: Sequence[Transition]) -> None:
        """Number and encode transitions, to be persisted by ``write``."""
        self._unwritten += map(self.ledger.transition, transitions)
        self._tally.tell(transitions)

    def snapshot(
        self, gap: Gap, coverage: Coverage, transitions: list[Transition], rows: list[Transition], now: int
    ) -> None:
        """Number and encode a snapshot, to be persisted by ``write``."""
        self._unwritten += self.ledger.snapshot(gap, coverage, transitions, rows, now)
        self._tally.tell(transitions)
        self._tally.tell(rows)
        self._tally.snapshot(SnapshotNote(self.ledger.snapshot_id, now, gap, coverage, len(rows), len(transitions)))

    def proven(self, at: int) -> None:
        """Advance the watermark: all events before ``at`` (wall clock) are processed."""
        self._proven_at = at

    async def write(self, *, remember: bool = True, all_: bool = False) -> None:
        """Persist the encoded records; when the call returns, the outbox has them.

        Args:
            save_checkpoint: Whether all transitions of the tracker are in the journal, so that its state can be saved.
            force: Persist also what could wait: changes of the state without records.
        """
        watermark_at = self._proven_at
        if self._unwritten or (remember and (all_ or self._proof_due())):
            records, self._unwritten = self._unwritten, []
            await self._outbox.append(records, self._changes() if remember else self._position(self._proof_written))
        if remember and watermark_at is not None and self.ledger.sequence:
            self.proof = Proof(self.ledger.epoch, watermark_at)

    def _proof_due(self) -> bool:
        """Return whether the new watermark and the state changes before it justify a transaction without records."""
        at, before = self._proven_at, self._proof_written
        if at is None or at == before:
            return False
        return before is None or self._tracker.changed or abs(at - before) >= _PROOF_KEPT

    def _changes(self) -> dict[str, bytes | None]:
        changes, self._outdated = self._outdated, {}
        changes.update(memory.encode_changes(self._tracker.changes()))
        unsynced = self._tracker.blind
        header = replace(self.watched, blind=None if unsynced is None else sorted(unsynced))
        encoded = memory.encode_watched(header)
        if encoded != self._header:
            changes[memory.WATCHED] = self._header = encoded
        self._proof_written = self._proven_at
        changes.update(self._position(self._proven_at))
        return changes

    def _position(self, proven_at: int | None) -> dict[str, bytes | None]:
        if (last := self.ledger.position) is None:
            return {}
        position = Position(last.epoch, last.sequence, proven_at)
        return dict([memory.encode_position(self.watched.source, position)])
