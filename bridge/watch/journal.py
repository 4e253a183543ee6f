"""The journal: what happened is numbered and encoded at once, and written down in that order, one writer at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bridge.core.encode import Coverage, Gap, Ledger
from bridge.core.events import Record
from bridge.core.lives import Transition
from bridge.core.ports import Outbox


class Journal:
    """Writes one source's records to the outbox; ``ledger`` numbers them."""

    def __init__(self, ledger: Ledger, outbox: Outbox) -> None:
        self.ledger = ledger
        self._outbox = outbox
        self._unwritten: list[Record] = []
        self._writing = asyncio.Lock()

    def tell(self, transitions: Sequence[Transition]) -> None:
        """Number transitions."""
        self._unwritten += map(self.ledger.transition, transitions)

    def snapshot(
        self, gap: Gap, coverage: Coverage, transitions: list[Transition], rows: list[Transition], now: int
    ) -> None:
        """Number a whole snapshot."""
        self._unwritten += self.ledger.snapshot(gap, coverage, transitions, rows, now)

    async def write(self) -> None:
        """Write down what has been numbered; when it returns, the outbox has it."""
        async with self._writing:
            records, self._unwritten = self._unwritten, []
            if not records:
                return
            try:
                await self._outbox.append(records)
            except BaseException:
                self._unwritten = records + self._unwritten
                raise
