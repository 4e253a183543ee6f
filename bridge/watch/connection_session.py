"""One connection to containerd: subscribe, list and reconcile; then follow, verify and audit until it breaks.

The listing is taken between two markers, the low and the high watermark, as in Debezium's incremental snapshots.
``_apply`` processes all items, one by one in the order of the event queue.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import structlog
from msgspec.structs import replace

from bridge.core.container_state import Transition
from bridge.core.containerd_model import (
    ContainerEvent,
    ContainerKey,
    Event,
    Ignored,
    Instant,
    Marker,
    TaskCreated,
    TaskStarted,
    Undecodable,
)
from bridge.core.errors import BridgeError
from bridge.core.ports import Clock, EngineClient, EventStream
from bridge.core.reconcile import Listing, has_unconfirmed, reconcile, reevaluate_scope
from bridge.core.record_encoder import Gap, SnapshotCoverage
from bridge.core.records import SnapshotReason
from bridge.core.time import MILLISECOND, SECOND, to_seconds
from bridge.core.tracker import Tracker
from bridge.task_groups import task_group
from bridge.watch.audit import Auditor
from bridge.watch.event_queue import (
    AuditResult,
    EnrichedEvent,
    EventQueue,
    ExitsDue,
    QueryResults,
    QueueItem,
    StartsChecked,
    TaskWaited,
    WatermarkAdvanced,
)
from bridge.watch.exit_waiter import ExitWaiter
from bridge.watch.ignored_events import IgnoredEvents
from bridge.watch.journal import Journal
from bridge.watch.listing import find_tasks, list_all, query_tasks
from bridge.watch.other_bridges import OtherBridges
from bridge.watch.settings import WatchSettings
from bridge.watch.snapshot_requests import SnapshotRequest, SnapshotRequests, SnapshotResult
from bridge.watch.stream_markers import StreamMarkers

SHUTDOWN_FETCH_SECONDS = 1.0  # for fetches that are running when the bridge stops
CLOCK_TOLERANCE_NS = 60 * SECOND  # of a clock that is adjusted
MAX_QUERY_ROUNDS = 5  # of task queries before a snapshot is completed as partial
_MAX_CACHED_NAMESPACES = 1024  # cached results of the namespace filter
_NON_CONTAINER_EVENTS = (Marker, Ignored, Undecodable)
_log = structlog.get_logger(__name__)


class Session:
    """Follow one containerd from the start of a subscription to its end.

    ``pending_transitions`` are not published yet: they go into the next snapshot, possibly of the next session.
    ``watermark_at`` is the moment (wall clock) up to which no event was missed; None before the first watermark.
    """

    def __init__(
        self,
        *,
        client: EngineClient,
        clock: Clock,
        settings: WatchSettings,
        tracker: Tracker,
        event_queue: EventQueue,
        journal: Journal,
        requests: SnapshotRequests,
        ignored_events: IgnoredEvents,
        other_bridges: OtherBridges,
        pending_transitions: list[Transition],
        watermark_at: int | None,
    ) -> None:
        self.watermark_at = watermark_at
        self.synced = False
        self.excluded_namespaces: list[str] = []  # if no namespace is watched: those that exist
        self._client = client
        self._clock = clock
        self._settings = settings
        self._tracker = tracker
        self._event_queue = event_queue
        self._journal = journal
        self._pending_transitions = pending_transitions
        self._ignored_events = ignored_events
        self._other_bridges = other_bridges
        self._requests = requests
        self._unwritten_results: list[tuple[SnapshotRequest, SnapshotResult]] = []  # of snapshots not persisted yet
        self._markers = StreamMarkers(
            client,
            clock,
            settings.marker_timeout,
            lambda: event_queue.full,
            lambda: other_bridges.announcement(journal.encoder.epoch),
        )
        self._query_semaphore = asyncio.Semaphore(settings.max_queries)
        self._auditor = Auditor(client, clock, settings, tracker, event_queue, requests, self._query_semaphore)
        self._is_watched = lru_cache(maxsize=_MAX_CACHED_NAMESPACES)(settings.namespace_filter)
        self._exit_waiter = ExitWaiter(client, clock, lambda *exited: event_queue.put_item(TaskWaited(*exited)))
        self._warned_of_clock = False
        self._open_queries = 0
        self._checking_starts = False
        self._preexisting_count = tracker.preexisting_count

    @property
    def watermark_monotonic(self) -> int | None:
        """Return the watermark of this connection on the monotonic clock; None before the first one."""
        return self._markers.watermark_monotonic

    async def run(self, reason: SnapshotReason) -> None:
        """Connect, publish a snapshot for ``reason``, and follow.

        Raises:
            TransientError: The connection broke; all events received before are queued, processed or published.
        """
        stream = await self._client.subscribe()
        self._other_bridges.restart_silence()
        try:
            async with task_group() as tasks:
                self._event_queue.connect(self._client)
                tasks.create_task(self._receive(stream))
                await self._synchronize(tasks, reason)
                tasks.create_task(self._probe_stream())
                tasks.create_task(self._auditor.run())
                await self._follow(tasks)
        finally:
            self._exit_waiter.close()
            stream.close()
            self._event_queue.put_nowait(self._split_batch(stream.drain())[0])

    def reload(self, settings: WatchSettings) -> None:
        """Apply other settings; the snapshot that follows reevaluates which containers are in scope."""
        self._settings = self._auditor.settings = settings
        self._is_watched = lru_cache(maxsize=_MAX_CACHED_NAMESPACES)(settings.namespace_filter)

    def apply_ready(self) -> None:
        """Process the received items whose metadata has been fetched; held exits wait no longer."""
        self._apply_ready()
        self._release_all_exits()

    async def shut_down(self) -> None:
        """Process all received events before the bridge stops, with the metadata that arrives within a short time."""
        await self._event_queue.drain_fetches(SHUTDOWN_FETCH_SECONDS)
        now = self._clock.now()
        for event in self._event_queue.abandon():
            self._apply(event, now)
        self._release_all_exits()
        if self._journal.encoder.sequence:  # an epoch begins with a snapshot
            self._journal.append(self._pending_transitions)
            self._pending_transitions.clear()

    # --- receiving ---

    async def _receive(self, stream: EventStream) -> None:
        """Receive from the stream without pause, and queue the events."""
        while True:
            events, markers = self._split_batch(await stream.batch())
            for event in events:
                if isinstance(event, TaskCreated):
                    self._exit_waiter.wait_for_exit(event.key, event.pid)
            self._markers.on_event_received()
            await self._event_queue.put(events)
            for marker in markers:
                if not self._markers.receive(marker):
                    self._other_bridges.receive(marker)
                    self._ignored_events.record(marker)

    def _split_batch(self, batch: Sequence[Event]) -> tuple[list[ContainerEvent], list[Marker]]:
        """Split a batch into events of watched containers and markers; record the rest as ignored."""
        events: list[ContainerEvent] = []
        markers: list[Marker] = []
        for event in batch:
            if not isinstance(event, _NON_CONTAINER_EVENTS):
                if self._is_watched(event.key.namespace):
                    events.append(event)
                    self.excluded_namespaces = []
            elif isinstance(event, Marker):
                markers.append(event)
            else:
                self._ignored_events.record(event)
        return events, markers

    async def _probe_stream(self) -> None:
        """Verify the stream at intervals: only a marker distinguishes a hung containerd from an idle one."""
        while True:
            await self._clock.sleep(self._settings.marker_interval)
            self.watermark_at = await self._markers.round_trip()
            self._event_queue.put_item(WatermarkAdvanced(self.watermark_at))
            if self._other_bridges.probe_returned():
                self._requests.request("second_bridge")
            self._warn_if_clock_is_behind_epoch()

    def _warn_if_clock_is_behind_epoch(self) -> None:
        """Warn, once for each connection, if a restart would begin a lower epoch: consumers would skip its records."""
        epoch = self._journal.encoder.epoch
        behind = epoch * MILLISECOND - self._clock.now().wall
        if behind > CLOCK_TOLERANCE_NS and not self._settings.keeps_epoch and not self._warned_of_clock:
            self._warned_of_clock = True
            _log.warning(
                "clock_behind_epoch",
                epoch=epoch,
                seconds=behind // SECOND,
                hint="do not restart whalebridge within this time, and set state_dir for the restart after it",
            )

    # --- connecting ---

    async def _synchronize(self, tasks: asyncio.TaskGroup, reason: SnapshotReason) -> None:
        """Determine the current state, and publish it together with the missed transitions.

        The event queue is drained continuously, because a marker arrives only after the events before it.
        """
        since, settings = self.watermark_at, self._settings
        await self._drain_to_marker()
        gap = Gap(reason, since, self._clock.now().wall)
        listing = await self._list(tasks, settings)
        watermark_at = await self._drain_to_marker()
        if filters_changed := self._journal.header.filter_fingerprint != settings.filter_fingerprint:
            self._release_all_exits()  # with the old filters
            self._tracker.apply_filters(settings.namespace_filter, settings.label_rules)
            self._pending_transitions[:] = [
                transition.with_label_rules(settings.label_rules) for transition in self._pending_transitions
            ]
            self._journal.set_filter_fingerprint(settings.filter_fingerprint)
        self._pending_transitions += reconcile(
            self._tracker, listing, self._clock.now(), filters_changed=filters_changed
        )
        self._event_queue.mark_known(listing.containers)
        await self._resolve_conflicts(tasks)
        self._tracker.mark_synced(set(listing.failed))
        self.excluded_namespaces = [] if listing.namespaces else listing.excluded
        count = self._publish_snapshot(
            gap,
            SnapshotCoverage(listing.namespaces, listing.failed, has_unconfirmed(self._tracker)),
            self._pending_transitions,
        )
        self._pending_transitions.clear()
        self.synced, self.watermark_at = True, watermark_at
        self._journal.advance_watermark(watermark_at)
        self._wait_for_exits()
        await self._journal.write()
        _log.info("synced", reason=reason, containers=count, namespaces=len(listing.namespaces), failed=listing.failed)

    def _wait_for_exits(self) -> None:
        for entry in self._tracker.entries():
            self._wait_for_exit(entry.key)

    def _wait_for_exit(self, key: ContainerKey) -> None:
        """Wait for the exit of a container's current task, unless that is known or waited for already."""
        entry = self._tracker.find(key)
        if entry is not None and (pid := entry.current_pid) and not entry.has_waited_exit(pid):
            self._exit_waiter.wait_for_exit(key, pid)

    async def _list(self, tasks: asyncio.TaskGroup, settings: WatchSettings) -> Listing:
        """List everything; keep verifying the stream in the meantime, because a listing may take long."""
        listing = tasks.create_task(list_all(self._client, self._clock, settings))
        while not listing.done():
            await self._drain_to_marker()
            await asyncio.wait([listing], timeout=self._settings.marker_interval)
        return listing.result()

    async def _drain_to_marker(self) -> int:
        """Process all events that containerd sent before this call; return the watermark (wall clock)."""
        round_trip = asyncio.ensure_future(self._markers.round_trip())
        round_trip.add_done_callback(lambda _: self._event_queue.wake())
        try:
            while not round_trip.done():
                await self._event_queue.wait()
                self._apply_ready()
            target = self._event_queue.put_count
            while self._event_queue.popped_count < target:
                await self._event_queue.wait()
                self._apply_ready()
            return round_trip.result()
        finally:
            round_trip.cancel()

    async def _resolve_conflicts(self, tasks: asyncio.TaskGroup) -> None:
        """Query tasks for which listing, events and state conflict; repeat while events about them arrive."""
        for _ in range(MAX_QUERY_ROUNDS):
            self._run_due_queries(tasks)
            if not self._open_queries:
                return
            while self._open_queries:
                await self._event_queue.wait()
                self._apply_ready()

    # --- following ---

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._event_queue.wait(self._seconds_until_due())
            if due := self._tracker.take_due_exits(self._clock.now()):
                self._event_queue.put_item(ExitsDue(due))
            self._apply_ready()
            self._emit(self._tracker.expire_pending_exits(self._clock.now()))
            self._run_due_queries(tasks)
            self._run_due_start_checks(tasks)
            await self._journal.write()
            while self._unwritten_results:
                self._requests.complete(*self._unwritten_results.pop())

    def _seconds_until_due(self) -> float | None:
        due = self._tracker.next_due(start_checks=not self._checking_starts)
        return None if due is None else to_seconds(max(0, due - self._clock.now().monotonic))

    def _run_due_queries(self, tasks: asyncio.TaskGroup) -> None:
        """Run the due queries in the background; the results arrive through the event queue."""
        queries = self._tracker.due_queries(self._clock.now())
        if not queries:
            return
        self._open_queries += 1

        async def query_all() -> None:
            results = await query_tasks(self._client, [query.key for query in queries], self._query_semaphore)
            self._event_queue.put_item(QueryResults(list(zip(queries, results, strict=True)), []))

        tasks.create_task(query_all())

    def _run_due_start_checks(self, tasks: asyncio.TaskGroup) -> None:
        """Run the due start checks in the background, one round at a time: a listing may take long."""
        if self._checking_starts or not (checks := self._tracker.due_start_checks(self._clock.now())):
            return
        self._checking_starts = True
        task_counts = Counter(entry.key.namespace for entry, _ in self._tracker.incarnations())

        async def check_all() -> None:
            keys = [check.key for check in checks]
            results = await find_tasks(self._client, keys, task_counts, self._query_semaphore)
            self._event_queue.put_item(StartsChecked(list(zip(checks, results, strict=True))))

        tasks.create_task(check_all())

    # --- processing ---

    def _apply_ready(self) -> None:
        now = self._clock.now()
        for item in self._event_queue.pop_ready():
            self._apply(item, now)

    def _apply(self, item: QueueItem, now: Instant) -> None:
        if isinstance(item, EnrichedEvent):
            if item.metadata is not None:
                self._tracker.update_metadata(item.metadata)
            self._emit(self._tracker.process_event(item.event, now))
            if isinstance(item.event, TaskStarted):
                self._wait_if_creation_unreported(item.event)
        elif isinstance(item, StartsChecked):
            self._apply_start_checks(item, now)
        elif isinstance(item, TaskWaited):
            self._tracker.apply_wait_result(item.key, item.pid, item.exit_status, now)
        elif isinstance(item, WatermarkAdvanced):
            self._journal.advance_watermark(item.at)
        elif isinstance(item, ExitsDue):
            self._emit(self._tracker.release_exits(item.exits))
        elif item.audit is None:
            self._open_queries -= 1
            self._emit(self._apply_results(item, now))
        else:
            self._finish_audit(item, item.audit, now)

    def _wait_if_creation_unreported(self, event: TaskStarted) -> None:
        entry = self._tracker.find(event.key)
        if entry is not None and event.pid not in entry.created_pids:
            self._wait_for_exit(event.key)

    def _apply_start_checks(self, item: StartsChecked, now: Instant) -> None:
        self._checking_starts = False
        for check, result in item.results:
            if isinstance(result, BridgeError):
                self._ignored_events.query_failed(check.key, result)
            task = None if isinstance(result, BridgeError) else result
            if self._tracker.apply_start_check(check, task, now) and task is not None:
                self._exit_waiter.wait_for_exit(check.key, task.pid)

    def _apply_results(self, item: QueryResults, now: Instant) -> list[Transition]:
        for metadata in item.metadata:
            self._tracker.update_metadata(metadata)
        transitions: list[Transition] = []
        for query, result in item.results:
            if not self._is_watched(query.key.namespace):
                continue  # not watched any more since the query was made
            if isinstance(result, BridgeError):
                self._ignored_events.query_failed(query.key, result)
                self._tracker.query_failed(query)
            else:
                transitions += self._tracker.apply_query_result(query, result, now)
                self._wait_for_exit(query.key)
        if self.synced:
            self._ignored_events.starts_inferred(transitions)
        return transitions

    def _finish_audit(self, item: QueryResults, audit: AuditResult, now: Instant) -> None:
        """Publish the repairs of an audit, or the requested snapshot."""
        listing, gap, repairs = audit.listing, audit.gap, []
        second_bridge = audit.request is not None and "second_bridge" in audit.request.reasons
        if second_bridge or audit.filter_fingerprint is not None:
            self._release_all_exits()  # in the old epoch, with the old filters
        if second_bridge:
            gap = self._begin_epoch(gap)
        if audit.filter_fingerprint is not None:
            repairs += self._reevaluate_scope(audit, audit.filter_fingerprint, now)
        repairs += self._apply_results(item, now)
        self._wait_for_exits()
        self._tracker.mark_synced(set(listing.failed))
        self.excluded_namespaces = [] if listing.namespaces else listing.excluded
        if repairs or self._tracker.preexisting_count != self._preexisting_count or audit.forced:
            coverage = SnapshotCoverage(listing.namespaces, listing.failed, has_unconfirmed(self._tracker))
            count = self._publish_snapshot(gap, coverage, repairs)
            _log.info("snapshot_published", reason=gap.reason, containers=count, repairs=len(repairs))
            if audit.request is not None:
                self._unwritten_results.append(
                    (audit.request, SnapshotResult(self._journal.encoder.snapshot_id, count))
                )

    def _begin_epoch(self, gap: Gap) -> Gap:
        """Begin an epoch if another bridge's is newer; return the gap in which consumers may have skipped records."""
        if (overlap := self._other_bridges.take_overlap()) is None:
            return gap
        epoch = self._journal.encoder.epoch
        if overlap.newest_epoch >= epoch:
            epoch = max(self._clock.now().wall // MILLISECOND, overlap.newest_epoch + 1)
            self._journal.begin_epoch(epoch)
        _log.warning("other_bridge_gone", host=self._settings.host, epoch=epoch)
        return replace(gap, since=min(overlap.since, overlap.since if gap.since is None else gap.since))

    def _reevaluate_scope(self, audit: AuditResult, filter_fingerprint: str, now: Instant) -> list[Transition]:
        """Reevaluate which containers are in scope: from now on the current filters apply."""
        self._tracker.apply_filters(self._settings.namespace_filter, self._settings.label_rules)
        repairs = reevaluate_scope(self._tracker, audit.listing, audit.gap.until or 0, now)
        self._event_queue.mark_known(audit.listing.containers)
        self._journal.set_filter_fingerprint(filter_fingerprint)
        return repairs

    def _emit(self, transitions: list[Transition]) -> None:
        """Append transitions to the journal once synced; until then, keep them for the snapshot."""
        if self.synced:
            self._journal.append(transitions)
        else:
            self._pending_transitions += transitions

    def _release_all_exits(self) -> None:
        self._emit(self._tracker.release_all_exits())

    def _publish_snapshot(self, gap: Gap, coverage: SnapshotCoverage, transitions: list[Transition]) -> int:
        self._release_all_exits()  # of containers that the snapshot does not list
        now = self._clock.now()
        snapshot_records = self._tracker.snapshot_records(now)
        self._journal.append_snapshot(gap, coverage, transitions, snapshot_records, now.wall)
        self._preexisting_count = self._tracker.preexisting_count
        return len(snapshot_records)
