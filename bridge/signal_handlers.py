"""Requests by signals: SIGHUP to reload the settings, SIGTERM and SIGINT to shut down."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import structlog

from bridge.core.ports import Clock
from bridge.signal_mask import unblock
from bridge.task_groups import first_of, with_timeout

_log = structlog.get_logger(__name__)


class ShutdownSignals:
    """Requests by signals: to reload (SIGHUP), or to shut down within ``stop_seconds`` of the first request."""

    def __init__(self, stop_seconds: float) -> None:
        self._stop_seconds = stop_seconds
        self.reload_requested = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._shutdown_requested = asyncio.Event()
        self._deadline = 0.0

    async def wait_for_shutdown(self) -> None:
        """Wait until a shutdown is requested."""
        await self._shutdown_requested.wait()

    def request_shutdown(self, signal_name: str) -> None:
        """Request a shutdown; further requests have no effect."""
        if not self._shutdown_requested.is_set():
            _log.info("shutdown_started", signal=signal_name)
            self._deadline = self._loop.time() + self._stop_seconds
            self._shutdown_requested.set()

    def seconds_left(self) -> float:
        """Return the seconds left for the shutdown."""
        return self._deadline - self._loop.time()


def install_handlers(stop_seconds: float) -> ShutdownSignals:
    """Install the handlers of SIGTERM, SIGINT and SIGHUP in the running event loop, and unblock the signals."""
    shutdown = ShutdownSignals(stop_seconds)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shutdown.request_shutdown, signal.Signals(number).name)
    loop.add_signal_handler(signal.SIGHUP, shutdown.reload_requested.set)
    unblock()
    return shutdown


async def completes_before_shutdown(
    shutdown: ShutdownSignals, call: Callable[[], Awaitable[None]], clock: Clock
) -> bool:
    """Return whether a call completes before a shutdown is requested; otherwise, abandon it."""
    completed, _ = await first_of(with_timeout(call, None, clock), shutdown.wait_for_shutdown())
    return completed == 0
