"""Watch containerd: run one session after another, with a tracked state that survives each session.

With a persistent outbox, the state survives the process as well: the first session continues as after a broken
connection.
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

BACKOFF = Backoff(first=0.1, most=2.0, steady=5.0)  # synced within 5 s of containerd's return
SNAPSHOT_SECONDS = 30.0  # for containerd to be connected when a snapshot is requested
_MILLISECOND = 1_000_000
_SECOND = 1_000_000_000
_log = structlog.get_logger(__name__)


class Watch:
    """Watch one containerd, and write records to the outbox.

    Args:
        client: The client of the containerd.
        outbox: The destination of records.
        clock: Time and randomness.
        settings: How to watch.
        boot_id: The boot id of the host, part of each incarnation id.
    """

    def __init__(self, source: Source, outbox: Outbox, clock: Clock, settings: WatchSettings, boot_id: str) -> None:
        self.requests = Requests()
        self.oddities = Oddities(clock)
        self.tally = Tally()
        self.engine: Engine | None = None
        self.failure: str | None = None  # of the last attempt to watch that failed
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
        self._proven: int | None = None  # of earlier connections

    # --- status ---

    @property
    def live(self) -> bool:
        """Return whether the first snapshot of the current connection is complete."""
        return self._session is not None and self._session.live

    @property
    def proof_age(self) -> float | None:
        """Return the age of the watermark in seconds; None before the first watermark."""
        watermark = (self._session and self._session.proven) or self._proven
        return None if watermark is None else (self._clock.now().monotonic - watermark) / _SECOND

    @property
    def proof_limit(self) -> float:
        """Return the maximum age of the watermark in seconds while the stream works and processing keeps up."""
        return self._settings.mark_interval + self._settings.mark_timeout

    @property
    def counts(self) -> Counter[str]:
        """Return the numbers of containerd's events that were not published, by reason."""
        return self._tracker.counts + self.oddities.counts

    def portfolio(self) -> list[Transition]:
        """Return a ``present`` record for every running container in scope, without counting it as published."""
        return self._tracker.portfolio(self._clock.now())

    def states(self) -> Iterator[bool]:
        """Return for each running container in scope whether it is paused."""
        return (incarnation.paused for _, incarnation in self._tracker.lives() if incarnation.told)

    # --- watching ---

    async def run(self) -> None:
        """Watch until canceled.

        Raises:
            FatalError: This containerd cannot be watched until an operator changes something.
        """
        await forever(self._connect, clock=self._clock, backoff=BACKOFF, before_sleep=self._complain)

    @property
    def proof(self) -> Proof | None:
        """Return the watermark up to which events are persisted; it stops while containerd is disconnected."""
        return self._journal.proof if self._journal is not None else None

    def request(self, reason: Reason) -> None:
        """Request a snapshot without waiting for it."""
        self.requests.ask(reason)

    async def snapshot(self) -> SnapshotTaken:
        """Take a snapshot, and wait until it is persisted; concurrent callers share it.

        Raises:
            TransientError: containerd is still not connected after ``SNAPSHOT_TIMEOUT_SECONDS``.
        """
        future = self.requests.ask("on_demand")
        while not future.done():
            waiting: list[asyncio.Future[Any]] = [future, asyncio.ensure_future(self._clock.sleep(SNAPSHOT_SECONDS))]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting[1].cancel()
            if not future.done() and not self.live:
                raise TransientError(
                    f"snapshot timed out after {SNAPSHOT_SECONDS:g} s: containerd is not connected; "
                    "the snapshot stays queued"
                )
        return future.result()

    def reload(self, settings: WatchSettings) -> None:
        """Apply other settings for the same host; if filters or label rules change, a snapshot follows.

        Labels that the new rules drop are not published from this moment on.
        """
        filters_changed = settings.scope != self._settings.scope
        if filters_changed:
            self._tracker.rule(settings.rules)
            self._missed[:] = [transition.ruled(settings.rules) for transition in self._missed]
        self._settings = self._intake.settings = settings
        self._tracker.extras = settings.extras
        if self._session is not None:
            self._session.reload(settings)
        if filters_changed and self._journal is not None:
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
        """Continue the known source; if another containerd responds, first publish the exits of all containers."""
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
        """Continue where an earlier process stopped, as far as containerd and boot are the same."""
        recovered = recall(self._outbox.recall())
        self._reason, header, epoch = recovered.reason, recovered.watched, self._epoch(recovered.least_epoch)
        self._positions = {source: recovered.previous(source) for source in recovered.positions}
        obsolete_keys = recovered.outdated
        if header is None:
            return self._open(engine, epoch, obsolete_keys)
        if (header.host, header.engine.id) != (self._settings.host, engine.id or header.engine.id):
            await self._end_source(recovered, header, engine, epoch)
            return self._open(engine, epoch + 1)
        self._proven_at = recovered.proven_at
        tracker = recovered.tracker(self._settings, self._clock.now())
        if header.boot_id == self._boot_id:
            self._adopt(tracker)
        else:
            _log.info("host_rebooted", containers=sum(1 for _ in tracker.lives()))
            states = [
                Entry(state.key, state.metadata, announced=state.announced)
                for state in tracker.entries()
                if state.metadata is not None and not state.deleted
            ]
            self._missed += tracker.end_all(self._clock.now())
            self._tracker.restore(states, set(), self._clock.now())  # all containers that run now are new
            kept_keys = {memory.key_of_record(state.key) for state in states}
            obsolete_keys = obsolete_keys + [key for key in recovered.keys if key not in kept_keys]
        return self._open(engine, epoch, obsolete_keys, header.scope)

    async def _end_source(self, past: Past, watched: Watched, engine: Engine, epoch: int) -> None:
        """Publish for the previous source that none of its containers is running.

        If only the host name has changed, no exits are published, because the containers are still running.
        """
        _log.warning("checkpoint_source_mismatch", host=watched.host, engine=watched.engine.id)
        now = self._clock.now()
        tracker = past.tracker(self._settings, now)
        exits = tracker.end_all(now)
        encoder = Ledger(watched.host, watched.engine, epoch, previous=past.previous(watched.source))
        journal = Journal(
            encoder, self._outbox, tracker, self.tally, watched, proven_at=past.proven_at, outdated=past.outdated
        )
        gap = Gap(past.reason, past.proven_at, now.wall)
        transitions = exits if engine.id != watched.engine.id else []
        journal.snapshot(gap, Coverage([], [], False), transitions, [], now.wall)
        await journal.write()

    async def _replace(self, journal: Journal) -> None:
        """Publish the exits of all containers after another containerd has replaced the old one."""
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
        """Replace the tracker, and keep its counts."""
        tracker.counts = self._tracker.counts
        self._tracker = tracker

    def _epoch(self, least: int) -> int:
        """Return an epoch greater than any earlier one, even if the clock was set back."""
        return max(least, self._clock.now().wall // _MILLISECOND)

    def _open(self, engine: Engine, epoch: int, outdated: Sequence[str] = (), scope: str | None = None) -> Journal:
        _log.info("containerd_connected", engine=engine.id, version=engine.version, api=engine.api, epoch=epoch)
        scope = self._settings.scope if scope is None else scope
        header = Watched(self._settings.host, engine, self._boot_id, scope, None)
        encoder = Ledger(self._settings.host, engine, epoch, previous=self._positions.get(header.source))
        return Journal(
            encoder, self._outbox, self._tracker, self.tally, header, proven_at=self._proven_at, outdated=outdated
        )

    def _complain(self, failure: Failure) -> None:
        text = self.failure = str(failure.error)
        self._sparingly.say(_log.warning, text, "containerd_unavailable", error=text, consecutive=failure.in_a_row)
