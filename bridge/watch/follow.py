"""One connection to containerd: receive events, process them in order, run the queries that the tracker schedules.

One task, ``_process``, applies everything to the tracked state, in the order of the event queue.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import structlog

from bridge.core.container_state import DueExit, TaskQuery, Transition
from bridge.core.containerd_model import (
    ContainerEvent,
    ContainerKey,
    Event,
    ExitStatus,
    Ignored,
    Instant,
    Marker,
    Metadata,
    RecordedExit,
    Task,
    TaskCreated,
    TaskStarted,
    Undecodable,
)
from bridge.core.errors import BridgeError, TransientError
from bridge.core.ports import EventStream
from bridge.core.reconcile import is_end_unseen
from bridge.core.time import MILLISECOND, SECOND, to_seconds
from bridge.stream_markers import StreamMarkers
from bridge.watch.event_queue import QueuedEvent
from bridge.watch.exit_waits import ExitWaits
from bridge.watch.journal import Journal
from bridge.watch.listing import find_tasks, query_tasks
from bridge.watch.state import WatchState

SHUTDOWN_FETCH_SECONDS = 1.0  # for fetches that are running when the bridge stops
CLOCK_TOLERANCE_NS = 60 * SECOND  # of a clock that is adjusted
_NON_CONTAINER_EVENTS = (Marker, Ignored, Undecodable)
_log = structlog.get_logger(__name__)


class QueryResult(NamedTuple):
    """A task query, its result or error, and CRI's record of the exit if there is no task."""

    query: TaskQuery
    task: Task | BridgeError | None
    recorded: RecordedExit | None


