"""Audit: compare containerd's tasks with the tracked state at intervals, because lost events leave no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import structlog
from msgspec.structs import replace

from bridge.core.container_state import Transition
from bridge.core.containerd_model import ContainerKey, Metadata
from bridge.core.errors import BridgeError
from bridge.core.reconcile import Listing, find_mismatches, find_unknown_exits, reevaluate_scope, remember_old_exits
from bridge.core.record_encoder import Gap
from bridge.core.records import SnapshotReason
from bridge.core.time import MILLISECOND, SECOND, from_seconds, to_seconds
from bridge.watch.follow import Connection
from bridge.watch.listing import list_containers
from bridge.watch.settings import WatchSettings
from bridge.watch.snapshot_requests import SnapshotRequest, SnapshotResult
from bridge.watch.sync import synchronize

EVENT_DELAY_SECONDS = 2.0  # wait for an event in flight, because shims publish after they change state
MIN_OVERFLOW_PAUSE_NS, MAX_OVERFLOW_PAUSE_NS = 30 * SECOND, 240 * SECOND
_JITTER = 0.1  # fraction of the snapshot interval, so that nodes started together drift apart
_log = structlog.get_logger(__name__)


class Auditor:
    """Audit at intervals and on request; a periodic snapshot is an audit that is published in any case."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._state = connection.state
        self._journal = connection.journal
        self._clock = connection.state.clock
        self._interval_factor = 1 - _JITTER * self._clock.random()
        self._overflow_pause, self._next_overflow_at = MIN_OVERFLOW_PAUSE_NS, 0

    async def run(self) -> None:
        """Audit until the connection ends.

        Raises:
            TransientError: containerd could not list its namespaces.
        """
        state = self._state
        state.requests.requeue()
        last, delay = self._clock.now().wall, state.settings.first_audit_delay
        snapshot_at = self._clock.now().monotonic
        while True:
            until_snapshot = self._seconds_until_snapshot(snapshot_at)
            request = await state.requests.wait(max(0.0, min(delay, until_snapshot)))
            reason: SnapshotReason = "audit" if request is None else request.reason
            if request is None and self._seconds_until_snapshot(snapshot_at) <= 0:
                reason = "interval"
            if request is not None and reason == "overflow":
                await self._throttle_overflows(request, until_snapshot)
                state.requests.add_pending(request)  # above all a change of filters: the listing is made under them
                reason = request.reason
            now = self._clock.now().wall
            await self._audit(Gap(reason, last, now), request)
            last, delay = now, state.settings.audit_interval
            if reason != "audit":
                snapshot_at, self._interval_factor = self._clock.now().monotonic, 1 - _JITTER * self._clock.random()

    async def _audit(self, gap: Gap, request: SnapshotRequest | None) -> None:
        """Query the task of each container that does not match the listing.

        A mismatch that an event explains in the meantime needs no query. If the filters have changed, the metadata is
        listed as well, because it determines the scope.
        """
        state, settings, tracker = self._state, self._state.settings, self._state.tracker
        filters_changed = gap.reason == "filters_changed"
        listing = await list_containers(state.client, self._clock, settings, with_metadata=filters_changed)
        if self._connection.unlisted_namespaces - set(listing.failed):
            await synchronize(self._connection, "audit")  # the listing is older now
            listing = await list_containers(state.client, self._clock, settings, with_metadata=filters_changed)
        if gap.reason != "audit":  # consumers need a snapshot of these namespaces, too
            self._connection.unlisted_namespaces = set(listing.failed)
        await state.cri.complete(listing)
        if filters_changed:
            await state.image_digests.complete(listing.containers)
        keys = self._find_mismatches(listing)
        if keys and not filters_changed:  # newly watched containers have no events in flight
            await self._clock.sleep(EVENT_DELAY_SECONDS)
            keys &= self._find_mismatches(listing)
        ended = [key for key in listing.exits if key in keys]  # attempts, in the order of creation
        queries = [tracker.make_query(key) for key in (*ended, *sorted(keys.difference(ended)))]
        metadata = await self._fetch_missing_metadata(sorted(keys - listing.containers.keys()))
        results = await self._connection.query_results(queries)

        def finish() -> None:
            current_gap = self._begin_epoch(gap, request)
            repairs = self._apply_filters(settings, listing, gap) if filters_changed else []
            remember_old_exits(tracker, listing, self._clock.now())
            self._publish(current_gap, listing, repairs + self._connection.apply_results(results, metadata), request)

        state.event_queue.put_call(finish)

    def _find_mismatches(self, listing: Listing) -> set[ContainerKey]:
        return {*find_mismatches(self._state.tracker, listing), *find_unknown_exits(self._state.tracker, listing)}

    def _begin_epoch(self, gap: Gap, request: SnapshotRequest | None) -> Gap:
        """Begin an epoch if another bridge's is newer; return the gap in which consumers may have skipped records."""
        if request is None or "second_bridge" not in request.reasons:
            return gap
        self._journal.release_held_exits()  # in the old epoch
        if (overlap := self._state.second_bridges.take_overlap()) is None:
            return gap
        epoch = self._journal.encoder.epoch
        if overlap.newest_epoch >= epoch:
            epoch = max(self._clock.now().wall // MILLISECOND, overlap.newest_epoch + 1)
            self._journal.begin_epoch(epoch)
        _log.warning("second_bridge_gone", host=self._state.settings.host, epoch=epoch)
        return replace(gap, since=min(overlap.since, overlap.since if gap.since is None else gap.since))

    def _apply_filters(self, settings: WatchSettings, listing: Listing, gap: Gap) -> list[Transition]:
        """Reevaluate which containers are in scope: from now on the current filters apply."""
        state = self._state
        self._journal.apply_filters(settings, listing.failed)
        repairs = reevaluate_scope(state.tracker, listing, gap.until or 0, self._clock.now())
        state.event_queue.mark_known(listing.containers)
        return repairs

    def _publish(self, gap: Gap, listing: Listing, repairs: list[Transition], request: SnapshotRequest | None) -> None:
        """Publish the repairs, or the requested or periodic snapshot."""
        self._connection.wait_for_exits(listing.tasks.values())
        count = self._journal.complete_listing(gap, listing, repairs, forced=gap.reason != "audit")
        if count is not None:
            _log.info("snapshot_published", reason=gap.reason, containers=count, repairs=len(repairs))
            if request is not None:
                request.result = SnapshotResult(self._journal.encoder.snapshot_id, count)

    async def _fetch_missing_metadata(self, keys: Iterable[ContainerKey]) -> list[Metadata]:
        """Fetch the metadata of unknown containers."""
        fetched = []
        for key in keys:
            entry = self._state.tracker.find(key)
            if entry is None or entry.metadata is None:
                with contextlib.suppress(BridgeError):  # published without labels
                    fetched.append(await self._state.container(key))
        return [metadata for metadata in fetched if metadata is not None]

    async def _throttle_overflows(self, request: SnapshotRequest, until_snapshot: float) -> None:
        """Wait between snapshots after overflows, so that a sink that keeps overflowing does not cause them nonstop.

        The pause is doubled after each snapshot, until there was no overflow for a while. The wait ends early if a
        snapshot is due, or requested for another reason.
        """
        requests, now = self._state.requests, self._clock.now().monotonic
        if now - self._next_overflow_at > MAX_OVERFLOW_PAUSE_NS:
            self._overflow_pause = MIN_OVERFLOW_PAUSE_NS
        end = min(self._next_overflow_at, now + from_seconds(until_snapshot))
        if request.reasons == {"overflow"}:
            await requests.wait_for_other("overflow", to_seconds(end - now))
        self._next_overflow_at = self._clock.now().monotonic + self._overflow_pause
        self._overflow_pause = min(2 * self._overflow_pause, MAX_OVERFLOW_PAUSE_NS)

    def _seconds_until_snapshot(self, last: int) -> float:
        """Return the seconds until the next periodic snapshot, according to the current interval."""
        elapsed = to_seconds(self._clock.now().monotonic - last)
        return self._state.settings.snapshot_interval * self._interval_factor - elapsed
