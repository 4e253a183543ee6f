"""The watch: one session after another, for as long as the bridge runs; what it knows outlives each of them.

With an outbox that lasts it outlives the process, too: the first session goes on as after a broken connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from bridge.core.encode import Coverage, Gap, Ledger
from bridge.core.errors import StreamOverflowError, TransientError
from bridge.core.events import Previous, Reason
from bridge.core.lives import Transition
from bridge.core.memory import SourceName, Watched
from bridge.core.model import Engine
from bridge.core.ports import Clock, Outbox, Source
from bridge.core.tracker import Tracker
from bridge.retry import Backoff, Failure, forever
from bridge.telemetry.sparingly import Sparingly
from bridge.watch.intake import Intake
from bridge.watch.journal import Journal
from bridge.watch.oddities import Oddities
from bridge.watch.past import Past, recall
from bridge.watch.requests import Requests
from bridge.watch.session import Session
from bridge.watch.settings import WatchSettings

BACKOFF = Backoff(first=0.1, most=2.0, steady=5.0)  # so that one is live within 5 s of containerd's return
_MILLISECOND = 1_000_000
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
        self.failure: str | None = None  # why containerd could not be watched last, until it is again
        self._source = source
        self._outbox = outbox
        self._clock = clock
        self._settings = settings
        self._boot_id = boot_id
        self._tracker = Tracker(boot_id, settings.publishes)
        self._intake = Intake(settings.rules, settings.lookups, clock)
        self._missed: list[Transition] = []
        self._proven_at: int | None = None
        self._reason: Reason = "start"
        self._engine: Engine | None = None
        self._journal: Journal | None = None
        self._positions: dict[SourceName, Previous | None] = {}
        self._sparingly = Sparingly(clock)
        self._current: Session | None = None

    @property
    def live(self) -> bool:
        """Whether the first snapshot of the current connection is complete."""
        return self._current is not None and self._current.live

    async def run(self) -> None:
        """Watch until cancelled.

        Raises:
            FatalError: This containerd cannot be watched, for a reason that only a person can change.
        """
        await forever(self._session, clock=self._clock, backoff=BACKOFF, before_sleep=self._complain)

    async def _session(self) -> None:
        journal = await self._recognise(await self._source.engine())
        session = Session(
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
        self._current = session
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
            self._current = None
            session.absorb()
            self._tracker.disconnect()
            self._proven_at = session.proven_at
            await journal.write(remember=not self._missed, all_=True)

    async def _recognise(self, engine: Engine) -> Journal:
        """Go on under the source's name; where another containerd answers, end the old one's lives first."""
        known, journal = self._engine, self._journal
        if known is None or journal is None:
            journal = await self._start(engine)
        elif engine.id not in (known.id, ""):
            await self._replace(journal)
            journal = self._open(engine, self._epoch(journal.ledger.epoch + 1))
        else:
            journal.follow(engine)
        self._engine, self._journal = engine, journal
        return journal

    async def _start(self, engine: Engine) -> Journal:
        """Go on where an earlier process ended, as far as that was this containerd's and this boot's."""
        past = recall(self._outbox.recall(), self._settings)
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
            self._tracker = tracker
        else:
            _log.info("rebooted", lives=sum(1 for _ in tracker.lives()))
            self._missed += tracker.end_all(self._clock.now())
            self._tracker.complete(set())  # whoever lives now is a newborn
            outdated = outdated + past.keys
        return self._open(engine, epoch, outdated)

    async def _end_source(self, past: Past, watched: Watched, engine: Engine, epoch: int) -> None:
        """Tell the readers of another source, under its name, that nothing lives there any more.

        Where it is only the host that is called something else now, nobody has died.
        """
        _log.warning("source_replaced", host=watched.host, engine=watched.engine.id)
        now = self._clock.now()
        tracker = past.tracker(self._settings, now)
        deaths = tracker.end_all(now)
        ledger = Ledger(watched.host, watched.engine, epoch, previous=past.previous(watched.source))
        journal = Journal(ledger, self._outbox, tracker, watched, proven_at=past.proven_at, outdated=past.outdated)
        gap = Gap(past.reason, past.proven_at, now.wall)
        told = deaths if engine.id != watched.engine.id else []
        journal.snapshot(gap, Coverage([], [], False), told, [], now.wall)
        await journal.write()

    async def _replace(self, journal: Journal) -> None:
        """Another engine stands in the old one's place: its containers cannot live any more."""
        now = self._clock.now()
        _log.warning("engine_replaced")
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
        self._tracker = Tracker(self._boot_id, self._settings.publishes)
        self._proven_at, self._reason = None, "start"

    def _epoch(self, least: int) -> int:
        """Return an epoch greater than any before, although the clock may have been set back."""
        return max(least, self._clock.now().wall // _MILLISECOND)

    def _open(self, engine: Engine, epoch: int, outdated: Sequence[str] = ()) -> Journal:
        _log.info("engine", id=engine.id, version=engine.version, api=engine.api, epoch=epoch)
        watched = Watched(self._settings.host, engine, self._boot_id, self._settings.scope, None)
        ledger = Ledger(self._settings.host, engine, epoch, previous=self._positions.get(watched.source))
        return Journal(ledger, self._outbox, self._tracker, watched, proven_at=self._proven_at, outdated=outdated)

    def _complain(self, failure: Failure) -> None:
        self.failure = text = str(failure.error)
        self._sparingly.say(_log.warning, text, "waiting_for_containerd", error=text, failures=failure.in_a_row)
