"""Requests for a snapshot, and the futures of their callers."""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

from msgspec import Struct, field

from bridge.core.ports import Clock
from bridge.core.records import SnapshotReason
from bridge.task_groups import completes_within

_PRIORITY: tuple[SnapshotReason, ...] = ("filters_changed", "overflow", "second_bridge", "on_demand")


class SnapshotResult(NamedTuple):
    """A persisted snapshot: its id, and the number of its containers."""

    id: str
    containers: int


class SnapshotRequest(Struct):
    """The requests that one snapshot fulfills: their reasons, and the futures of the waiting callers.

    ``result``: the snapshot, once it is published; it may not be persisted yet.
    """

    reasons: set[SnapshotReason] = field(default_factory=set)
    waiters: list[asyncio.Future[SnapshotResult]] = field(default_factory=list)
    result: SnapshotResult | None = None

    @property
    def reason(self) -> SnapshotReason:
        """Return the reason that matters most to consumers."""
        return min(self.reasons, key=_PRIORITY.index)


class SnapshotRequests:
    """Collect requests; one snapshot fulfills all requests made before its start.

    A request stays open until its snapshot is persisted, so a connection that ends earlier loses no request.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pending = SnapshotRequest()
        self._in_progress: list[SnapshotRequest] = []
        self._changed = asyncio.Event()

    def request(self, reason: SnapshotReason) -> asyncio.Future[SnapshotResult]:
        """Request a snapshot soon; the returned future completes when the snapshot is persisted."""
        future: asyncio.Future[SnapshotResult] = asyncio.get_running_loop().create_future()
        self._pending.reasons.add(reason)
        self._pending.waiters.append(future)
        self._changed.set()
        return future

    def is_pending(self, reason: SnapshotReason) -> bool:
        """Return whether a snapshot is requested for this reason, and has not started."""
        return reason in self._pending.reasons

    async def wait(self, seconds: float) -> SnapshotRequest | None:
        """Wait for requests and return them, now in progress; return None after ``seconds`` without any."""
        await completes_within(seconds, self._clock, self._changed.wait())
        self._changed.clear()
        if not self._pending.reasons:
            return None
        request, self._pending = self._pending, SnapshotRequest()
        self._in_progress.append(request)
        return request

    async def wait_for_other(self, reason: SnapshotReason, seconds: float) -> None:
        """Wait for a request with another reason, at most ``seconds``; it stays pending."""
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(seconds):
                while self._pending.reasons <= {reason}:
                    self._changed.clear()
                    await self._changed.wait()

    def add_pending(self, request: SnapshotRequest) -> None:
        """Let a snapshot that has not started yet fulfill also the requests made since ``wait`` has returned."""
        request.reasons |= self._pending.reasons
        request.waiters += self._pending.waiters
        self._pending = SnapshotRequest()
        self._changed.clear()

    def complete_published(self) -> None:
        """Complete the requests whose snapshots are published: they are persisted now."""
        for request in [each for each in self._in_progress if each.result is not None]:
            self._in_progress.remove(request)
            for waiter in request.waiters:
                if not waiter.done() and request.result is not None:
                    waiter.set_result(request.result)

    def requeue(self) -> None:
        """Requeue the requests that were in progress on the previous connection."""
        for request in self._in_progress:
            self._pending.reasons |= request.reasons
            self._pending.waiters += request.waiters
            self._changed.set()
        self._in_progress.clear()
