"""The pump: moves records from the outbox to one sink, and acknowledges those that the sink has acknowledged.

Invariants:
- One batch is in flight at a time, so a sink gets records in order, and gets again the records that it may not have.
- Every attempt has a timeout: an attempt that hangs is abandoned and retried.
- A rejected record does not block other records.
- An error of the sink does not end the pump: what a retry cannot fix is retried rarely, because an operator may have
  fixed it. Only a sink whose reader has gone for good ends its pump.
- A heartbeat is sent between batches, only if there is no backlog, and is not retried: losing it loses no data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias, runtime_checkable

import structlog

from bridge.core.errors import BridgeError, DisconnectedError, FatalError, RejectedRecordError, TransientError
from bridge.core.ports import Clock, Outbox, Sink
from bridge.core.records import Record, SnapshotReason
from bridge.core.time import to_seconds
from bridge.delivery.heartbeats import HeartbeatFactory
from bridge.delivery.target_resets import DetectsReset, ResetReporter
from bridge.retry import Backoff, Failure, retry_until_success
from bridge.task_groups import completes_within, task_group, with_timeout
from bridge.telemetry.counters import Histogram
from bridge.telemetry.rate_limit import RateLimiter
from bridge.telemetry.status import SinkState, SinkStatus

BATCH_RECORDS = 1000
BATCH_BYTES = 1024 * 1024
BACKOFF = Backoff(initial=0.1, maximum=30.0)
FATAL_RETRY_SECONDS = 60.0  # between attempts that fail until an operator changes something
TARGET_CHECK_SECONDS = 30.0
# Seconds added to the sink's own timeout, so that the sink's timeout, with its better error message, fires first.
ATTEMPT_TIMEOUT_MARGIN = 60.0
CLOSE_SECONDS = 1.5
QUIESCE_SECONDS = 1.5  # for records in flight when a sink is replaced
_log = structlog.get_logger(__name__)

RequestSnapshot: TypeAlias = Callable[[SnapshotReason], None]


@runtime_checkable
class DetectsDisconnect(Protocol):
    """A sink that detects that its reader has disconnected for good, even while there is nothing to publish."""

    async def wait_disconnected(self) -> None:
        """Wait until the reader has disconnected, and raise a DisconnectedError."""


class Pump:
    """Moves records to one sink, in order, and retries transient errors indefinitely.

    Args:
        name: The sink's id in the outbox.
        sink: The sink.
        outbox: The source of records.
        clock: Source of time and random numbers.
        attempt_timeout: Seconds until an attempt is abandoned; None for a sink that may block indefinitely.
        batch_records: Maximum number of records in a batch.
        heartbeat_factory: Makes heartbeats; None for a sink without heartbeats.
        request_snapshot: Called when the sink needs a snapshot, because records were dropped, or because its target has
            lost what was published.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        outbox: Outbox,
        clock: Clock,
        *,
        attempt_timeout: float | None = ATTEMPT_TIMEOUT_MARGIN,
        batch_records: int = BATCH_RECORDS,
        heartbeat_factory: HeartbeatFactory | None = None,
        request_snapshot: RequestSnapshot = lambda _: None,
    ) -> None:
        self.name = name
        self._sink = sink
        self._outbox = outbox
        self._clock = clock
        self._attempt_timeout = attempt_timeout
        self._batch_records = batch_records
        self._rate_limiter = RateLimiter(clock)
        self._request_snapshot = request_snapshot
        self._heartbeat_factory = heartbeat_factory
        self._last_acknowledged: Record | None = None  # last acknowledged record
        self._resets = (
            ResetReporter(sink, clock, partial(request_snapshot, "on_demand"))
            if isinstance(sink, DetectsReset)
            else None
        )
        self._publish_lock = asyncio.Lock()  # held while the sink is in use
        self.state: SinkState = "starting"
        self.disconnected = False  # the sink's reader has gone for good
        self.last_error: str | None = None  # error of the last attempt, while the state is failing or failed
        self.published = 0
        self.failures = 0
        self.rejected = 0
        self.latency = Histogram()  # seconds from publishing a batch to its acknowledgment
        self._failure_logged = False

    async def run(self) -> None:
        """Pump until canceled.

        Raises:
            DisconnectedError: The sink's reader has gone for good.
            FatalError: The outbox cannot continue.
        """
        structlog.contextvars.bind_contextvars(sink=self.name)  # for every line that the sink logs
        try:
            await self._run()
        except DisconnectedError as error:
            self.disconnected = True
            self._set_error("failed", str(error))
            raise

    async def _run(self) -> None:
        await self._retry(self._sink.start)
        async with task_group() as tasks:
            if isinstance(self._sink, DetectsDisconnect):
                tasks.create_task(self._sink.wait_disconnected())
            if self._heartbeat_factory is not None:
                tasks.create_task(self._send_heartbeats(self._heartbeat_factory))
            if self._resets is not None:
                tasks.create_task(self._check_target(self._resets))
            while True:
                batch = await self._outbox.read(self.name, self._batch_records, BATCH_BYTES)
                async with self._publish_lock:
                    await self._deliver(batch)

    def status(self) -> SinkStatus:
        """Return the status of the sink."""
        return SinkStatus(
            self.name,
            self.state,
            self.last_error,
            self._outbox.lag(self.name),
            self.published,
            self.failures,
            self.rejected,
            self.latency,
        )

    @property
    def backlog(self) -> int:
        """The number of records that the sink has not acknowledged."""
        return self._outbox.depth(self.name)

    async def wait_drained(self) -> None:
        """Wait until the sink has acknowledged all records in the outbox; do not wait for a sink that has failed."""
        while self.backlog and self.state != "failed":
            await self._clock.sleep(0.02)

    async def stop(self, running: asyncio.Task[None]) -> None:
        """Cancel the task of ``run`` and wait for its end; records in flight get some time to be acknowledged.

        A sink that is failing gets none. Records without an acknowledgment are sent again by the next pump.
        """
        seconds = 0 if self.state in ("failing", "failed") else QUIESCE_SECONDS
        # Not released: from now on nothing is sent.
        await completes_within(seconds, self._clock, self._publish_lock.acquire())
        running.cancel()  # once, because a second time would interrupt the cleanup of an attempt
        await asyncio.wait([running])

    async def close(self) -> None:
        """Close the sink, within a timeout."""
        try:
            await with_timeout(self._sink.close, CLOSE_SECONDS, self._clock)
        except BridgeError as error:
            _log.warning("sink_close_failed", sink=self.name, error=str(error))

    async def _deliver(self, batch: Sequence[Record]) -> None:
        """Publish a batch; if the sink rejects records of it, the next read returns loss records in their place."""
        try:
            await self._retry(partial(self._publish, batch))
        except RejectedRecordError as rejection:
            reason = str(rejection)
            count = await self._outbox.reject(self.name, rejection.positions, reason)
            self.rejected += count
            self._rate_limiter.log(
                _log.error, ("rejected", reason), "records_rejected", sink=self.name, records=count, reason=reason
            )
        else:
            if await self._outbox.acknowledge(self.name, batch):
                self._request_snapshot("overflow")
            self._last_acknowledged = batch[-1]

    async def _publish(self, batch: Sequence[Record]) -> None:
        began = self._clock.now().monotonic
        try:
            await self._sink.publish(batch)
        except RejectedRecordError as rejection:
            if any((each.epoch, each.sequence) in rejection.positions and each.type != "lost" for each in batch):
                raise
            # A loss record cannot be replaced by another one, nor can a record that is not in the batch.
            raise TransientError(f"rejected: {rejection}") from rejection
        self.latency.observe(to_seconds(self._clock.now().monotonic - began))
        self.published += len(batch)

    async def _send_heartbeats(self, factory: HeartbeatFactory) -> None:
        while True:
            await self._clock.sleep(factory.interval)
            async with self._publish_lock:
                if (
                    self.backlog
                    or self._last_acknowledged is None
                    or (record := factory.make(self._last_acknowledged)) is None
                ):
                    continue
                await self._try("heartbeat_failed", partial(self._sink.publish, [record]))

    async def _check_target(self, resets: ResetReporter) -> None:
        while True:
            await self._clock.sleep(TARGET_CHECK_SECONDS)
            async with self._publish_lock:
                await self._try("target_check_failed", resets.check)

    async def _try(self, event: str, attempt: Callable[[], Awaitable[None]]) -> None:
        """Attempt once; log a failure as ``event``, or as ``sink_failed`` if a retry cannot fix it."""
        try:
            await with_timeout(attempt, self._attempt_timeout, self._clock)
        except DisconnectedError:
            raise
        except (TransientError, RejectedRecordError) as error:
            text = str(error)
            if isinstance(error, TransientError):
                self._set_error("failing", text)
            self._rate_limiter.log(_log.warning, text, event, sink=self.name, error=text)
        except Exception as error:  # noqa: BLE001 (logged; a bug in one sink must not end the others)
            self._log_fatal(error)
        else:
            self.state, self.last_error = "ok", None

    async def _retry(self, attempt: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await retry_until_success(
                    lambda: with_timeout(attempt, self._attempt_timeout, self._clock),
                    clock=self._clock,
                    backoff=BACKOFF,
                    before_sleep=self._log_failure,
                )
                break
            except (DisconnectedError, RejectedRecordError):
                raise
            except Exception as error:  # noqa: BLE001 (logged; a bug in one sink must not end the others)
                self._log_fatal(error)
            await self._clock.sleep(FATAL_RETRY_SECONDS)
        if self._failure_logged:  # only then, or a sink that fails intermittently would log every recovery
            self._failure_logged = False
            _log.info("sink_recovered", sink=self.name)
        self.state, self.last_error = "ok", None
        if self._resets is not None:
            self._resets.report()

    def _log_failure(self, failure: Failure) -> None:
        text = str(failure.error)
        self._set_error("failing", text)
        self.failures += 1
        fields = {"sink": self.name, "error": text, "consecutive": failure.consecutive}
        self._failure_logged |= self._rate_limiter.log(_log.warning, text, "sink_publish_failed", **fields)

    def _log_fatal(self, error: Exception) -> None:
        is_expected = isinstance(error, FatalError)
        text = str(error) if is_expected else f"bug in the sink: {error!r}"
        self._set_error("failed", text)
        self.failures += 1
        fields = {"sink": self.name, "error": text, "exc_info": None if is_expected else error}
        self._failure_logged |= self._rate_limiter.log(_log.error, text, "sink_failed", **fields)

    def _set_error(self, state: SinkState, text: str) -> None:
        self.state, self.last_error = state, text
