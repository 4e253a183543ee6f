"""Provides the status of the running bridge, and runs the HTTP endpoint that serves it."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from bridge.core.container_state import Transition
from bridge.core.errors import FatalError
from bridge.core.ports import Outbox
from bridge.outbox.state_directory import CONTROL_SOCKET
from bridge.pump import Pump
from bridge.telemetry.status import CompletedSnapshot, SinkStatus, Status
from bridge.watch import ContainerWatch
from config.sinks.common import host_and_port

if TYPE_CHECKING:
    from bridge.telemetry.http.server import Endpoint
    from config.settings import Settings

_log = structlog.get_logger(__name__)


class StatusProvider:
    """Implements ``bridge.telemetry.status.BridgeInspector``.

    ``settings`` may be replaced at any time; ``pumps`` is called each time, because a reload replaces pumps.
    """

    def __init__(
        self, settings: Settings, watch: ContainerWatch, outbox: Outbox, pumps: Callable[[], Sequence[Pump]]
    ) -> None:
        self.settings = settings
        self._watch = watch
        self._outbox = outbox
        self._pumps = pumps

    def status(self) -> Status:
        """Return the current status."""
        watch, settings = self._watch, self.settings
        paused_counts = Counter(watch.paused_flags())
        return Status(
            host=settings.host,
            engine=watch.engine,
            include=settings.namespaces.include,
            exclude=settings.namespaces.exclude,
            synced=watch.synced,
            containerd_error=watch.last_error,
            watermark_age=watch.watermark_age,
            max_watermark_age=watch.max_watermark_age,
            outbox_error=self._outbox.last_error,
            outbox_max_bytes=settings.outbox.max_bytes if settings.state_dir else settings.outbox.max_memory_bytes,
            sinks=[self._sink_status(pump) for pump in self._pumps()],
            running=paused_counts[False],
            paused=paused_counts[True],
            counters=watch.counters,
            ignored_events=watch.event_counts,
        )

    def running_containers(self) -> Sequence[Transition]:
        """Return a snapshot record for each running container in scope."""
        return self._watch.running_containers()

    async def snapshot(self) -> CompletedSnapshot:
        """Request a snapshot and wait until it is complete."""
        return await self._watch.take_snapshot()

    def _sink_status(self, pump: Pump) -> SinkStatus:
        return SinkStatus(
            pump.name,
            pump.state,
            pump.last_error,
            self._outbox.lag(pump.name),
            pump.published,
            pump.failures,
            pump.rejected,
            pump.latency,
        )


@contextlib.asynccontextmanager
async def http_endpoint(provider: StatusProvider) -> AsyncIterator[None]:
    """Serve HTTP while the block runs, on ``http.listen`` and on the control socket in ``state_dir``, if they are set.

    Raises:
        FatalError: An explicitly configured address cannot be used.
    """
    settings = provider.settings
    if not settings.http.listen and not settings.state_dir:
        yield
        return
    from bridge.telemetry.http.server import Endpoint  # noqa: PLC0415 (the import takes a third of a second)

    endpoint = Endpoint(provider)
    try:
        await _listen(settings, endpoint)
        if settings.state_dir:
            await _listen_unix(Path(settings.state_dir) / CONTROL_SOCKET, endpoint)
        yield
    finally:
        await endpoint.close()
        if settings.state_dir:
            with contextlib.suppress(OSError):  # the next start replaces a remaining socket
                (Path(settings.state_dir) / CONTROL_SOCKET).unlink()


def describe_listen_error(listen: str, error: OSError) -> str:
    """Return the error message for an address that cannot be listened on."""
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return f"http.listen {listen}: {reason}; use another address, or disable it"


async def _listen(settings: Settings, endpoint: Endpoint) -> None:
    listen = settings.http.listen
    if not listen:
        return
    try:
        addresses = await endpoint.listen(*host_and_port(listen, 0))
    except OSError as error:
        text = describe_listen_error(listen, error)
        if "listen" in settings.http.model_fields_set:
            raise FatalError(text) from error
        _log.warning("http_listen_failed", error=text)
    else:
        _log.info("http_listening", listen=addresses)


async def _listen_unix(path: Path, endpoint: Endpoint) -> None:
    try:
        await endpoint.listen_unix(path)
    except OSError as error:  # a file system without sockets; everything else works there
        _log.warning("control_socket_unavailable", path=str(path), error=error.strerror)
