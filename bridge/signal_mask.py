"""Blocking of signals during startup and exit: the kernel keeps them pending until the handlers are installed.

Imports take most of the first second. A signal that ended the process during imports would look like a failure to the
service manager, and an exception raised by a signal handler could be swallowed by a callback.
"""

from __future__ import annotations

import signal

_BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def block() -> None:
    """Block the signals that end the process; threads that start later inherit the mask."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)


def unblock() -> None:
    """Unblock the signals, which delivers pending ones."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
