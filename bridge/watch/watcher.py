"""Watch containerd: follow one connection after another, with a state that survives each of them.

With a persistent outbox, the state survives the process as well: the first connection continues as after a broken one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

import structlog

from bridge.core.container_state import Transition
from bridge.core.containerd_model import Engine
from bridge.core.errors import StreamOverflowError, TransientError
from bridge.core.ports import Clock, EngineClient, Outbox
from bridge.core.records import SnapshotReason, Watermark
from bridge.core.time import to_seconds
from bridge.retry import Backoff, Failure, retry_until_success
from bridge.task_groups import task_group
from bridge.telemetry.rate_limit import RateLimiter
from bridge.watch.audit import Auditor
from bridge.watch.follow import Connection
from bridge.watch.journal import Journal
from bridge.watch.recovery import open_journal, replace_engine
from bridge.watch.settings import WatchSettings
from bridge.watch.snapshot_requests import SnapshotResult
from bridge.watch.state import WatchState
from bridge.watch.sync import synchronize

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
        publishes: Whether a second bridge must know of this one, because consumers may read the records of both.
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
        self._state = WatchState(client, outbox, clock, settings, boot_id, publishes=publishes)
        self._journal: Journal | None = None
        self._rate_limiter = RateLimiter(clock)
        self.counters = self._state.counters
        self.second_bridges = self._state.second_bridges
        self.last_error: str | None = None  # of the last attempt to watch that failed

    # --- status ---

    @property
    def engine(self) -> Engine | None:
        """Return the containerd that responded last."""
        return self._journal.header.engine if self._journal is not None else None

    @property
    def synced(self) -> bool:
        """Return whether the first snapshot of the current connection is complete."""
        return self._state.synced

    @property
    def excluded_namespaces(self) -> list[str]:
        """Return the namespaces that exist if none of them is watched; otherwise nothing."""
        return self._state.excluded_namespaces

    @property
    def watermark(self) -> Watermark | None:
        """Return the watermark up to which events are persisted; it stops while containerd is disconnected."""
        return self._journal.watermark if self._journal is not None else None

    @property
    def watermark_age(self) -> float | None:
        """Return the age of the last marker that has returned, in seconds; None before the first one."""
        verified_at = self._state.verified_at
        return None if verified_at is None else to_seconds(self._state.clock.now().monotonic - verified_at)

    @property
    def max_watermark_age(self) -> float:
        """Return the maximum of ``watermark_age`` while the stream works and processing keeps up."""
        return self._state.settings.marker_interval + self._state.settings.marker_timeout

    @property
    def event_counts(self) -> Counter[str]:
        """Return the numbers of containerd's events that were not published, by reason."""
        return self._state.tracker.counts + self._state.ignored_events.counts

    def running_containers(self) -> list[Transition]:
        """Return a ``present`` record for every running container in scope, without counting it as published."""
        return self._state.tracker.running_containers(self._state.clock.now())

    def paused_flags(self) -> Iterator[bool]:
        """Return for each running container in scope whether it is paused."""
        return (incarnation.paused for _, incarnation in self._state.tracker.incarnations() if incarnation.in_scope)

    # --- requests ---

    def request_snapshot(self, reason: SnapshotReason) -> None:
        """Request a snapshot without waiting for it."""
        self._state.requests.request(reason)

    async def take_snapshot(self) -> SnapshotResult:
        """Take a snapshot, and wait until it is persisted; concurrent callers share it.

        Raises:
            TransientError: containerd is still not connected after ``SNAPSHOT_TIMEOUT_SECONDS``.
        """
        future = self._state.requests.request("on_demand")
        while True:
            try:
                async with self._state.clock.timeout(SNAPSHOT_TIMEOUT_SECONDS):
                    return await asyncio.shield(future)
            except TimeoutError:
                if not self.synced:
                    raise TransientError(
                        f"snapshot timed out after {SNAPSHOT_TIMEOUT_SECONDS:g} s: containerd is not connected; "
                        "the snapshot stays queued"
                    ) from None

    def reload(self, settings: WatchSettings) -> None:
        """Apply other settings for the same host; if filters or label rules change, a snapshot follows.

        Labels that the new rules drop are not published from this moment on.
        """
        filters_changed = self._state.reload(settings)
        if filters_changed and self._journal is not None:
            self._journal.expect_filters(settings)
            self.request_snapshot("filters_changed")

    # --- watching ---

    async def run(self) -> None:
        """Watch until canceled.

        Raises:
            FatalError: This containerd cannot be watched until an operator changes something.
        """
        async with task_group() as tasks:
            self._state.event_queue.start(tasks)
            await retry_until_success(
                self._watch_once, clock=self._state.clock, backoff=BACKOFF, before_sleep=self._log_failure
            )

    async def _watch_once(self) -> None:
        """Watch over one connection until it breaks.

        Raises:
            TransientError: The connection broke; all events received before are queued, processed or published.
        """
        state, client = self._state, self._state.client
        journal = await self._identify_engine(await client.engine())
        connection = Connection(state, journal, await client.subscribe())
        try:
            with contextlib.closing(connection):
                async with task_group() as tasks:
                    connection.start(tasks)
                    await synchronize(connection, state.snapshot_reason)
                    await Auditor(connection).run()
        except asyncio.CancelledError:
            await connection.shut_down()
            raise
        except StreamOverflowError:
            state.snapshot_reason = "overflow"
            raise
        except TransientError:
            if state.synced:
                state.snapshot_reason = "reconnect"
            raise
        finally:
            connection.process_received()  # while its results count: after disconnect() no run is confirmed
            self.counters.reconnects += state.synced
            state.disconnect()
            await journal.write(force=True)

    async def _identify_engine(self, engine: Engine) -> Journal:
        """Continue the known source, or begin another one if another containerd responds."""
        journal = self._journal
        if journal is None:
            journal = await open_journal(self._state, engine)
        elif engine.id not in (journal.header.engine.id, ""):
            journal = await replace_engine(self._state, journal, engine)
        else:
            journal.set_engine(engine)
        self._journal = journal
        return journal

    def _log_failure(self, failure: Failure) -> None:
        text = self.last_error = str(failure.error)
        self._rate_limiter.log(
            _log.warning, text, "containerd_unavailable", error=text, consecutive=failure.consecutive
        )
