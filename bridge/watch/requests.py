"""Requests for a snapshot, from whoever may ask for one."""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

from msgspec import Struct, field

from bridge.core.events import Reason

_BY_WEIGHT: tuple[Reason, ...] = ("filters_changed", "overflow", "on_demand")


class SnapshotTaken(NamedTuple):
    """A snapshot that is written down: its id, and how many containers it names."""

    id: str
    containers: int


class Asked(Struct):
    """What one snapshot is to answer: why it is asked for, and who waits for it."""

    reasons: set[Reason] = field(default_factory=set)
    callers: list[asyncio.Future[SnapshotTaken]] = field(default_factory=list)

    @property
    def reason(self) -> Reason:
        """The reason that matters most to readers."""
        return min(self.reasons, key=_BY_WEIGHT.index)


class Requests:
    """One snapshot answers everybody who asked before it was begun.

    What was asked for stands until its snapshot is written down: a connection that ends before loses no request.
    """

    def __init__(self) -> None:
        self._waiting = Asked()
        self._begun: list[Asked] = []
        self._changed = asyncio.Event()

    def ask(self, reason: Reason) -> asyncio.Future[SnapshotTaken]:
        """Ask for a snapshot soon; what is returned is done when it is written down."""
        taken: asyncio.Future[SnapshotTaken] = asyncio.get_running_loop().create_future()
        self._waiting.reasons.add(reason)
        self._waiting.callers.append(taken)
        self._changed.set()
        return taken

    async def wait(self, seconds: float) -> Asked | None:
        """Wait for requests, and take on those that there are; None when ``seconds`` are over first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()
        if not self._waiting.reasons:
            return None
        asked, self._waiting = self._waiting, Asked()
        self._begun.append(asked)
        return asked

    def done(self, asked: Asked, taken: SnapshotTaken) -> None:
        """The snapshot that answers these requests is written down."""
        self._begun.remove(asked)
        for caller in asked.callers:
            if not caller.done():
                caller.set_result(taken)

    def resume(self) -> None:
        """There is a new connection: what was begun on the one before is to be begun anew."""
        for asked in self._begun:
            self._waiting.reasons |= asked.reasons
            self._waiting.callers += asked.callers
            self._changed.set()
        self._begun.clear()