class Connection:
    """Follow one containerd from the start of a subscription to its end.

    Args:
        state: What is left by earlier connections; the connection changes it.
        journal: The destination of transitions.
        stream: The new subscription.
    """

    def __init__(self, state: WatchState, journal: Journal, stream: EventStream) -> None:
        self.state = state
        self.journal = journal
        self.query_semaphore = asyncio.Semaphore(state.settings.max_queries)
        self._stream = stream
        self._tasks: asyncio.TaskGroup  # of this connection
        self._markers = StreamMarkers(
            state.client,
            state.clock,
            state.settings.marker_timeout,
            lambda: state.event_queue.full,
            lambda: state.second_bridges.announcement(journal.encoder.epoch),
        )
        self._exit_waits = ExitWaits(state.client.wait_calls(), state.clock, self._report_exit, self._is_replaced)
        self.unlisted_namespaces: set[str] = set()  # whose listing failed; their containers may have changed unseen
        self._checking_starts = False
        self._warned_of_clock = False

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Receive, process and verify the stream in ``tasks``, whose end is the end of the connection."""
        self._tasks = tasks
        self.state.event_queue.reconnect()
        self.state.second_bridges.restart_silence()
        for loop in (self._receive, self._process, self._verify, self._exit_waits.repeat_calls):
            tasks.create_task(loop())

    async def pass_marker(self) -> Instant:
        """Process all events that containerd sent before this call; return the time of the call, the watermark.

        Raises:
            TransientError: The stream has stalled.
        """
        sent = await self._round_trip()
        await self.state.event_queue.wait_processed()
        return sent

    async def verify_engine(self) -> None:
        """Check that the stream is that of the containerd that was identified before.

        Raises:
            TransientError: Another containerd took its place before the stream worked.
        """
        engine = await self.state.client.engine()
        if engine.id not in (self.journal.header.engine.id, ""):
            raise TransientError(f"containerd at {engine.api} was replaced during the connect")

    def begin_following(self, tasks: Iterable[Task]) -> None:
        """Publish transitions as they occur from now on: the first snapshot is complete, and is persisted next."""
        self.state.synced = True
        self.wait_for_exits(tasks)
        self.state.event_queue.wake()

    def close(self) -> None:
        """End the subscription; the events that were received stay in the queue."""
        self._exit_waits.close()  # items that are processed afterwards start no calls
        self._stream.close()
        self.state.event_queue.put_nowait(self._split_batch(self._stream.drain())[0])

    def process_received(self) -> None:
        """Process the received items whose metadata has been fetched; held exits wait no longer."""
        self._process_ready()
        self.journal.release_held_exits()

    async def shut_down(self) -> None:
        """Process all received events before the bridge stops, with the metadata that arrives within a short time."""
        await self.state.event_queue.drain_fetches(SHUTDOWN_FETCH_SECONDS)
        now = self.state.clock.now()
        for item in self.state.event_queue.abandon():
            self._process_event(item, now)
        self.journal.release_held_exits()
        self.journal.publish_pending()

    # --- the stream ---

    async def _receive(self) -> None:
        """Receive from the stream without pause, and queue the events."""
        state = self.state
        while True:
            events, markers = self._split_batch(await self._stream.batch())
            for event in events:
                if isinstance(event, TaskCreated):
                    self._exit_waits.add(event.key, event.pid)
            self._markers.on_event_received()
            await state.event_queue.put(events)
            for marker in markers:
                if not self._markers.receive(marker):
                    state.second_bridges.receive(marker)
                    state.ignored_events.record(marker)

    def _split_batch(self, batch: Sequence[Event]) -> tuple[list[ContainerEvent], list[Marker]]:
        """Split a batch into events of watched containers and markers; record the rest as ignored."""
        events: list[ContainerEvent] = []
        markers: list[Marker] = []
        state, is_watched = self.state, self.state.is_watched
        for event in batch:
            if not isinstance(event, _NON_CONTAINER_EVENTS):
                if is_watched(event.key.namespace):
                    events.append(event)
            elif isinstance(event, Marker):
                markers.append(event)
            else:
                state.ignored_events.record(event)
        if events:
            state.excluded_namespaces = []
        return events, markers

    async def _verify(self) -> None:
        """Verify the stream at intervals: only a marker distinguishes a hung containerd from an idle one."""
        state = self.state
        while True:
            await state.clock.sleep(state.settings.marker_interval)
            synced = state.synced  # a marker sent earlier is older than the watermark of the snapshot
            watermark = await self._round_trip()
            if synced:
                state.event_queue.put_call(partial(state.advance_watermark, watermark))
                if state.second_bridges.marker_returned():
                    state.requests.request("second_bridge")
                self._warn_if_clock_is_behind_epoch()

    async def _round_trip(self) -> Instant:
        sent = await self._markers.round_trip()
        self.state.verified_at = sent.monotonic
        return sent

    def _warn_if_clock_is_behind_epoch(self) -> None:
        """Warn, once for each connection, if a restart would begin a lower epoch: consumers would skip its records."""
        epoch = self.journal.encoder.epoch
        behind = epoch * MILLISECOND - self.state.clock.now().wall
        if behind > CLOCK_TOLERANCE_NS and not self.state.settings.keeps_checkpoint and not self._warned_of_clock:
            self._warned_of_clock = True
            _log.warning(
                "clock_behind_epoch",
                epoch=epoch,
                seconds=behind // SECOND,
                hint="do not restart whalebridge within this time, and set state_dir for the restart after it",
            )

    # --- processing ---

    async def _process(self) -> None:
        """Process the queue without pause; once synced, run what is due, and persist the records."""
        state = self.state
        while True:
            await state.event_queue.wait(self._seconds_until_due() if state.synced else None)
            if state.synced and (due := state.tracker.take_due_exits(state.clock.now())):
                self._release_when_processed(due)
            self._process_ready()
            if state.synced:
                self._resolve_overdue_exits()
                self._run_due_calls()
                await self.journal.write()
                state.requests.complete_published()

    def _resolve_overdue_exits(self) -> None:
        """Publish runs whose start has not arrived in time; first request CRI's records, with the times of start."""
        state = self.state
        overdue = state.tracker.take_overdue_exits(state.clock.now())
        if recorded := [key for key in overdue if state.cri.may_know(key)]:
            self._tasks.create_task(self._resolve_recorded_exits(recorded))
        known = set(recorded)
        unrecorded = [key for key in overdue if key not in known]
        self.journal.publish(state.tracker.resolve_overdue_exits(unrecorded, state.clock.now()))

    async def _resolve_recorded_exits(self, keys: Sequence[ContainerKey]) -> None:
        recorded = await self.state.cri.recorded_exits(keys)

        def resolve() -> None:
            tracker, now = self.state.tracker, self.state.clock.now()
            self.journal.publish(tracker.resolve_overdue_exits(keys, now, recorded))

        self.state.event_queue.put_call(resolve)

    def _release_when_processed(self, due: Sequence[DueExit]) -> None:
        """Release due exits after the OOM events received by now; first request CRI's records of killed containers."""
        killed = [each for each in due if each.killed and self.state.cri.may_know(each.key)]
        if killed:
            self._tasks.create_task(self._release_recorded(killed))
        self._put_release([each for each in due if each not in killed])

    async def _release_recorded(self, due: Sequence[DueExit]) -> None:
        recorded = await self.state.cri.recorded_exits([each.key for each in due])
        ooms = {key for key, exit_ in recorded.items() if exit_.oom}
        self._put_release([each._replace(oom=each.key in ooms) for each in due])

    def _put_release(self, due: Sequence[DueExit]) -> None:
        def release() -> None:
            self.journal.publish(self.state.tracker.release_exits(due))

        if due:
            self.state.event_queue.put_call(release)

    def _seconds_until_due(self) -> float | None:
        due = self.state.tracker.next_due(start_checks=not self._checking_starts)
        return None if due is None else to_seconds(max(0, due - self.state.clock.now().monotonic))

    def _process_ready(self) -> None:
        now = self.state.clock.now()
        started: list[TaskStarted] = []
        for item in self.state.event_queue.pop_ready():
            if not isinstance(item, QueuedEvent):
                item.call()
                continue
            self._process_event(item, now)
            if isinstance(item.event, TaskStarted) and not self._is_created(item.event):
                started.append(item.event)
        for event in started:  # those whose exit has not arrived as well
            self._wait_for_exit(event.key, event.pid)

    def _process_event(self, item: QueuedEvent, now: Instant) -> None:
        event, tracker = item.event, self.state.tracker
        if item.metadata is not None:
            tracker.update_metadata(item.metadata)
        self.journal.publish(tracker.process_event(event, now))

    def _is_created(self, event: TaskStarted) -> bool:
        """Return whether an event has reported the creation of a started task, so that its exit is waited for."""
        entry = self.state.tracker.find(event.key)
        return entry is not None and entry.state.find_created(event.pid) is not None

    # --- calls to containerd, whose results are processed after the events received before them ---

    def _run_due_calls(self) -> None:
        now = self.state.clock.now()
        if queries := self.state.tracker.due_queries(now):
            self._tasks.create_task(self.query(queries))
        if not self._checking_starts and (checks := self.state.tracker.due_start_checks(now)):
            self._checking_starts = True  # one round at a time: a listing may take long
            self._tasks.create_task(self._check_starts(checks))

    async def query(self, queries: Sequence[TaskQuery]) -> None:
        """Query tasks, and wait until the results are processed."""
        results = await self.query_results(queries)
        self.state.event_queue.put_call(lambda: self.journal.publish(self.apply_results(results)))
        await self.state.event_queue.wait_processed()

    async def query_results(self, queries: Sequence[TaskQuery]) -> list[QueryResult]:
        """Query tasks; if there is none, and no exit of the container is known, request CRI's record of it."""
        tasks = await query_tasks(self.state.client, [query.key for query in queries], self.query_semaphore)
        unseen = [
            query.key
            for query, task in zip(queries, tasks, strict=True)
            if task is None and is_end_unseen(self.state.tracker.find(query.key))
        ]
        recorded = await self.state.cri.recorded_exits(unseen)
        return [QueryResult(query, task, recorded.get(query.key)) for query, task in zip(queries, tasks, strict=True)]

    def apply_results(self, results: Iterable[QueryResult], metadata: Iterable[Metadata] = ()) -> list[Transition]:
        """Apply the results of queries, and the metadata of unknown containers; return the transitions that follow."""
        state, now = self.state, self.state.clock.now()
        for each in metadata:
            state.tracker.update_metadata(each)
        transitions: list[Transition] = []
        for query, result, recorded in results:
            if not state.is_watched(query.key.namespace):
                continue  # not watched any more since the query was made
            if isinstance(result, BridgeError):
                state.ignored_events.query_failed(query.key, result)
                state.tracker.query_failed(query)
            else:
                transitions += state.tracker.apply_query_result(query, result, now, recorded)
                if result is not None:
                    self._wait_for_exit(query.key, result.pid)
        if state.synced:
            state.ignored_events.starts_inferred(transitions, state.tracker.connected_at)
        return transitions

    async def _check_starts(self, checks: Sequence[TaskQuery]) -> None:
        state = self.state
        task_counts = Counter(entry.key.namespace for entry, _ in state.tracker.incarnations())
        results = await find_tasks(state.client, [check.key for check in checks], task_counts, self.query_semaphore)
        state.event_queue.put_call(lambda: self._apply_start_checks(zip(checks, results, strict=True)))

    def _apply_start_checks(self, results: Iterable[tuple[TaskQuery, Task | BridgeError | None]]) -> None:
        self._checking_starts = False
        state, now = self.state, self.state.clock.now()
        for check, result in results:
            if isinstance(result, BridgeError):
                state.ignored_events.query_failed(check.key, result)
            task = None if isinstance(result, BridgeError) else result
            if state.tracker.apply_start_check(check, task, now) and task is not None:
                self._exit_waits.add(check.key, task.pid)

    # --- waits for exits ---

    def wait_for_exits(self, tasks: Iterable[Task]) -> None:
        """Wait for the exits of the listed tasks."""
        for task in tasks:
            self._wait_for_exit(task.key, task.pid)

    def _wait_for_exit(self, key: ContainerKey, pid: int) -> None:
        """Wait for the exit of the task that containerd has just reported, if the tracked one is the same."""
        entry = self.state.tracker.find(key)
        if entry is None or not pid or entry.current_pid != pid or entry.has_waited_exit(pid):
            return
        if not self._exit_waits.has_any(key):
            self._exit_waits.add(entry.key, pid)

    def _is_replaced(self, key: ContainerKey, pid: int) -> bool:
        entry = self.state.tracker.find(key)
        return entry is not None and entry.current_pid not in (0, pid)

    def _report_exit(self, key: ContainerKey, pid: int, exit_status: ExitStatus) -> None:
        self.state.event_queue.put_call(lambda: self._apply_wait(key, pid, exit_status), keep=True)  # an exit is final

    def _apply_wait(self, key: ContainerKey, pid: int, exit_status: ExitStatus) -> None:
        """Apply an exit. If it is that of an earlier task with the same pid, continue to wait for the present one."""
        entry, exited_at = self.state.tracker.find(key), exit_status.exited_at
        if entry is not None and entry.current_pid == pid and exited_at and entry.state.is_over(pid, exited_at):
            self._exit_waits.repeat(key, pid)
            return
        self._exit_waits.remove(key, pid)
        self.state.tracker.apply_wait_result(key, pid, exit_status, self.state.clock.now())
