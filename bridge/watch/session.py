"""One connection to containerd: subscribe, mark, list, mark, reconcile; then follow, prove and audit till it breaks.

Everything that is decided is decided in one place, ``_decide``, item by item in the order of the intake.
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

STOP_SECONDS = 1.0  # for look-ups that are under way as the bridge stops
ROUNDS = 5  # of questions before a snapshot is completed all the same, as partial
_NAMESPACES = 1024  # whose names are remembered, and whether they are watched
_SECOND = 1_000_000_000
_NO_CONTAINERS = (Mark, Ignored, Undecodable)
_log = structlog.get_logger(__name__)


class Session:
    """Follows one containerd from one subscription to its end.

    ``missed`` holds what was decided and not told yet: it goes into the next snapshot, be it the next session's.
    ``proven_at`` is the wall-clock moment up to which nothing was missed; None before the first proof.
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
        self._taken: list[tuple[Asked, SnapshotTaken]] = []  # snapshots that are not written down yet, for who asked
        self._marks = Marks(source, clock, settings.mark_timeout, lambda: intake.full)
        self._gate = asyncio.Semaphore(settings.questions)
        self._auditor = Auditor(source, clock, settings, tracker, intake, requests, self._gate)
        self._watched = lru_cache(maxsize=_NAMESPACES)(settings.namespaces)
        self._endings = Endings(source, lambda key, pid, end: intake.answer(Witnessed(key, pid, end)))
        self._asked = 0
        self._adopted = tracker.adopted

    @property
    def proven(self) -> int | None:
        """The moment (monotonic) up to which this connection's stream is proven."""
        return self._marks.proven

    async def run(self, reason: Reason) -> None:
        """Connect, publish a snapshot for ``reason``, and follow.

        Raises:
            TransientError: The connection broke; everything received before is in the intake, decided on or told.
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
        """Go on under other settings; who is told of is decided anew by the snapshot that is to follow."""
        self._settings = self._auditor.settings = settings
        self._watched = lru_cache(maxsize=_NAMESPACES)(settings.namespaces)

    def absorb(self) -> None:
        """Decide on what was received and can be decided on without containerd."""
        self._decide_all()

    async def conclude(self) -> None:
        """The bridge stops: decide on everything that was received, with what can be learned of it in short time."""
        await self._intake.look_ups_done(STOP_SECONDS)
        now = self._clock.now()
        for sighting in self._intake.give_up():
            self._decide(sighting, now)
        if self._journal.ledger.sequence:  # an epoch begins with a snapshot
            self._journal.tell(self._missed)
            self._missed.clear()

    # --- receiving ---

    async def _drain(self, stream: Stream) -> None:
        """Take from the stream whatever there is, whether or not anyone has time for it."""
        while True:
            events, marks = self._sort(await stream.batch())
            for event in events:
                if isinstance(event, TaskCreated):
                    self._endings.expect(event.key, event.pid)
            self._marks.arrived()
            await self._intake.admit(events)
            for mark in marks:
                if not self._marks.returned(mark):
                    self._oddities.note(mark)

    def _sort(self, batch: Sequence[Event]) -> tuple[list[ContainerEvent], list[Mark]]:
        """Part what concerns watched containers from the marks; the rest is noted."""
        events: list[ContainerEvent] = []
        marks: list[Mark] = []
        for event in batch:
            if not isinstance(event, _NO_CONTAINERS):
                if self._watched(event.key.namespace):
                    events.append(event)
            elif isinstance(event, Mark):
                marks.append(event)
            else:
                self._oddities.note(event)
        return events, marks

    async def _prove(self) -> None:
        """Keep proving that the stream works: nothing else tells a hung containerd from a quiet one."""
        while True:
            await self._clock.sleep(self._settings.mark_interval)
            self.proven_at = await self._marks.prove()
            self._intake.answer(Proven(self.proven_at))

    # --- connecting ---

    async def _begin(self, tasks: asyncio.TaskGroup, reason: Reason) -> None:
        """Find out how things are, and publish it with whatever was missed.

        All the while the intake is emptied: a mark comes back behind the events before it.
        """
        since, settings = self.proven_at, self._settings
        await self._catch_up()
        gap = Gap(reason, since, self._clock.now().wall)
        listing = await self._list(tasks, settings)
        proven_at = await self._catch_up()
        if rescoped := self._journal.watched.scope != settings.scope:
            self._tracker.restrict(settings.namespaces, settings.rules)
            self._missed[:] = [each.ruled(settings.rules) for each in self._missed]
            self._journal.rescope(settings.scope)
        self._missed += reconcile(self._tracker, listing, self._clock.now(), rescoped=rescoped)
        self._intake.know(listing.containers)
        await self._question(tasks)
        self._tracker.complete(set(listing.failed))
        rows = self._publish(gap, Coverage(listing.namespaces, listing.failed, unproven(self._tracker)), self._missed)
        self._missed.clear()
        self.live, self.proven_at = True, proven_at
        self._journal.proven(proven_at)
        self._expect_endings()
        await self._journal.write()
        _log.info("synced", reason=reason, containers=rows, namespaces=len(listing.namespaces), failed=listing.failed)

    def _expect_endings(self) -> None:
        for entry in self._tracker.entries():
            for pid in [entry.life.pid] if entry.life is not None else entry.created[-1:]:
                self._endings.expect(entry.key, pid)

    async def _list(self, tasks: asyncio.TaskGroup, settings: WatchSettings) -> Listing:
        """List everything; meanwhile keep proving that the stream works, since a listing may take its time."""
        listing = tasks.create_task(list_all(self._source, self._clock, settings))
        while not listing.done():
            await self._catch_up()
            await asyncio.wait([listing], timeout=self._settings.mark_interval)
        return listing.result()

    async def _catch_up(self) -> int:
        """Decide on all that containerd had told before now; return the moment up to which that is proven."""
        proof = asyncio.ensure_future(self._marks.prove())
        proof.add_done_callback(lambda _: self._intake.nudge())
        try:
            while not proof.done():
                await self._intake.wait()
                self._decide_all()
            target = self._intake.received
            while self._intake.taken < target:
                await self._intake.wait()
                self._decide_all()
            return proof.result()
        finally:
            proof.cancel()

    async def _question(self, tasks: asyncio.TaskGroup) -> None:
        """Ask for the tasks of which listing, events and memory disagree, again while events about them arrive."""
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
        """Have the questions that are due asked; the answers come through the intake."""
        questions = self._tracker.due_questions(self._clock.now())
        if not questions:
            return
        self._asked += 1

        async def ask() -> None:
            answers = await ask_all(self._source, [each.key for each in questions], self._gate)
            self._intake.answer(Answers(list(zip(questions, answers, strict=True)), []))

        tasks.create_task(ask())

    # --- deciding ---

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
        told: list[Transition] = []
        for question, answer in item.answers:
            if not self._watched(question.key.namespace):
                continue  # it was, when the question was asked
            if isinstance(answer, BridgeError):
                self._oddities.unanswered(question.key, answer)
                self._tracker.no_answer(question)
            else:
                told += self._tracker.answer(question, answer, now)
        return told

    def _conclude_audit(self, item: Answers, audited: Audited, now: Instant) -> None:
        """Publish what an audit had to repair, if anything, or what was asked for, as a snapshot."""
        listing, repairs = audited.listing, []
        if audited.scope is not None:
            repairs += self._rescope(audited, audited.scope, now)
        repairs += self._take_answers(item, now)
        self._expect_endings()
        self._tracker.complete(set(listing.failed))
        if repairs or self._tracker.adopted != self._adopted or audited.forced:
            coverage = Coverage(listing.namespaces, listing.failed, unproven(self._tracker))
            rows = self._publish(audited.gap, coverage, repairs)
            _log.info("snapshot_published", reason=audited.gap.reason, containers=rows, repairs=len(repairs))
            if audited.asked is not None:
                self._taken.append((audited.asked, SnapshotTaken(self._journal.ledger.snapshot_id, rows)))

    def _rescope(self, audited: Audited, scope: str, now: Instant) -> list[Transition]:
        """Decide anew who is told of: from here on it is those that the filters of today let through."""
        self._tracker.restrict(self._settings.namespaces, self._settings.rules)
        repairs = rescope(self._tracker, audited.listing, audited.gap.until or 0, now)
        self._intake.know(audited.listing.containers)
        self._journal.rescope(scope)
        return repairs

    def _tell(self, transitions: list[Transition]) -> None:
        """Tell at once when live; until then it belongs into the snapshot."""
        if self.live:
            self._journal.tell(transitions)
        else:
            self._missed += transitions

    def _publish(self, gap: Gap, coverage: Coverage, transitions: list[Transition]) -> int:
        now = self._clock.now()
        rows = self._tracker.rows(now)
        self._journal.snapshot(gap, coverage, transitions, rows, now.wall)
        self._adopted = self._tracker.adopted
        return len(rows)
