"""What the service manager is told, where there is one: ready, what goes on, and that the event loop still turns.

systemd's protocol (sd_notify(3)) is a datagram to the socket that NOTIFY_SOCKET names. Nothing here ever waits for it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

import structlog

from bridge.core.ports import Clock
from bridge.telemetry.sparingly import Sparingly

LOOK_SECONDS = 1.0
_MICROSECONDS = 1_000_000
_log = structlog.get_logger(__name__)


class ServiceManager:
    """Tells systemd; without NOTIFY_SOCKET in ``environ``, nobody. For use on one event loop."""

    def __init__(self, environ: Mapping[str, str], clock: Clock) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._clock = clock
        self._sparingly = Sparingly(clock)
        self._status = ""
        self._pause = _pause(environ)

    def ready(self) -> None:
        """What was to be set up is set up; also the end of a reload."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """Settings are being read anew; ``ready`` has to follow."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._status = "stopping: handing over what is on its way"
        self._tell("STOPPING=1", f"STATUS={self._status}")

    def status(self, text: str) -> None:
        """Tell a person what goes on, in one line; nothing where that is known already."""
        line = " ".join(text.split())
        if line != self._status and self._tell(f"STATUS={line}"):
            self._status = line

    async def attend(self, describe: Callable[[], str]) -> None:
        """Tell what goes on as it changes, and before the watchdog's time is over that this loop still turns."""
        if not self._address:
            return
        while True:
            self.status(describe())
            if self._pause:
                self._tell("WATCHDOG=1")
            await self._clock.sleep(min(self._pause or LOOK_SECONDS, LOOK_SECONDS))

    def _tell(self, *lines: str) -> bool:
        """Return whether it was taken: a service manager that is busy has room for a few messages only."""
        if not self._address:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
                connection.setblocking(False)
                connection.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            reason = error.strerror or str(error)
            self._sparingly.say(_log.warning, reason, "systemd_not_told", told=lines[0], reason=reason)
            return False
        return True


def _pause(environ: Mapping[str, str]) -> float | None:
    """Return after how many seconds the watchdog wants to hear from us: half its time; None where there is none."""
    microseconds, process = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isascii() or not microseconds.isdigit() or process not in ("", str(os.getpid())):
        return None
    return int(microseconds) / _MICROSECONDS / 2 or None
