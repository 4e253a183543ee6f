"""Manages the sinks and their pumps: starts them, replaces each sink whose settings have changed, and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog

import sinks.factory
from bridge.core.errors import DisconnectedError
from bridge.delivery.heartbeats import HeartbeatFactory
from bridge.delivery.pump import ATTEMPT_TIMEOUT_MARGIN, BATCH_RECORDS, Pump, RequestSnapshot
from config.sinks import StdoutSettings
from config.sinks.common import referenced_files

if TYPE_CHECKING:
    from bridge.core.ports import Clock, Outbox, Sink
    from config.settings import Settings
    from config.sinks import SinkSettings

_log = structlog.get_logger(__name__)


class _ManagedSink(NamedTuple):
    """A sink's pump, the settings and the digest of the referenced files it was created with, and its task."""

    pump: Pump
    settings: SinkSettings
    files_digest: bytes
    heartbeats: bool
    task: asyncio.Task[None]


class SinkManager:
    """Delivers the records of an outbox to all sinks.

    Args:
        outbox: The source of records.
        clock: Source of time and random numbers.
        heartbeat_factory: Makes the heartbeats of all sinks; a reload changes its interval.
        request_snapshot: Called when a sink needs a snapshot.
    """

    def __init__(
        self,
        outbox: Outbox,
        clock: Clock,
        heartbeat_factory: HeartbeatFactory,
        request_snapshot: RequestSnapshot = lambda _: None,
    ) -> None:
        self._outbox = outbox
        self._request_snapshot = request_snapshot
        self._clock = clock
        self._heartbeat_factory = heartbeat_factory
        self._sinks: dict[str, _ManagedSink] = {}
        self._tasks: asyncio.TaskGroup

    @property
    def pumps(self) -> list[Pump]:
        """The current pumps, one per sink."""
        return [managed.pump for managed in self._sinks.values()]

    def start(self, tasks: asyncio.TaskGroup, settings: Settings, sink_instances: Mapping[str, Sink]) -> None:
        """Start a pump for each sink in ``tasks``; a task fails when no sink has a reader any more."""
        self._tasks = tasks
        for id_, sink in sink_instances.items():
            self._start(id_, settings, sink)

    async def reload(self, settings: Settings) -> bool:
        """Replace the sinks that have failed, or whose settings or referenced files (such as secrets) have changed.

        The ids are the same.

        Records in flight to a replaced sink are sent again unless they are acknowledged within ``QUIESCE_SECONDS``.

        Returns:
            Whether a sink was replaced, so that a snapshot is needed: its new target may have no records yet.

        Raises:
            FatalError: A sink cannot be created with its new settings; no sink was replaced.
        """
        changed = [id_ for id_ in settings.sinks if self._needs_replacement(settings, id_)]
        created = sinks.factory.create_sinks(settings, self._clock, changed)
        if settings.heartbeat.interval is not None:  # otherwise no remaining pump uses the interval
            self._heartbeat_factory.interval = settings.heartbeat.interval.total_seconds()
        for id_, sink in created.items():
            previous = self._sinks[id_]
            await previous.pump.stop(previous.task)
            # Before the new sink starts, because some targets (files) allow only one writer.
            await previous.pump.close()
            self._start(id_, settings, sink)
            _log.info("sink_reconfigured", sink=id_)
        return bool(changed)

    async def drain(self, seconds: float) -> None:
        """Wait until the sinks have acknowledged all records, for at most ``seconds``; then stop the pumps."""
        try:
            async with self._clock.timeout(seconds):
                await asyncio.gather(*(pump.wait_drained() for pump in self.pumps))
        except TimeoutError:
            _log.warning(
                "shutdown_incomplete", backlog={pump.name: pump.backlog for pump in self.pumps if pump.backlog}
            )
        for managed in self._sinks.values():
            managed.task.cancel()

    async def close(self) -> None:
        """Close all sinks, each within a timeout."""
        await asyncio.gather(*(pump.close() for pump in self.pumps))

    def _needs_replacement(self, settings: Settings, id_: str) -> bool:
        managed, sink_settings = self._sinks[id_], settings.sinks[id_]
        return managed.pump.state == "failed" or (managed.settings, managed.files_digest, managed.heartbeats) != (
            sink_settings,
            _files_digest(sink_settings),
            _wants_heartbeats(settings, sink_settings),
        )

    def _start(self, id_: str, settings: Settings, sink: Sink) -> None:
        sink_settings = settings.sinks[id_]
        heartbeats = _wants_heartbeats(settings, sink_settings)
        pump = Pump(
            id_,
            sink,
            self._outbox,
            self._clock,
            attempt_timeout=_attempt_timeout(sink_settings),
            batch_records=sink_settings.batch_records or BATCH_RECORDS,
            heartbeat_factory=self._heartbeat_factory if heartbeats else None,
            request_snapshot=self._request_snapshot,
        )
        self._sinks[id_] = _ManagedSink(
            pump, sink_settings, _files_digest(sink_settings), heartbeats, self._tasks.create_task(self._run(pump))
        )

    async def _run(self, pump: Pump) -> None:
        """Run a pump. If its sink's reader has gone for good, the other sinks go on.

        Raises:
            DisconnectedError: No other sink is left.
        """
        try:
            await pump.run()
        except DisconnectedError as error:
            if all(each.disconnected for each in self.pumps):
                raise
            hint = "restart whalebridge, or remove the sink"
            _log.error("sink_disconnected", sink=pump.name, error=str(error), hint=hint)


def _files_digest(settings: SinkSettings) -> bytes:
    """Return a digest of the contents of the files in the settings; a file that cannot be read counts as empty."""
    digest = hashlib.sha256()
    for path in referenced_files(settings):
        with contextlib.suppress(OSError):  # the sink reports the error whenever it reads the file
            digest.update(Path(path).read_bytes())
        digest.update(b"\0")
    return digest.digest()


def _wants_heartbeats(settings: Settings, sink: SinkSettings) -> bool:
    return sink.heartbeats and settings.heartbeat.interval is not None


def _attempt_timeout(settings: SinkSettings) -> float | None:
    """Return the seconds until an attempt is abandoned: longer than the sink's own timeouts, whose errors are clearer.

    None for standard output, because its reader may pause indefinitely.
    """
    if isinstance(settings, StdoutSettings):
        return None
    timeout = settings.attempt_timeout
    seconds = 0.0 if timeout is None else timeout.total_seconds() * settings.batch_requests
    return seconds + ATTEMPT_TIMEOUT_MARGIN
