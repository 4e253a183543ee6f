"""One connection to containerd: subscribe, list and reconcile; then follow, verify and audit until it breaks.

The listing is taken between two markers, the low and the high watermark, as in Debezium's incremental snapshots.
``_apply`` processes all items, one by one in the order of the event queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache

import structlog

from bridge.core.encode import Coverage, Gap
from bridge.core.errors import BridgeError
from bridge.core.events import Reason
from bridge.core.lives import Transition
from bridge.core.model import ContainerEvent, Event, Ignored, Instant, Mark, TaskCreated, Undecodable
from bridge.core.ports import Clock, Source, Stream
from bridge.core.reconcile import Listing, reconcile, rescope, unproven
from bridge.core.tracker import Tracker
from bridge.tasks import together
from bridge.watch.audit import Auditor
from bridge.watch.endings import Endings
from bridge.watch.intake import Answers, Audited, Intake, Item, Proven, Sighting, Witnessed
from bridge.watch.journal import Journal
from bridge.watch.listing import ask_all, list_all
from bridge.watch.marks import Marks
from bridge.watch.oddities import Oddities
from bridge.watch.requests import Asked, Requests, SnapshotTaken
from bridge.watch.settings import WatchSettings

STOP_SECONDS = 1.0  # for fetches that are running when the bridge stops
ROUNDS = 5  # of task queries before a snapshot is completed as partial
_NAMESPACES = 1024  # cached results of the namespace filter
_SECOND = 1_000_000_000
_NO_CONTAINERS = (Mark, Ignored, Undecodable)
_log = structlog.get_logger(__name__)


class Session:
    """Follow one containerd from the start of a subscription to its end.

    ``pending_transitions`` are not published yet: they go into the next snapshot, possibly of the next session.
    ``watermark_at`` is the moment (wall clock) up to which no event was missed; None before the first watermark.
    """

    def __init__(
        self,
        *,
        source: Source,
        clock: Clock,
        settings: WatchSettings,
        tracker: Tracker,
        intake: Intake,
        journal: Journal,
        requests: Requests,
        oddities: Oddities,
        missed: list[Transition],
        proven_at: int | None,
    ) -> None:
        self.proven_at = proven_at
        self.live = False
        self._source = source
        self._clock = clock
        self._settings = settings
        self._tracker = tracker
        self._intake = intake
        self._journal = journal
        self._missed = missed
        self._oddities = oddities
        self._requests = requests
        self._taken: list[tuple[Asked, SnapshotTaken]] = []  # requests with a snapshot that is not persisted yet
        self._marks = Marks(source, clock, settings.mark_timeout, lambda: intake.full)
        self._gate = asyncio.Semaphore(settings.questions)
        self._auditor = Auditor(source, clock, settings, tracker, intake, requests, self._gate)
        self._watched = lru_cache(maxsize=_NAMESPACES)(settings.namespaces)
        self._endings = Endings(source, lambda key, pid, end: intake.answer(Witnessed(key, pid, end)))
        self._asked = 0
        self._adopted = tracker.adopted

    @property
    def proven(self) -> int | None:
        """Return the watermark of this connection on the monotonic clock; None before the first one."""
        return self._marks.proven

    async def run(self, reason: Reason) -> None:
        """Connect, publish a snapshot for ``reason``, and follow.

        Raises:
            TransientError: The connection broke; all events received before are queued, processed or published.
        """
        stream = await self._source.subscribe()
        try:
            async with together() as tasks:
                self._intake.connect(self._source)
                tasks.create_task(self._drain(stream))
                await self._begin(tasks, reason)
                tasks.create_task(self._prove())
                tasks.create_task(self._auditor.run())
                await self._follow(tasks)
        finally:
            self._endings.close()
            stream.close()
            self._intake.put(self._sort(stream.rest())[0])

    def reload(self, settings: WatchSettings) -> None:
        """Apply other settings; the snapshot that follows reevaluates which containers are in scope."""
        self._settings = self._auditor.settings = settings
        self._watched = lru_cache(maxsize=_NAMESPACES)(settings.namespaces)

    def absorb(self) -> None:
        """Process the received items that do not need containerd any more."""
        self._decide_all()

    async def conclude(self) -> None:
        """Process all received events before the bridge stops, with the metadata that arrives within a short time."""
        await self._intake.look_ups_done(STOP_SECONDS)
        now = self._clock.now()
        for event in self._intake.give_up():
            self._decide(event, now)
        if self._journal.ledger.sequence:  # an epoch begins with a snapshot
            self._journal.tell(self._missed)
            self._missed.clear()

    # --- receiving ---

    async def _drain(self, stream: Stream) -> None:
        """Receive from the stream without pause, and queue the events."""
        while True:
            events, markers = self._sort(await stream.batch())
            for event in events:
                if isinstance(event, TaskCreated):
                    self._endings.expect(event.key, event.pid)
            self._marks.arrived()
            await self._intake.admit(events)
            for marker in markers:
                if not self._marks.returned(marker):
                    self._oddities.note(marker)

    def _sort(self, batch: Sequence[Event]) -> tuple[list[ContainerEvent], list[Mark]]:
        """Split a batch into events of watched containers and markers; record the rest as ignored."""
        events: list[ContainerEvent] = []
        markers: list[Mark] = []
        for event in batch:
            if not isinstance(event, _NO_CONTAINERS):
                if self._watched(event.key.namespace):
                    events.append(event)
            elif isinstance(event, Mark):
                markers.append(event)
            else:
                self._oddities.note(event)
        return events, markers

    async def _prove(self) -> None:
        """Verify the stream at intervals: only a marker distinguishes a hung containerd from an idle one."""
        while True:
            await self._clock.sleep(self._settings.mark_interval)
            self.proven_at = await self._marks.prove()
            self._intake.answer(Proven(self.proven_at))

    # --- connecting ---

    async def _begin(self, tasks: asyncio.TaskGroup, reason: Reason) -> None:
        """Determine the current state, and publish it together with the missed transitions.

        The event queue is emptied all the time, because a marker returns behind the events before it.
        """
        since, settings = self.proven_at, self._settings
        await self._catch_up()
        gap = Gap(reason, since, self._clock.now().wall)
        listing = await self._list(tasks, settings)
        watermark_at = await self._catch_up()
        if filters_changed := self._journal.watched.scope != settings.scope:
            self._tracker.restrict(settings.namespaces, settings.rules)
            self._missed[:] = [transition.ruled(settings.rules) for transition in self._missed]
            self._journal.rescope(settings.scope)
        self._missed += reconcile(self._tracker, listing, self._clock.now(), rescoped=filters_changed)
        self._intake.know(listing.containers)
        await self._question(tasks)
        self._tracker.complete(set(listing.failed))
        count = self._publish(gap, Coverage(listing.namespaces, listing.failed, unproven(self._tracker)), self._missed)
        self._missed.clear()
        self.live, self.proven_at = True, watermark_at
        self._journal.proven(watermark_at)
        self._expect_endings()
        await self._journal.write()
        _log.info("synced", reason=reason, containers=count, namespaces=len(listing.namespaces), failed=listing.failed)

    def _expect_endings(self) -> None:
        for entry in self._tracker.entries():
            for pid in [entry.life.pid] if entry.life is not None else entry.created[-1:]:
                self._endings.expect(entry.key, pid)

    async def _list(self, tasks: asyncio.TaskGroup, settings: WatchSettings) -> Listing:
        """List everything; keep verifying the stream in the meantime, because a listing may take long."""
        listing = tasks.create_task(list_all(self._source, self._clock, settings))
        while not listing.done():
            await self._catch_up()
            await asyncio.wait([listing], timeout=self._settings.mark_interval)
        return listing.result()

    async def _catch_up(self) -> int:
        """Process all events that containerd sent before this call; return the watermark (wall clock)."""
        round_trip = asyncio.ensure_future(self._marks.prove())
        round_trip.add_done_callback(lambda _: self._intake.nudge())
        try:
            while not round_trip.done():
                await self._intake.wait()
                self._decide_all()
            target = self._intake.received
            while self._intake.taken < target:
                await self._intake.wait()
                self._decide_all()
            return round_trip.result()
        finally:
            round_trip.cancel()

    async def _question(self, tasks: asyncio.TaskGroup) -> None:
        """Query tasks for which listing, events and state conflict; repeat while events about them arrive."""
        for _ in range(ROUNDS):
            self._ask(tasks)
            if not self._asked:
                return
            while self._asked:
                await self._intake.wait()
                self._decide_all()

    # --- following ---

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._intake.wait(self._until_due())
            self._decide_all()
            self._tell(self._tracker.expire(self._clock.now()))
            self._ask(tasks)
            await self._journal.write()
            while self._taken:
                self._requests.done(*self._taken.pop())

    def _until_due(self) -> float | None:
        due = self._tracker.next_due()
        return None if due is None else max(0, due - self._clock.now().monotonic) / _SECOND

    def _ask(self, tasks: asyncio.TaskGroup) -> None:
        """Run the due queries in the background; the results arrive through the event queue."""
        queries = self._tracker.due_questions(self._clock.now())
        if not queries:
            return
        self._asked += 1

        async def query_all() -> None:
            results = await ask_all(self._source, [query.key for query in queries], self._gate)
            self._intake.answer(Answers(list(zip(queries, results, strict=True)), []))

        tasks.create_task(query_all())

    # --- processing ---

    def _decide_all(self) -> None:
        now = self._clock.now()
        for item in self._intake.take():
            self._decide(item, now)

    def _decide(self, item: Item, now: Instant) -> None:
        if isinstance(item, Sighting):
            if item.metadata is not None:
                self._tracker.learn(item.metadata)
            self._tell(self._tracker.step(item.event, now))
        elif isinstance(item, Witnessed):
            self._tracker.witness(item.key, item.pid, item.end, now)
        elif isinstance(item, Proven):
            self._journal.proven(item.at)
        elif item.audited is None:
            self._asked -= 1
            self._tell(self._take_answers(item, now))
        else:
            self._conclude_audit(item, item.audited, now)

    def _take_answers(self, item: Answers, now: Instant) -> list[Transition]:
        for metadata in item.records:
            self._tracker.learn(metadata)
        transitions: list[Transition] = []
        for query, result in item.answers:
            if not self._watched(query.key.namespace):
                continue  # not watched any more since the query was made
            if isinstance(result, BridgeError):
                self._oddities.unanswered(query.key, result)
                self._tracker.no_answer(query)
            else:
                transitions += self._tracker.answer(query, result, now)
        return transitions

    def _conclude_audit(self, item: Answers, audited: Audited, now: Instant) -> None:
        """Publish the repairs of an audit, or the requested snapshot."""
        listing, repairs = audited.listing, []
        if audited.scope is not None:
            repairs += self._rescope(audited, audited.scope, now)
        repairs += self._take_answers(item, now)
        self._expect_endings()
        self._tracker.complete(set(listing.failed))
        if repairs or self._tracker.adopted != self._adopted or audited.forced:
            coverage = Coverage(listing.namespaces, listing.failed, unproven(self._tracker))
            count = self._publish(audited.gap, coverage, repairs)
            _log.info("snapshot_published", reason=audited.gap.reason, containers=count, repairs=len(repairs))
            if audited.asked is not None:
                self._taken.append((audited.asked, SnapshotTaken(self._journal.ledger.snapshot_id, count)))

    def _rescope(self, audited: Audited, scope: str, now: Instant) -> list[Transition]:
        """Reevaluate which containers are in scope: from now on the current filters apply."""
        self._tracker.restrict(self._settings.namespaces, self._settings.rules)
        repairs = rescope(self._tracker, audited.listing, audited.gap.until or 0, now)
        self._intake.know(audited.listing.containers)
        self._journal.rescope(scope)
        return repairs

    def _tell(self, transitions: list[Transition]) -> None:
        """Append transitions to the journal once synced; until then, keep them for the snapshot."""
        if self.live:
            self._journal.tell(transitions)
        else:
            self._missed += transitions

    def _publish(self, gap: Gap, coverage: Coverage, transitions: list[Transition]) -> int:
        now = self._clock.now()
        snapshot_records = self._tracker.rows(now)
        self._journal.snapshot(gap, coverage, transitions, snapshot_records, now.wall)
        self._adopted = self._tracker.adopted
        return len(snapshot_records)
