"""What the service manager is told, where there is one: ready, what goes on, and that the event loop still turns.

systemd's protocol (sd_notify(3)) is a datagram to the socket that NOTIFY_SOCKET names. Nothing here ever waits for it.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping

import structlog

from bridge.core.ports import Clock
from bridge.telemetry.rate_limit import RateLimiter

POLL_SECONDS = 1.0
_MAX_PENDING = 4  # changes of state that are told late; of more than that the oldest do not matter any more
_MICROSECONDS = 1_000_000
_BUSY_ERRNOS = (errno.EAGAIN, errno.ENOBUFS)
_log = structlog.get_logger(__name__)


class ServiceManager:
    """Tells systemd; without NOTIFY_SOCKET in ``environ``, nobody. For use on one event loop."""

    def __init__(self, environ: Mapping[str, str], clock: Clock) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._clock = clock
        self._rate_limiter = RateLimiter(clock)
        self._status = ""
        self._pending: deque[str] = deque(maxlen=_MAX_PENDING)  # a start that is never told to be ready ends in a kill
        self._watchdog_interval = _get_watchdog_interval(environ)

    def ready(self) -> None:
        """What was to be set up is set up; also the end of a reload."""
        self._queue_state("READY=1")

    def reloading(self) -> None:
        """Settings are being read anew; ``ready`` has to follow."""
        self._queue_state(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._status = "stopping: handing over what is on its way"
        self._queue_state(f"STOPPING=1\nSTATUS={self._status}")

    def status(self, text: str) -> None:
        """Tell a person what goes on, in one line; nothing where that is known already."""
        line = " ".join(text.split())
        if line != self._status and self._send(f"STATUS={line}"):
            self._status = line

    async def run(self, describe: Callable[[], str]) -> None:
        """Tell what goes on as it changes, and before the watchdog's time is over that this loop still turns.

        What was not taken when it was told is told again.
        """
        if not self._address:
            return
        while True:
            self._send_pending()
            self.status(describe())
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
        """Return False where it is to be told again: a busy service manager has room for a few messages only."""
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
    """Return after how many seconds the watchdog wants to hear from us: half its time; None where there is none."""
    microseconds, process = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isascii() or not microseconds.isdigit() or process not in ("", str(os.getpid())):
        return None
    return int(microseconds) / _MICROSECONDS / 2 or None
