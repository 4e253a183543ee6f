"""The journal: what happened is numbered and encoded at once, and written down in that order.

Invariant: with the records goes what they leave known, so that what is remembered and what was told never disagree.
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
from bridge.telemetry.counters import SnapshotNote, Tally

_PROOF_KEPT = 60_000_000_000  # nanoseconds after which a proof is written down, though nothing else has to be


class Journal:
    """Writes one source's records to the outbox.

    Args:
        ledger: Numbers them.
        outbox: Where they go.
        tracker: What it knows is written down along.
        tally: Counts what is told.
        watched: What that is seen under; its ``blind`` is the tracker's.
        proven_at: Up to which moment (wall clock) nothing can have been missed.
        outdated: Keys of the memory that are to be removed.

    ``proof``: up to when all that containerd had told is written down; None before anything is, in this epoch.
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
        self._header = b""  # as it was written down last
        self._proven_at = self._proof_written = proven_at

    def follow(self, engine: Engine) -> None:
        """The same source, restarted: its version and pid may be others now."""
        self.ledger.set_engine(engine)
        self.watched = replace(self.watched, engine=engine)

    def rescope(self, scope: str) -> None:
        """From now on it is told of those that other filters let through."""
        self.watched = replace(self.watched, scope=scope)

    def tell(self, transitions: Sequence[Transition]) -> None:
        """Number transitions."""
        self._unwritten += map(self.ledger.transition, transitions)
        self._tally.tell(transitions)

    def snapshot(
        self, gap: Gap, coverage: Coverage, transitions: list[Transition], rows: list[Transition], now: int
    ) -> None:
        """Number a whole snapshot."""
        self._unwritten += self.ledger.snapshot(gap, coverage, transitions, rows, now)
        self._tally.tell(transitions)
        self._tally.tell(rows)
        self._tally.snapshot(SnapshotNote(self.ledger.snapshot_id, now, gap, coverage, len(rows), len(transitions)))

    def proven(self, at: int) -> None:
        """Take note that what happened before a moment is decided on."""
        self._proven_at = at

    async def write(self, *, remember: bool = True, all_: bool = False) -> None:
        """Write down what has been numbered; when it returns, the outbox has it.

        Args:
            remember: Whether everything that the tracker has decided was told; what it knows stands for that.
            all_: Write down also what can wait: what is known anew without a record to tell it.
        """
        proven_at = self._proven_at
        if self._unwritten or (remember and (all_ or self._proof_due())):
            records, self._unwritten = self._unwritten, []
            await self._outbox.append(records, self._changes() if remember else self._position(self._proof_written))
        if remember and proven_at is not None and self.ledger.sequence:
            self.proof = Proof(self.ledger.epoch, proven_at)

    def _proof_due(self) -> bool:
        """Whether a new proof, and what came with it, is worth a transaction of its own."""
        at, before = self._proven_at, self._proof_written
        if at is None or at == before:
            return False
        return before is None or self._tracker.changed or abs(at - before) >= _PROOF_KEPT

    def _changes(self) -> dict[str, bytes | None]:
        changes, self._outdated = self._outdated, {}
        changes.update(memory.encode_changes(self._tracker.changes()))
        blind = self._tracker.blind
        watched = replace(self.watched, blind=None if blind is None else sorted(blind))
        header = memory.encode_watched(watched)
        if header != self._header:
            changes[memory.WATCHED] = self._header = header
        self._proof_written = self._proven_at
        changes.update(self._position(self._proven_at))
        return changes

    def _position(self, proven_at: int | None) -> dict[str, bytes | None]:
        if (last := self.ledger.position) is None:
            return {}
        position = Position(last.epoch, last.sequence, proven_at)
        return dict([memory.encode_position(self.watched.source, position)])
