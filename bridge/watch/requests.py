"""Requests for a snapshot, and the futures of their callers."""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

from msgspec import Struct, field

from bridge.core.events import Reason

_BY_WEIGHT: tuple[Reason, ...] = ("filters_changed", "overflow", "on_demand")


class SnapshotTaken(NamedTuple):
    """A persisted snapshot: its id, and the number of its containers."""

    id: str
    containers: int


class Asked(Struct):
    """The requests that one snapshot fulfills: their reasons, and the futures of the waiting callers."""

    reasons: set[Reason] = field(default_factory=set)
    callers: list[asyncio.Future[SnapshotTaken]] = field(default_factory=list)

    @property
    def reason(self) -> Reason:
        """Return the reason that matters most to consumers."""
        return min(self.reasons, key=_BY_WEIGHT.index)


class Requests:
    """Collect requests; one snapshot fulfills all requests made before its start.

    A request stays open until its snapshot is persisted, so a connection that ends earlier loses no request.
    """

    def __init__(self) -> None:
        self._waiting = Asked()
        self._begun: list[Asked] = []
        self._changed = asyncio.Event()

    def ask(self, reason: Reason) -> asyncio.Future[SnapshotTaken]:
        """Request a snapshot soon; the returned future completes when the snapshot is persisted."""
        future: asyncio.Future[SnapshotTaken] = asyncio.get_running_loop().create_future()
        self._waiting.reasons.add(reason)
        self._waiting.callers.append(future)
        self._changed.set()
        return future

    async def wait(self, seconds: float) -> Asked | None:
        """Wait for requests and return them, now in progress; return None after ``seconds`` without any."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()
        if not self._waiting.reasons:
            return None
        request, self._waiting = self._waiting, Asked()
        self._begun.append(request)
        return request

    def done(self, asked: Asked, taken: SnapshotTaken) -> None:
        """Complete requests whose snapshot is persisted."""
        self._begun.remove(asked)
        for waiter in asked.callers:
            if not waiter.done():
                waiter.set_result(taken)

    def resume(self) -> None:
        """Requeue the requests that were in progress on the previous connection."""
        for request in self._begun:
            self._waiting.reasons |= request.reasons
            self._waiting.callers += request.callers
            self._changed.set()
        self._begun.clear()
