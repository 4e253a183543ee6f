"""The NATS sink.

Invariants:
- ``publish`` returns when JetStream has acknowledged every record (in core mode: when the server has read them).
- A connection is not used again after an error. Messages in flight on it may still be stored: JetStream recognizes them
  by their message ids when they are sent again.
- Every wait is bounded: for each acknowledgement, and for closing a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from bridge.core.errors import RefusedRecordError
from sinks.nats.bucket import Bucket
from sinks.nats.connection import Dialer
from sinks.nats.failures import AnsweredError
from sinks.nats.messages import Messages
from sinks.nats.publisher import CoreWriter, Progress, Writer
from sinks.nats.streams import ensure_stream

if TYPE_CHECKING:
    from bridge.core.events import Record
    from config.sinks.nats import NatsSettings
    from sinks.nats.connection import Link

_log = structlog.get_logger(__name__)


class NatsSink:
    """Publishes to NATS."""

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self._core = settings.mode == "core"
        self._messages = Messages(settings)
        self._dialer = Dialer(settings)
        self._bucket = Bucket(settings, settings.kv_bucket.name) if settings.kv_bucket.name else None
        self._link: Link | None = None
        self._left: Link | None = None  # aborted, not closed yet
        self._writer: Writer | CoreWriter | None = None  # None: check the stream first
        self._progress = Progress()
        self._told: set[str] = set()
        self._server = ""  # the last one that was logged

    async def start(self) -> None:
        """Connect, and create the stream and the bucket if they do not exist.

        Raises:
            TransientError: Connecting failed, or the stream or the bucket is missing or unsuitable.
        """
        if self._core:
            self._warn_once(
                "delivery_not_guaranteed",
                "core NATS stores nothing: records published while no subscriber is connected are lost, and the gap is "
                "not reported",
            )
        await self._ready()

    async def publish(self, batch: Sequence[Record]) -> None:
        """Publish records in order; return when all are acknowledged.

        Raises:
            RejectedRecordError: Some records are too large or otherwise rejected for good.
            TransientError: Some records may not be stored.
        """
        link, writer = await self._ready()
        items = [item for record in batch if (item := self._messages.item(record))]
        self._progress.stored.intersection_update(item.id for item in items)
        try:
            await writer.store(items)
            if self._bucket:
                await self._bucket.write(link, batch)
        except (AnsweredError, RefusedRecordError):
            self._writer = None
            raise
        except BaseException:
            self._give_up()
            raise
        self._progress.stored.clear()

    async def close(self) -> None:
        """Close the connection in a bounded time. Idempotent."""
        links = [link for link in (self._left, self._link) if link]
        self._left = self._link = self._writer = None
        await asyncio.gather(*(link.close() for link in links))

    async def _ready(self) -> tuple[Link, Writer | CoreWriter]:
        link = await self._connected()
        if self._writer is None:
            try:
                self._writer = CoreWriter(link) if self._core else await self._look(link)
            except AnsweredError:
                raise
            except BaseException:
                self._give_up()
                raise
        return link, self._writer

    async def _connected(self) -> Link:
        if self._link and self._link.failed.done():
            self._give_up()
        if self._left:
            await self._left.close()
            self._left = None
        if self._link is None:
            self._link = await self._dialer.connect()
            if self._server != self._link.place.server:
                self._server = self._link.place.server
                _log.info("nats_connected", server=self._server)
        return self._link

    async def _look(self, link: Link) -> Writer:
        stream = await ensure_stream(link, self._settings, self._messages.subjects.pattern)
        for warning in stream.weaknesses:
            self._warn_once("stream_config_warning", f"{stream.name}: {warning}")
        if self._bucket:
            await self._bucket.check(link)
        return Writer(link, stream, self._progress)

    def _warn_once(self, event: str, detail: str) -> None:
        if detail not in self._told:
            self._told.add(detail)
            _log.warning(event, detail=detail)

    def _give_up(self) -> None:
        if self._link:
            self._dialer.learn(self._link)
            self._link.abort()
        self._link, self._left, self._writer = None, self._link or self._left, None
