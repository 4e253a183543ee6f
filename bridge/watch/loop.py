"""The watch: one session after another, for as long as the bridge runs; what it knows outlives each of them."""

from __future__ import annotations

import asyncio

import structlog

from bridge.core.encode import Coverage, Gap, Ledger
from bridge.core.errors import StreamOverflowError, TransientError
from bridge.core.events import Reason
from bridge.core.lives import Transition
from bridge.core.model import Engine
from bridge.core.ports import Clock, Outbox, Source
from bridge.core.tracker import Tracker
from bridge.retry import Backoff, Failure, forever
from bridge.telemetry.sparingly import Sparingly
from bridge.watch.intake import Intake
from bridge.watch.journal import Journal
from bridge.watch.oddities import Oddities
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
        self._sparingly = Sparingly(clock)

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
            session.absorb()
            self._tracker.disconnect()
            self._proven_at = session.proven_at
            await journal.write()

    async def _recognise(self, engine: Engine) -> Journal:
        """Go on under the source's name; where another containerd answers, end the old one's lives first."""
        known, journal = self._engine, self._journal
        if known is None or journal is None:
            journal = self._open(engine, self._clock.now().wall // _MILLISECOND)
        elif engine.id not in (known.id, ""):
            await self._replace(journal)
            epoch = max(journal.ledger.epoch + 1, self._clock.now().wall // _MILLISECOND)
            journal = self._open(engine, epoch)
        else:
            journal.ledger.set_engine(engine)
        self._engine, self._journal = engine, journal
        return journal

    def _open(self, engine: Engine, epoch: int) -> Journal:
        _log.info("engine", id=engine.id, version=engine.version, api=engine.api, epoch=epoch)
        return Journal(Ledger(self._settings.host, engine, epoch), self._outbox)

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
        await journal.write()
        self._missed.clear()
        self._tracker = Tracker(self._boot_id, self._settings.publishes)
        self._proven_at, self._reason = None, "start"

    def _complain(self, failure: Failure) -> None:
        text = str(failure.error)
        self._sparingly.say(_log.warning, text, "waiting_for_containerd", error=text, failures=failure.in_a_row)
