"""Signals that come before anybody is ready for them: held by the kernel till then, and lost for none.

Imports take most of the first second. A signal that ended the process in the midst of them would be a failure to
whoever sent it; an exception that was raised there could get lost in a callback.
"""

from __future__ import annotations

import signal

_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def hold() -> None:
    """Let signals wait that end the process; threads made from now on leave them to the main one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)


def release() -> None:
    """Let them in, also those that came meanwhile."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
