"""Notifications to systemd, if it started the process: state changes, a status line, and watchdog messages.

The protocol is a datagram to the socket in NOTIFY_SOCKET (sd_notify(3)). Sending never blocks.
"""

from __future__ import annotations

import errno
import os
import socket
import time  # noqa: TID251 (the service manager compares the time with its own clock)
from collections import deque
from collections.abc import Callable, Mapping

import structlog

from bridge.core.ports import Clock
from bridge.telemetry.rate_limit import RateLimiter

POLL_SECONDS = 1.0
START_EXTENSION_SECONDS = 30  # much longer than POLL_SECONDS, because the machine may be busy while it boots
_MAX_PENDING = 4  # state changes to send again; if there are more, the oldest are obsolete
_MICROSECONDS = 1_000_000
_BUSY_ERRNOS = (errno.EAGAIN, errno.ENOBUFS)
_log = structlog.get_logger(__name__)


class SystemdNotifier:
    """Sends notifications to systemd, and does nothing without NOTIFY_SOCKET in ``environ``; for one event loop."""

    def __init__(self, environ: Mapping[str, str], clock: Clock) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._clock = clock
        self._rate_limiter = RateLimiter(clock)
        self._status = ""
        self._started = False
        self._pending: deque[str] = deque(maxlen=_MAX_PENDING)  # systemd kills a service that never reports READY
        self._watchdog_interval = _get_watchdog_interval(environ)

    def started(self) -> None:
        """Report the end of the start; further calls have no effect."""
        if not self._started:
            self._started = True
            self._queue_state("READY=1")

    def reloading(self) -> None:
        """Report the start of a reload; ``reloaded`` must follow."""
        self._queue_state(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self) -> None:
        """Report the end of a reload."""
        self._queue_state("READY=1")

    def stopping(self) -> None:
        """Report the start of the shutdown."""
        self._status = "shutting down: delivering the backlog"
        self._queue_state(f"STOPPING=1\nSTATUS={self._status}")

    def status(self, text: str) -> None:
        """Send the text as one line, which ``systemctl status`` shows, if it has changed."""
        line = " ".join(text.split())
        if line != self._status and self._send(f"STATUS={line}"):
            self._status = line

    async def run(self, describe: Callable[[], str]) -> None:
        """Send the status when ``describe`` returns another one, watchdog messages, and notifications that failed.

        Until ``started`` is called, each second extend the timeout of the start (TimeoutStartSec).
        """
        if not self._address:
            return
        while True:
            self._send_pending()
            self.status(describe())
            if not self._started:
                self._send(f"EXTEND_TIMEOUT_USEC={START_EXTENSION_SECONDS * _MICROSECONDS}")
            if self._watchdog_interval:
                self._send("WATCHDOG=1")
            await self._clock.sleep(min(self._watchdog_interval or POLL_SECONDS, POLL_SECONDS))

    def _queue_state(self, message: str) -> None:
        self._pending.append(message)
        self._send_pending()

    def _send_pending(self) -> None:
        while self._pending and self._send(self._pending[0]):
            self._pending.popleft()

    def _send(self, message: str) -> bool:
        """Send a message; return False if it must be sent again, because the queue of systemd's socket is full."""
        if not self._address:
            return True
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
                connection.setblocking(False)
                connection.sendto(message.encode(), address)
        except OSError as error:
            reason = error.strerror or str(error)
            self._rate_limiter.log(
                _log.warning, reason, "systemd_notify_failed", message=message.partition("\n")[0], error=reason
            )
            return error.errno not in _BUSY_ERRNOS
        return True


def _get_watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Return the seconds between watchdog messages, half of systemd's timeout; None without a watchdog."""
    microseconds, process = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isascii() or not microseconds.isdigit() or process not in ("", str(os.getpid())):
        return None
    return int(microseconds) / _MICROSECONDS / 2 or None
