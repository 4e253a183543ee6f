"""The watch: one session after another, for as long as the bridge runs; what it knows outlives each of them.

With an outbox that lasts it outlives the process, too: the first session goes on as after a broken connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import structlog

from bridge.core import memory
from bridge.core.encode import Coverage, Gap, Ledger
from bridge.core.errors import StreamOverflowError, TransientError
from bridge.core.events import Previous, Proof, Reason
from bridge.core.lives import Entry, Transition
from bridge.core.memory import SourceName, Watched
from bridge.core.model import Engine
from bridge.core.ports import Clock, Outbox, Source
from bridge.core.tracker import Tracker
from bridge.retry import Backoff, Failure, forever
from bridge.telemetry.sparingly import Sparingly
from bridge.telemetry.tally import Tally
from bridge.watch.intake import Intake
from bridge.watch.journal import Journal
from bridge.watch.oddities import Oddities
from bridge.watch.past import Past, recall
from bridge.watch.requests import Requests, SnapshotTaken
from bridge.watch.session import Session
from bridge.watch.settings import WatchSettings

BACKOFF = Backoff(first=0.1, most=2.0, steady=5.0)  # so that one is live within 5 s of containerd's return
SNAPSHOT_SECONDS = 30.0  # for containerd to be connected, for whoever asks for a snapshot
_MILLISECOND = 1_000_000
_SECOND = 1_000_000_000
_log = structlog.get_logger(__name__)


class Watch:
    """Watches one containerd and writes what happens to the outbox.

    Args:
        source: The containerd.
        outbox: Where records go.
        clock: Time and chance.
        settings: How to watch.
        boot_id: The host's boot, part of each incarnation.
    """

    def __init__(self, source: Source, outbox: Outbox, clock: Clock, settings: WatchSettings, boot_id: str) -> None:
        self.requests = Requests()
        self.oddities = Oddities(clock)
        self.tally = Tally()
        self.engine: Engine | None = None
        self.failure: str | None = None  # why containerd could not be watched last, until it is again
        self._source = source
        self._outbox = outbox
        self._clock = clock
        self._settings = settings
        self._boot_id = boot_id
        self._tracker = Tracker(boot_id, settings.extras)
        self._intake = Intake(settings, clock)
        self._missed: list[Transition] = []
        self._proven_at: int | None = None
        self._reason: Reason = "start"
        self._journal: Journal | None = None
        self._session: Session | None = None
        self._positions: dict[SourceName, Previous | None] = {}
        self._sparingly = Sparingly(clock)
        self._proven: int | None = None  # by the connections before the current one

    # --- for whoever looks after the bridge ---

    @property
    def live(self) -> bool:
        """Whether the first snapshot of the current connection is complete."""
        return self._session is not None and self._session.live

    @property
    def proof_age(self) -> float | None:
        """For how many seconds nothing has proven that the stream works; None before the first proof."""
        proven = (self._session and self._session.proven) or self._proven
        return None if proven is None else (self._clock.now().monotonic - proven) / _SECOND

    @property
    def proof_limit(self) -> float:
        """How old a proof grows at the most, in seconds, while the stream works and is kept up with."""
        return self._settings.mark_interval + self._settings.mark_timeout

    @property
    def counts(self) -> Counter[str]:
        """What came of containerd's events that were not told, by what they were."""
        return self._tracker.counts + self.oddities.counts

    def portfolio(self) -> list[Transition]:
        """Return a row for every living container in scope."""
        return self._tracker.portfolio(self._clock.now())

    def states(self) -> Iterator[bool]:
        """Tell of each of them whether it is paused."""
        return (life.paused for _, life in self._tracker.lives() if life.told)

    # --- watching ---

    async def run(self) -> None:
        """Watch until cancelled.

        Raises:
            FatalError: This containerd cannot be watched, for a reason that only a person can change.
        """
        await forever(self._connect, clock=self._clock, backoff=BACKOFF, before_sleep=self._complain)

    @property
    def proof(self) -> Proof | None:
        """Up to when all that containerd had told is written down; it stands still while containerd is away."""
        return self._journal.proof if self._journal is not None else None

    def request(self, reason: Reason) -> None:
        """Have a snapshot taken soon."""
        self.requests.ask(reason)

    async def snapshot(self) -> SnapshotTaken:
        """Take a snapshot, and wait until it is written down; who asks at the same time shares it.

        Raises:
            TransientError: containerd is not connected, and was not for as long as this waits.
        """
        taken = self.requests.ask("on_demand")
        while not taken.done():
            waiting: list[asyncio.Future[Any]] = [taken, asyncio.ensure_future(self._clock.sleep(SNAPSHOT_SECONDS))]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting[1].cancel()
            if not taken.done() and not self.live:
                raise TransientError(
                    f"snapshot timed out after {SNAPSHOT_SECONDS:g} s: containerd is not connected; "
                    "the snapshot stays queued"
                )
        return taken.result()

    def reload(self, settings: WatchSettings) -> None:
        """Go on under other settings of the same host; where filters or rules are others, a snapshot follows.

        Labels that the rules do not let through any more are told no more from this moment on.
        """
        other_filters = settings.scope != self._settings.scope
        if other_filters:
            self._tracker.rule(settings.rules)
            self._missed[:] = [each.ruled(settings.rules) for each in self._missed]
        self._settings = self._intake.settings = settings
        self._tracker.extras = settings.extras
        if self._session is not None:
            self._session.reload(settings)
        if other_filters and self._journal is not None:
            self.requests.ask("filters_changed")

    async def _connect(self) -> None:
        journal = await self._recognise(await self._source.engine())
        session = self._session = Session(
            source=self._source,
            clock=self._clock,
            settings=self._settings,
            tracker=self._tracker,
            intake=self._intake,
            journal=journal,
            requests=self.requests,
            oddities=self.oddities,
            missed=self._missed,
            proven_at=self._proven_at,
        )
        try:
            await session.run(self._reason)
        except asyncio.CancelledError:
            await session.conclude()
            raise
        except StreamOverflowError:
            self._reason = "overflow"
            raise
        except TransientError:
            if session.live:
                self._reason = "reconnect"
            raise
        finally:
            self._session = None
            session.absorb()
            self._tracker.disconnect()
            self._proven_at = session.proven_at
            self._proven = session.proven or self._proven
            self.tally.reconnects += session.live
            await journal.write(remember=not self._missed, all_=True)

    async def _recognise(self, engine: Engine) -> Journal:
        """Go on under the source's name; where another containerd answers, end the old one's lives first."""
        known, journal = self.engine, self._journal
        if known is None or journal is None:
            journal = await self._start(engine)
        elif engine.id not in (known.id, ""):
            await self._replace(journal)
            journal = self._open(engine, self._epoch(journal.ledger.epoch + 1))
        else:
            journal.follow(engine)
        self.engine, self._journal = engine, journal
        return journal

    async def _start(self, engine: Engine) -> Journal:
        """Go on where an earlier process ended, as far as that was this containerd's and this boot's."""
        past = recall(self._outbox.recall())
        self._reason, watched, epoch = past.reason, past.watched, self._epoch(past.least_epoch)
        self._positions = {source: past.previous(source) for source in past.positions}
        outdated = past.outdated
        if watched is None:
            return self._open(engine, epoch, outdated)
        if (watched.host, watched.engine.id) != (self._settings.host, engine.id or watched.engine.id):
            await self._end_source(past, watched, engine, epoch)
            return self._open(engine, epoch + 1)
        self._proven_at = past.proven_at
        tracker = past.tracker(self._settings, self._clock.now())
        if watched.boot_id == self._boot_id:
            self._adopt(tracker)
        else:
            _log.info("host_rebooted", containers=sum(1 for _ in tracker.lives()))
            records = [
                Entry(each.key, each.metadata, announced=each.announced)
                for each in tracker.entries()
                if each.metadata is not None and not each.deleted
            ]
            self._missed += tracker.end_all(self._clock.now())
            self._tracker.restore(records, set(), self._clock.now())  # whoever lives now is a newborn
            kept = {memory.key_of_record(each.key) for each in records}
            outdated = outdated + [key for key in past.keys if key not in kept]
        return self._open(engine, epoch, outdated, watched.scope)

    async def _end_source(self, past: Past, watched: Watched, engine: Engine, epoch: int) -> None:
        """Tell the readers of another source, under its name, that nothing lives there any more.

        Where it is only the host that is called something else now, nobody has died.
        """
        _log.warning("checkpoint_source_mismatch", host=watched.host, engine=watched.engine.id)
        now = self._clock.now()
        tracker = past.tracker(self._settings, now)
        deaths = tracker.end_all(now)
        ledger = Ledger(watched.host, watched.engine, epoch, previous=past.previous(watched.source))
        journal = Journal(
            ledger, self._outbox, tracker, self.tally, watched, proven_at=past.proven_at, outdated=past.outdated
        )
        gap = Gap(past.reason, past.proven_at, now.wall)
        told = deaths if engine.id != watched.engine.id else []
        journal.snapshot(gap, Coverage([], [], False), told, [], now.wall)
        await journal.write()

    async def _replace(self, journal: Journal) -> None:
        """Another engine stands in the old one's place: its containers cannot live any more."""
        now = self._clock.now()
        _log.warning("containerd_replaced")
        for item in self._intake.give_up():
            if item.metadata is not None:
                self._tracker.learn(item.metadata)
            self._missed += self._tracker.step(item.event, now)
        self._missed += self._tracker.end_all(now)
        gap = Gap("reconnect", self._proven_at, now.wall)
        journal.snapshot(gap, Coverage([], [], False), self._missed, [], now.wall)
        self._missed.clear()
        await journal.write()
        self._positions[journal.watched.source] = journal.ledger.position
        self._adopt(Tracker(self._boot_id, self._settings.extras))
        self._proven_at, self._reason = None, "start"

    def _adopt(self, tracker: Tracker) -> None:
        """Go on with another tracker, which goes on counting."""
        tracker.counts = self._tracker.counts
        self._tracker = tracker

    def _epoch(self, least: int) -> int:
        """Return an epoch greater than any before, although the clock may have been set back."""
        return max(least, self._clock.now().wall // _MILLISECOND)

    def _open(self, engine: Engine, epoch: int, outdated: Sequence[str] = (), scope: str | None = None) -> Journal:
        _log.info("containerd_connected", engine=engine.id, version=engine.version, api=engine.api, epoch=epoch)
        scope = self._settings.scope if scope is None else scope
        watched = Watched(self._settings.host, engine, self._boot_id, scope, None)
        ledger = Ledger(self._settings.host, engine, epoch, previous=self._positions.get(watched.source))
        return Journal(
            ledger, self._outbox, self._tracker, self.tally, watched, proven_at=self._proven_at, outdated=outdated
        )

    def _complain(self, failure: Failure) -> None:
        text = self.failure = str(failure.error)
        self._sparingly.say(_log.warning, text, "containerd_unavailable", error=text, consecutive=failure.in_a_row)
