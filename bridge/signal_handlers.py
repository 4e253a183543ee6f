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


class SignalHandlers:
    """The handlers of SIGTERM, SIGINT and SIGHUP; installed in the running event loop, which unblocks the signals.

    A shutdown should end within ``stop_seconds`` of the first request.
    """

    def __init__(self, stop_seconds: float) -> None:
        self._stop_seconds = stop_seconds
        self.reload_requested = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._shutdown_requested = asyncio.Event()
        self._deadline = 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._request_shutdown, signal.Signals(number).name)
        self._loop.add_signal_handler(signal.SIGHUP, self.reload_requested.set)
        unblock()

    async def wait_for_shutdown(self) -> None:
        """Wait until a shutdown is requested."""
        await self._shutdown_requested.wait()

    async def completes_before_shutdown(self, call: Callable[[], Awaitable[None]], clock: Clock) -> bool:
        """Return whether a call completes before a shutdown is requested; otherwise, abandon it."""
        completed, _ = await first_of(with_timeout(call, None, clock), self.wait_for_shutdown())
        return completed == 0

    def seconds_left(self) -> float:
        """Return the seconds left for the shutdown."""
        return self._deadline - self._loop.time()

    def _request_shutdown(self, signal_name: str) -> None:
        """Request a shutdown; further requests have no effect."""
        if not self._shutdown_requested.is_set():
            _log.info("shutdown_started", signal=signal_name)
            self._deadline = self._loop.time() + self._stop_seconds
            self._shutdown_requested.set()
