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

from bridge.core import checkpoint
from bridge.core.checkpoint import CheckpointHeader, SourceId
from bridge.core.container_state import ContainerState, Transition
from bridge.core.containerd_model import Engine
from bridge.core.errors import StreamOverflowError, TransientError
from bridge.core.ports import Clock, EngineClient, Outbox
from bridge.core.record_encoder import Gap, RecordEncoder, SnapshotCoverage
from bridge.core.records import SnapshotReason, SourcePosition, Watermark
from bridge.core.time import MILLISECOND, to_seconds
from bridge.core.tracker import Tracker
from bridge.retry import Backoff, Failure, retry_until_success
from bridge.telemetry.counters import Counters
from bridge.telemetry.rate_limit import RateLimiter
from bridge.watch.checkpoint_recovery import RecoveredState, recover
from bridge.watch.connection_session import Session
from bridge.watch.event_queue import EventQueue
from bridge.watch.ignored_events import IgnoredEvents
from bridge.watch.journal import Journal
from bridge.watch.other_bridges import OtherBridges
from bridge.watch.settings import WatchSettings
from bridge.watch.snapshot_requests import SnapshotRequests, SnapshotResult

BACKOFF = Backoff(initial=0.1, maximum=2.0, reset_after=5.0)  # synced within 5 s of containerd's return
SNAPSHOT_TIMEOUT_SECONDS = 30.0  # for containerd to be connected when a snapshot is requested
_log = structlog.get_logger(__name__)


