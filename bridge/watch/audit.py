"""Audit: compare containerd's tasks with the tracked state at intervals, because lost events leave no trace."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from bridge.core.containerd_model import ContainerKey, Metadata
from bridge.core.errors import BridgeError
from bridge.core.ports import Clock, EngineClient
from bridge.core.reconcile import find_mismatches
from bridge.core.record_encoder import Gap
from bridge.core.records import SnapshotReason
from bridge.core.time import SECOND, from_seconds, to_seconds
from bridge.core.tracker import Tracker
from bridge.watch.event_queue import AuditResult, EventQueue, QueryResults
from bridge.watch.listing import list_all, list_tasks, query_tasks
from bridge.watch.settings import WatchSettings
from bridge.watch.snapshot_requests import SnapshotRequest, SnapshotRequests

EVENT_DELAY_SECONDS = 2.0  # wait for an event in flight, because shims publish after they change state
MIN_OVERFLOW_PAUSE_NS, MAX_OVERFLOW_PAUSE_NS = 30 * SECOND, 240 * SECOND
_JITTER = 0.1  # fraction of the snapshot interval, so that nodes started together drift apart


class Auditor:
    """Audit at intervals and on request; a periodic snapshot is an audit that is published in any case.

    ``settings`` may be replaced at any time.
    """

    def __init__(
        self,
        client: EngineClient,
        clock: Clock,
        settings: WatchSettings,
        tracker: Tracker,
        event_queue: EventQueue,
        requests: SnapshotRequests,
        query_semaphore: asyncio.Semaphore,
    ) -> None:
        self._client = client
        self._clock = clock
        self.settings = settings
        self._tracker = tracker
        self._event_queue = event_queue
        self._requests = requests
        self._query_semaphore = query_semaphore
        self._interval_factor = 1 - _JITTER * clock.random()
        self._overflow_pause, self._next_overflow_at = MIN_OVERFLOW_PAUSE_NS, 0

    async def run(self) -> None:
        """Audit until the connection ends.

        Raises:
            TransientError: containerd could not list its namespaces.
        """
        self._requests.requeue()
        last, delay = self._clock.now().wall, self.settings.first_audit_delay
        snapshot_at = self._clock.now().monotonic
        while True:
            until_snapshot = self._seconds_until_snapshot(snapshot_at)
            request = await self._requests.wait(max(0.0, min(delay, until_snapshot)))
            reason: SnapshotReason = "audit" if request is None else request.reason
            if request is None and self._seconds_until_snapshot(snapshot_at) <= 0:
                reason = "interval"
            if reason == "overflow":
                await self._throttle_overflows(until_snapshot)
            now = self._clock.now().wall
            await self._audit(Gap(reason, last, now), request)
            last, delay = now, self.settings.audit_interval
            if reason != "audit":
                snapshot_at, self._interval_factor = self._clock.now().monotonic, 1 - _JITTER * self._clock.random()

    async def _audit(self, gap: Gap, request: SnapshotRequest | None) -> None:
        """Query the task of each container that does not match the listing; the results go to the event queue.

        A mismatch that an event explains in the meantime needs no query. If the filters have changed, the metadata is
        listed as well, because it determines the scope.
        """
        settings, filters_changed = self.settings, gap.reason == "filters_changed"
        listing = await (list_all if filters_changed else list_tasks)(self._client, self._clock, settings)
        keys = find_mismatches(self._tracker, listing)
        if keys and not filters_changed:  # newly watched containers have no events in flight
            await self._clock.sleep(EVENT_DELAY_SECONDS)
            keys &= find_mismatches(self._tracker, listing)
        queries = [self._tracker.make_query(key) for key in keys]
        metadata = await self._fetch_missing_metadata(keys - listing.containers.keys())
        results = await query_tasks(self._client, [query.key for query in queries], self._query_semaphore)
        audited = AuditResult(
            gap, listing, gap.reason != "audit", request, settings.filter_fingerprint if filters_changed else None
        )
        self._event_queue.put_item(QueryResults(list(zip(queries, results, strict=True)), metadata, audited))

    async def _fetch_missing_metadata(self, keys: Iterable[ContainerKey]) -> list[Metadata]:
        """Fetch the metadata of unknown containers."""
        fetched = []
        for key in keys:
            entry = self._tracker.find(key)
            if entry is None or entry.metadata is None:
                with contextlib.suppress(BridgeError):  # published without labels
                    fetched.append(await self._client.container(key))
        return [metadata for metadata in fetched if metadata is not None]

    async def _throttle_overflows(self, until_snapshot: float) -> None:
        """Wait between snapshots after overflows, so that a sink that keeps overflowing does not cause them nonstop.

        The pause is doubled after each snapshot, until there was no overflow for a while. The wait ends early if a
        snapshot is due, or requested for another reason.
        """
        now = self._clock.now().monotonic
        if now - self._next_overflow_at > MAX_OVERFLOW_PAUSE_NS:
            self._overflow_pause = MIN_OVERFLOW_PAUSE_NS
        end = min(self._next_overflow_at, now + from_seconds(until_snapshot))
        while self._clock.now().monotonic < end and self._requests.pending_reasons <= {"overflow"}:
            await self._clock.sleep(1)
        self._next_overflow_at = self._clock.now().monotonic + self._overflow_pause
        self._overflow_pause = min(2 * self._overflow_pause, MAX_OVERFLOW_PAUSE_NS)

    def _seconds_until_snapshot(self, last: int) -> float:
        """Return the seconds until the next periodic snapshot, according to the current interval."""
        elapsed = to_seconds(self._clock.now().monotonic - last)
        return self.settings.snapshot_interval * self._interval_factor - elapsed
