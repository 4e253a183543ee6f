"""The sinks and their pumps: started together, and each replaced by itself where its settings have become others."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog

import sinks.registry
from bridge.pump import ATTEMPT_TIMEOUT_MARGIN, HeartbeatFactory, Pump
from config.sinks import StdoutSettings
from config.sinks.common import referenced_files

if TYPE_CHECKING:
    from bridge.core.ports import Clock, Outbox, Sink
    from config.settings import Settings
    from config.sinks import SinkSettings

_log = structlog.get_logger(__name__)


class _ManagedSink(NamedTuple):
    """A pump, what it was set up by (with a digest of the files named there), and whether its sink gets heartbeats."""

    pump: Pump
    settings: SinkSettings
    files_digest: bytes
    heartbeats: bool
    task: asyncio.Task[None]


class SinkManager:
    """Brings the records of an outbox to all sinks.

    Args:
        outbox: Where records come from.
        clock: Time and chance.
        heart: What makes heartbeats.
    """

    def __init__(self, outbox: Outbox, clock: Clock, heartbeat_factory: HeartbeatFactory) -> None:
        self._outbox = outbox
        self._clock = clock
        self._heartbeat_factory = heartbeat_factory
        self._sinks: dict[str, _ManagedSink] = {}
        self._tasks: asyncio.TaskGroup

    @property
    def pumps(self) -> list[Pump]:
        """Those of today, one for each sink."""
        return [line.pump for line in self._sinks.values()]

    def start(self, tasks: asyncio.TaskGroup, settings: Settings, sink_instances: Mapping[str, Sink]) -> None:
        """Begin to bring records to the sinks that were made by the settings; one that cannot go on fails its task."""
        self._tasks = tasks
        for id_, sink in sink_instances.items():
            self._start(id_, settings, sink)

    async def reload(self, settings: Settings) -> bool:
        """Go on under other settings of the same sinks, or with other secrets in the files that they name.

        What is on its way to a sink that is replaced is sent again where it is not acknowledged within a moment.

        Returns:
            Whether one was replaced: where it writes to now, nobody may have anything yet.

        Raises:
            FatalError: A sink cannot be made as it is set up now; all stay as they were.
        """
        changed = {id_: sink for id_, sink in settings.sinks.items() if self._has_changed(settings, id_)}
        made = sinks.registry.create_sinks(changed)
        if settings.heartbeat.interval is not None:  # where there are none any more, no pump that asks for it is left
            self._heartbeat_factory.interval = settings.heartbeat.interval.total_seconds()
        for id_, sink in made.items():
            await _stop(self._sinks[id_])
            self._start(id_, settings, sink)
            _log.info("sink_reconfigured", sink=id_)
        return bool(changed)

    async def drain(self, seconds: float) -> None:
        """Wait until every sink has everything that was written down, but not for longer than that; then stop."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(pump.wait_drained() for pump in self.pumps))
        except TimeoutError:
            _log.warning(
                "shutdown_incomplete", backlog={pump.name: pump.backlog for pump in self.pumps if pump.backlog}
            )
        for line in self._sinks.values():
            line.task.cancel()

    async def close(self) -> None:
        """Let go of all sinks, or give them up."""
        await asyncio.gather(*(pump.close() for pump in self.pumps))

    def _has_changed(self, settings: Settings, id_: str) -> bool:
        line, sink = self._sinks[id_], settings.sinks[id_]
        return (line.settings, line.files_digest, line.heartbeats) != (
            sink,
            _files_digest(sink),
            _wants_heartbeats(settings, sink),
        )

    def _start(self, id_: str, settings: Settings, sink: Sink) -> None:
        chosen = settings.sinks[id_]
        heartbeats = _wants_heartbeats(settings, chosen)
        heart = self._heartbeat_factory if heartbeats else None
        pump = Pump(
            id_, sink, self._outbox, self._clock, attempt_timeout=_attempt_timeout(chosen), heartbeat_factory=heart
        )
        self._sinks[id_] = _ManagedSink(
            pump, chosen, _files_digest(chosen), heartbeats, self._tasks.create_task(pump.run())
        )


async def _stop(managed: _ManagedSink) -> None:
    """Let go of a sink, before its successor takes its place: some do not share theirs."""
    await managed.pump.quiesce()
    managed.task.cancel()
    await asyncio.wait([managed.task])
    await managed.pump.close()


def _files_digest(settings: SinkSettings) -> bytes:
    """Tell one content of the files that settings name from another; one that cannot be read has none."""
    digest = hashlib.sha256()
    for name in referenced_files(settings):
        with contextlib.suppress(OSError):  # the sink says what is wrong with it, each time that it needs it
            digest.update(Path(name).read_bytes())
        digest.update(b"\0")
    return digest.digest()


def _wants_heartbeats(settings: Settings, sink: SinkSettings) -> bool:
    return sink.heartbeats and settings.heartbeat.interval is not None


def _attempt_timeout(settings: SinkSettings) -> float | None:
    """After how long an attempt at a sink is given up: later than the sink itself does, which knows more about it.

    A reader of standard output may take all the time it likes.
    """
    if isinstance(settings, StdoutSettings):
        return None
    timeout = settings.attempt_timeout
    return ATTEMPT_TIMEOUT_MARGIN if timeout is None else timeout.total_seconds() + ATTEMPT_TIMEOUT_MARGIN
