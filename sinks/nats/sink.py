"""The NATS sink.

Invariants:
- ``publish`` returns when JetStream has acknowledged every record (in core mode: when the server has read them).
- A connection is not used again after an error. Messages in flight on it may still be stored: JetStream recognizes them
  by their message ids when they are sent again.
- Every wait is bounded: for each acknowledgment, and for closing a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from bridge.core.errors import RejectedRecordError
from sinks.nats.connection import ServerConnector
from sinks.nats.errors import ApiResponseError
from sinks.nats.messages import MessageEncoder
from sinks.nats.publisher import CorePublisher, JetStreamPublisher, PublishProgress
from sinks.nats.state_table import StateBucket
from sinks.nats.streams import ensure_stream
from sinks.target_memory import RESET_DETAIL, RESET_HINT, TargetMemory

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from bridge.core.records import Record
    from config.sinks.nats import NatsSettings
    from sinks.nats.connection import NatsConnection

_log = structlog.get_logger(__name__)


class NatsSink:
    """Publishes to NATS. A retention shorter than ``snapshot_interval`` causes a warning."""

    def __init__(self, settings: NatsSettings, clock: Clock, snapshot_interval: timedelta = timedelta(0)) -> None:
        self._settings = settings
        self._snapshot_interval = snapshot_interval
        self._core_mode = settings.mode == "core"
        self._encoder = MessageEncoder(settings)
        self._connector = ServerConnector(settings, clock)
        self._bucket = StateBucket(settings, settings.kv_bucket.name, clock) if settings.kv_bucket.name else None
        self._connection: NatsConnection | None = None
        self._closing: NatsConnection | None = None  # aborted, not closed yet
        self._publisher: JetStreamPublisher | CorePublisher | None = None  # None: check the stream first
        self._progress = PublishProgress()
        self._memory = TargetMemory()
        self.resets = 0
        """How often the stream or the bucket has lost what was published."""
        self._warned: set[str] = set()
        self._logged_server = ""  # the last one that was logged

    async def start(self) -> None:
        """Connect, and create the stream and the bucket if they do not exist.

        Raises:
            TransientError: Connecting failed, or the stream or the bucket is missing or unsuitable.
        """
        if self._core_mode:
            self._warn_once(
                "delivery_not_guaranteed",
                "core NATS stores nothing: records published while no subscriber is connected are lost, and the gap is "
                "not reported",
            )
        await self._ensure_ready()

    async def publish(self, batch: Sequence[Record]) -> None:
        """Publish records in order; return when all are acknowledged.

        Raises:
            RejectedRecordError: Some records are too large or otherwise rejected for good.
            TransientError: Some records may not be stored.
        """
        connection, publisher = await self._ensure_ready()
        messages = [message for record in batch if (message := self._encoder.encode(record))]
        self._progress.stored.intersection_update(message.id for message in messages)
        try:
            await publisher.publish(messages)
            if any(record.type == "snapshot_completed" for record in batch):
                self._memory.complete_snapshot()
            if self._bucket:
                await self._bucket.apply(connection, batch)
        except (ApiResponseError, RejectedRecordError):
            self._publisher = None
            raise
        except BaseException:
            self._abandon()
            raise
        finally:
            self._count_resets()
        self._progress.stored.clear()
        self._connector.message_ids.clear()

    async def check_target(self) -> None:
        """Compare the stream and the bucket with what was published, and create them again if they are gone.

        Raises:
            TransientError: Like ``start``.
        """
        if not self._core_mode:
            self._publisher = None
            await self._ensure_ready()

    async def close(self) -> None:
        """Close the connection in a bounded time. Idempotent."""
        connections = [connection for connection in (self._closing, self._connection) if connection]
        self._closing = self._connection = self._publisher = None
        await asyncio.gather(*(connection.close() for connection in connections))

    async def _ensure_ready(self) -> tuple[NatsConnection, JetStreamPublisher | CorePublisher]:
        connection = await self._ensure_connected()
        if self._publisher is None:
            try:
                if self._core_mode:
                    self._publisher = CorePublisher(connection)
                else:
                    self._publisher = await self._prepare_stream(connection)
            except ApiResponseError:
                raise
            except BaseException:
                self._abandon()
                raise
        return connection, self._publisher

    async def _ensure_connected(self) -> NatsConnection:
        if self._connection and self._connection.failed.done():
            self._abandon()
        if self._closing:
            await self._closing.close()
            self._closing = None
        if self._connection is None:
            self._connection = await self._connector.connect()
            if self._logged_server != self._connection.address.server:
                self._logged_server = self._connection.address.server
                _log.info("nats_connected", server=self._logged_server)
        return self._connection

    async def _prepare_stream(self, connection: NatsConnection) -> JetStreamPublisher:
        pattern = self._encoder.subjects.pattern
        stream = await ensure_stream(connection, self._settings, pattern, self._snapshot_interval)
        for warning in stream.warnings:
            self._warn_once("stream_config_warning", f"{stream.name}: {warning}")
        self._memory.observe(stream.state)
        if self._bucket:
            await self._bucket.ensure(connection)
        self._count_resets()
        return JetStreamPublisher(connection, stream, self._progress, self._memory)

    def _count_resets(self) -> None:
        """Count resets, and forget what the old stream or bucket had."""
        lost = []
        if self._memory.take_loss():
            self._progress = PublishProgress()
            lost.append(f"stream {self._settings.stream_name}")
        if self._bucket and self._bucket.take_loss():
            lost.append(f"bucket {self._settings.kv_bucket.name}")
        for target in lost:
            self._publisher = None
            self.resets += 1
            _log.warning("target_reset", target=target, detail=RESET_DETAIL, hint=RESET_HINT)

    def _warn_once(self, event: str, detail: str) -> None:
        if detail not in self._warned:
            self._warned.add(detail)
            _log.warning(event, detail=detail)

    def _abandon(self) -> None:
        if self._connection:
            self._connector.remember_servers(self._connection)
            self._connection.abort()
        self._connection, self._closing, self._publisher = None, self._connection or self._closing, None
