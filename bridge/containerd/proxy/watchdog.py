"""Ends the process if its event loop hangs, so that its supervisor (systemd, the kubelet) starts another one.

The proxy has no network, so nothing else can probe it. faulthandler's timer needs neither the event loop nor Python's
global lock, so it also ends a process that hangs in native code.
"""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import AsyncIterator

from bridge.core.ports import Clock
from bridge.task_groups import task_group

HANG_SECONDS = 60.0
_RESTARTS_PER_TIMEOUT = 12
_STDERR = 2


@contextlib.asynccontextmanager
async def event_loop_watchdog(seconds: float, clock: Clock) -> AsyncIterator[None]:
    """While the block runs, exit with status 1 if the event loop does not run for ``seconds``.

    Before the exit, the tracebacks of all threads are written to standard error.
    """
    _start_timer(seconds)
    async with task_group() as tasks:
        restarts = tasks.create_task(_restart_timer(seconds, clock))
        try:
            yield
        finally:
            restarts.cancel()
            faulthandler.cancel_dump_traceback_later()


def _start_timer(seconds: float) -> None:
    """Start the timer, in place of an earlier one."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)


async def _restart_timer(seconds: float, clock: Clock) -> None:
    while True:
        await clock.sleep(seconds / _RESTARTS_PER_TIMEOUT)
        _start_timer(seconds)