class ContainerWatch:
    """Watch one containerd, and write records to the outbox.

    Args:
        client: The client of the containerd.
        outbox: The destination of records.
        clock: Time and randomness.
        settings: How to watch.
        boot_id: The boot id of the host, part of each incarnation id.
        publishes: Whether other bridges must know of this one, because consumers may read the records of both.
    """

    def __init__(
        self,
        client: EngineClient,
        outbox: Outbox,
        clock: Clock,
        settings: WatchSettings,
        boot_id: str,
        *,
        publishes: bool = True,
    ) -> None:
        self.requests = SnapshotRequests()
        self.ignored_events = IgnoredEvents(clock)
        self.other_bridges = OtherBridges(clock, settings.host, publishes=publishes)
        self.counters = Counters()
        self.engine: Engine | None = None
        self.last_error: str | None = None  # of the last attempt to watch that failed
        self._client = client
        self._outbox = outbox
        self._clock = clock
        self._settings = settings
        self._boot_id = boot_id
        self._tracker = Tracker(boot_id, settings.additional_events)
        self._event_queue = EventQueue(settings, clock)
        self._pending_transitions: list[Transition] = []
        self._watermark_at: int | None = None
        self._snapshot_reason: SnapshotReason = "start"
        self._journal: Journal | None = None
        self._session: Session | None = None
        self._previous_positions: dict[SourceId, SourcePosition | None] = {}
        self._rate_limiter = RateLimiter(clock)
        self._last_watermark_monotonic: int | None = None  # of earlier connections

    # --- status ---

    @property
    def synced(self) -> bool:
        """Return whether the first snapshot of the current connection is complete."""
        return self._session is not None and self._session.synced

    @property
    def excluded_namespaces(self) -> list[str]:
        """Return the namespaces that exist if none of them is watched; otherwise nothing."""
        return self._session.excluded_namespaces if self._session is not None else []

    @property
    def watermark_age(self) -> float | None:
        """Return the age of the watermark in seconds; None before the first watermark."""
        watermark = (self._session and self._session.watermark_monotonic) or self._last_watermark_monotonic
        return None if watermark is None else to_seconds(self._clock.now().monotonic - watermark)

    @property
    def max_watermark_age(self) -> float:
        """Return the maximum age of the watermark in seconds while the stream works and processing keeps up."""
        return self._settings.marker_interval + self._settings.marker_timeout

    @property
    def event_counts(self) -> Counter[str]:
        """Return the numbers of containerd's events that were not published, by reason."""
        return self._tracker.counts + self.ignored_events.counts

    def running_containers(self) -> list[Transition]:
        """Return a ``present`` record for every running container in scope, without counting it as published."""
        return self._tracker.running_containers(self._clock.now())

    def paused_flags(self) -> Iterator[bool]:
        """Return for each running container in scope whether it is paused."""
        return (incarnation.paused for _, incarnation in self._tracker.incarnations() if incarnation.in_scope)

    # --- watching ---

    async def run(self) -> None:
        """Watch until canceled.

        Raises:
            FatalError: This containerd cannot be watched until an operator changes something.
        """
        await retry_until_success(self._run_session, clock=self._clock, backoff=BACKOFF, before_sleep=self._log_failure)

    @property
    def watermark(self) -> Watermark | None:
        """Return the watermark up to which events are persisted; it stops while containerd is disconnected."""
        return self._journal.watermark if self._journal is not None else None

    def request_snapshot(self, reason: SnapshotReason) -> None:
        """Request a snapshot without waiting for it."""
        self.requests.request(reason)

    async def take_snapshot(self) -> SnapshotResult:
        """Take a snapshot, and wait until it is persisted; concurrent callers share it.

        Raises:
            TransientError: containerd is still not connected after ``SNAPSHOT_TIMEOUT_SECONDS``.
        """
        future = self.requests.request("on_demand")
        while not future.done():
            waiting: list[asyncio.Future[Any]] = [
                future,
                asyncio.ensure_future(self._clock.sleep(SNAPSHOT_TIMEOUT_SECONDS)),
            ]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting[1].cancel()
            if not future.done() and not self.synced:
                raise TransientError(
                    f"snapshot timed out after {SNAPSHOT_TIMEOUT_SECONDS:g} s: containerd is not connected; "
                    "the snapshot stays queued"
                )
        return future.result()

    def reload(self, settings: WatchSettings) -> None:
        """Apply other settings for the same host; if filters or label rules change, a snapshot follows.

        Labels that the new rules drop are not published from this moment on.
        """
        filters_changed = settings.filter_fingerprint != self._settings.filter_fingerprint
        if filters_changed:
            self._tracker.apply_label_rules(settings.label_rules)
            self._pending_transitions[:] = [
                transition.with_label_rules(settings.label_rules) for transition in self._pending_transitions
            ]
        self._settings = self._event_queue.settings = settings
        self._tracker.additional_events = settings.additional_events
        if self._session is not None:
            self._session.reload(settings)
        if filters_changed and self._journal is not None:
            self.requests.request("filters_changed")

    async def _run_session(self) -> None:
        journal = await self._identify_engine(await self._client.engine())
        session = self._session = Session(
            client=self._client,
            clock=self._clock,
            settings=self._settings,
            tracker=self._tracker,
            event_queue=self._event_queue,
            journal=journal,
            requests=self.requests,
            ignored_events=self.ignored_events,
            other_bridges=self.other_bridges,
            pending_transitions=self._pending_transitions,
            watermark_at=self._watermark_at,
        )
        try:
            await session.run(self._snapshot_reason)
        except asyncio.CancelledError:
            await session.shut_down()
            raise
        except StreamOverflowError:
            self._snapshot_reason = "overflow"
            raise
        except TransientError:
            if session.synced:
                self._snapshot_reason = "reconnect"
            raise
        finally:
            self._session = None
            session.apply_ready()
            self._tracker.disconnect()
            self._watermark_at = session.watermark_at
            self._last_watermark_monotonic = session.watermark_monotonic or self._last_watermark_monotonic
            self.counters.reconnects += session.synced
            await journal.write(save_checkpoint=not self._pending_transitions, force=True)

    async def _identify_engine(self, engine: Engine) -> Journal:
        """Continue the known source; if another containerd responds, first publish the exits of all containers."""
        known, journal = self.engine, self._journal
        if known is None or journal is None:
            journal = await self._recover(engine)
        elif engine.id not in (known.id, ""):
            await self._replace_engine(journal)
            journal = self._open_journal(engine, self._next_epoch(journal.encoder.epoch + 1))
        else:
            journal.set_engine(engine)
        self.engine, self._journal = engine, journal
        return journal

    async def _recover(self, engine: Engine) -> Journal:
        """Continue where an earlier process stopped, as far as containerd and boot are the same."""
        recovered = recover(self._outbox.load_checkpoint())
        self._snapshot_reason, header, epoch = recovered.reason, recovered.header, self._next_epoch(recovered.min_epoch)
        self._previous_positions = {source: recovered.previous_position(source) for source in recovered.positions}
        obsolete_keys = recovered.obsolete_keys
        if header is None:
            return self._open_journal(engine, epoch, obsolete_keys)
        if header.host != self._settings.host and header.boot_id != self._boot_id:
            _log.warning(
                "checkpoint_of_other_host",
                host=header.host,
                engine=header.engine.id,
                hint=f"if this machine was renamed, remove the source {header.host} from consumers' states",
            )
            self._snapshot_reason = "start"
            return self._open_journal(engine, epoch, obsolete_keys + recovered.container_keys)
        if (header.host, header.engine.id) != (self._settings.host, engine.id or header.engine.id):
            await self._close_source(recovered, header, engine, epoch)
            return self._open_journal(engine, epoch + 1)
        self._watermark_at = recovered.watermark_at
        tracker = recovered.build_tracker(self._settings, self._clock.now())
        if header.boot_id == self._boot_id:
            self._replace_tracker(tracker)
        else:
            _log.info("host_rebooted", containers=sum(1 for _ in tracker.incarnations()))
            states = [
                ContainerState(state.key, state.metadata, published_metadata=state.published_metadata)
                for state in tracker.entries()
                if state.metadata is not None and not state.deleted
            ]
            self._pending_transitions += tracker.exit_all(self._clock.now())
            self._tracker.restore(states, set(), self._clock.now())  # all containers that run now are new
            kept_keys = {checkpoint.metadata_key(state.key) for state in states}
            obsolete_keys = obsolete_keys + [key for key in recovered.container_keys if key not in kept_keys]
        return self._open_journal(engine, epoch, obsolete_keys, header.filter_fingerprint)

    async def _close_source(
        self, recovered: RecoveredState, header: CheckpointHeader, engine: Engine, epoch: int
    ) -> None:
        """Publish for the previous source, which was on this machine, that none of its containers is running.

        If only the host name has changed, no exits are published, because the containers are still running.
        """
        _log.warning("checkpoint_source_mismatch", host=header.host, engine=header.engine.id)
        now = self._clock.now()
        tracker = recovered.build_tracker(self._settings, now)
        ended = tracker.release_all_exits()
        exits = tracker.exit_all(now)
        encoder = RecordEncoder(header.host, header.engine, epoch, previous=recovered.previous_position(header.source))
        journal = Journal(
            encoder,
            self._outbox,
            tracker,
            self.counters,
            header,
            watermark_at=recovered.watermark_at,
            obsolete_keys=recovered.obsolete_keys,
        )
        gap = Gap(recovered.reason, recovered.watermark_at, now.wall)
        transitions = ended + (exits if engine.id != header.engine.id else [])
        journal.append_snapshot(gap, SnapshotCoverage([], [], False), transitions, [], now.wall)
        await journal.write()

    async def _replace_engine(self, journal: Journal) -> None:
        """Publish the exits of all containers after another containerd has replaced the old one."""
        now = self._clock.now()
        _log.warning("containerd_replaced")
        for item in self._event_queue.abandon():
            if item.metadata is not None:
                self._tracker.update_metadata(item.metadata)
            self._pending_transitions += self._tracker.process_event(item.event, now)
        self._pending_transitions += self._tracker.exit_all(now)
        gap = Gap("reconnect", self._watermark_at, now.wall)
        journal.append_snapshot(gap, SnapshotCoverage([], [], False), self._pending_transitions, [], now.wall)
        self._pending_transitions.clear()
        await journal.write()
        self._previous_positions[journal.header.source] = journal.encoder.position
        self._replace_tracker(Tracker(self._boot_id, self._settings.additional_events))
        self._watermark_at, self._snapshot_reason = None, "start"

    def _replace_tracker(self, tracker: Tracker) -> None:
        """Replace the tracker, and keep its counts."""
        tracker.counts = self._tracker.counts
        self._tracker = tracker

    def _next_epoch(self, minimum: int) -> int:
        """Return an epoch greater than any earlier one, even if the clock was set back."""
        return max(minimum, self._clock.now().wall // MILLISECOND)

    def _open_journal(
        self, engine: Engine, epoch: int, obsolete_keys: Sequence[str] = (), filter_fingerprint: str | None = None
    ) -> Journal:
        _log.info("containerd_connected", engine=engine.id, version=engine.version, api=engine.api, epoch=epoch)
        filter_fingerprint = self._settings.filter_fingerprint if filter_fingerprint is None else filter_fingerprint
        header = CheckpointHeader(self._settings.host, engine, self._boot_id, filter_fingerprint, None)
        encoder = RecordEncoder(
            self._settings.host, engine, epoch, previous=self._previous_positions.get(header.source)
        )
        return Journal(
            encoder,
            self._outbox,
            self._tracker,
            self.counters,
            header,
            watermark_at=self._watermark_at,
            obsolete_keys=obsolete_keys,
        )

    def _log_failure(self, failure: Failure) -> None:
        text = self.last_error = str(failure.error)
        self._rate_limiter.log(
            _log.warning, text, "containerd_unavailable", error=text, consecutive=failure.consecutive
        )
