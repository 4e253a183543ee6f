"""Runs the HTTP endpoint: listens on ``http.listen``, and later on the control socket; the status that it serves."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import structlog

from bridge.core.container_state import Transition
from bridge.core.errors import FatalError
from bridge.delivery.sink_manager import SinkManager
from bridge.outbox.outbox import StoredOutbox
from bridge.outbox.state_directory import CONTROL_SOCKET
from bridge.telemetry.http.server import HttpEndpoint
from bridge.telemetry.status import Status
from bridge.watch import ContainerWatch
from config.sinks.common import host_and_port

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from bridge.telemetry.status import BridgeInspector
    from config.settings import Settings

OpenControlSocket: TypeAlias = Callable[[Path], Awaitable[None]]
_ALL_ADDRESSES = "*"
_log = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def http_endpoint(settings: Settings, bridge: BridgeInspector, clock: Clock) -> AsyncIterator[OpenControlSocket]:
    """Serve HTTP on ``http.listen``, if it is set, while the block runs.

    Yields:
        A function that takes ``state_dir`` and serves HTTP also on the control socket in it. Call it only with the lock
        on ``state_dir``, because it replaces the control socket of any other process.

    Raises:
        FatalError: An explicitly configured address cannot be used.
    """
    if not settings.http.listen and not settings.state_dir:
        yield _no_control_socket
        return
    endpoint = HttpEndpoint(bridge, clock, containers=settings.http.containers)
    control_sockets: list[Path] = []

    async def open_control_socket(state_dir: Path) -> None:
        path = state_dir / CONTROL_SOCKET
        control_sockets.append(path)
        await _listen_unix(path, endpoint)

    try:
        await _listen(settings, endpoint)
        yield open_control_socket
    finally:
        await endpoint.close()
        for path in control_sockets:
            with contextlib.suppress(OSError):  # the next start replaces a remaining socket
                path.unlink()


async def _no_control_socket(_: Path) -> None:
    """Do nothing: without ``state_dir``, there is no control socket."""


def listen_address(listen: str) -> tuple[str | None, int]:
    """Return host and port of ``http.listen``; the host is None for all addresses of IPv4 and IPv6."""
    host, port = host_and_port(listen, 0)
    return None if host == _ALL_ADDRESSES else host, port


def describe_listen_error(listen: str, error: OSError) -> str:
    """Return the error message for an address that cannot be listened on."""
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return f"http.listen {listen}: {reason}; use another address, or set http.listen to off"


async def _listen(settings: Settings, endpoint: HttpEndpoint) -> None:
    listen = settings.http.listen
    if not listen:
        return
    try:
        addresses = await endpoint.listen(*listen_address(listen))
    except OSError as error:
        text = describe_listen_error(listen, error)
        if "listen" in settings.http.model_fields_set:
            raise FatalError(text) from error
        _log.warning("http_listen_failed", error=text)
    else:
        _log.info("http_listening", listen=addresses)


async def _listen_unix(path: Path, endpoint: HttpEndpoint) -> None:
    try:
        await endpoint.listen_unix(path)
    except OSError as error:  # a file system without sockets; everything else works there
        _log.warning("control_socket_unavailable", path=str(path), error=error.strerror)


class StatusProvider:
    """Implements ``bridge.telemetry.status.BridgeInspector``.

    ``settings`` may be replaced at any time; ``proxy_denied_calls`` and ``settings_error`` are called each time.
    """

    def __init__(
        self,
        settings: Settings,
        watch: ContainerWatch,
        outbox: StoredOutbox,
        sink_manager: SinkManager,
        proxy_denied_calls: Callable[[], int | None],
        settings_error: Callable[[], str | None],
    ) -> None:
        self.settings = settings
        self._watch = watch
        self._outbox = outbox
        self._sink_manager = sink_manager
        self._proxy_denied_calls = proxy_denied_calls
        self._settings_error = settings_error

    def status(self) -> Status:
        """Return the current status."""
        watch, settings = self._watch, self.settings
        paused_counts = Counter(watch.paused_flags())
        return Status(
            host=settings.host,
            attributes=settings.attributes,
            engine=watch.engine,
            include=settings.namespaces.include,
            exclude=settings.namespaces.exclude,
            synced=watch.synced,
            containerd_error=watch.last_error,
            second_bridges=watch.second_bridges.count,
            excluded_namespaces=watch.excluded_namespaces,
            watermark_age=watch.watermark_age,
            max_watermark_age=watch.max_watermark_age,
            outbox_error=self._outbox.last_error,
            outbox_max_bytes=settings.outbox.size_limit(settings.state_dir),
            commits=self._outbox.commits,
            sinks=[pump.status() for pump in self._sink_manager.pumps],
            running=paused_counts[False],
            paused=paused_counts[True],
            counters=watch.counters,
            ignored_events=watch.event_counts,
            proxy_denied_calls=self._proxy_denied_calls(),
            settings_error=self._settings_error(),
        )

    def running_containers(self) -> Sequence[Transition]:
        """Return a snapshot record for each running container in scope."""
        return self._watch.running_containers()

    async def snapshot(self) -> tuple[str, int]:
        """Request a snapshot and wait until it is complete; return its id and the number of its containers."""
        return await self._watch.take_snapshot()
