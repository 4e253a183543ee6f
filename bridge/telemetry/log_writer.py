"""Log lines on their way to standard error, written by a thread of its own.

Whoever reads standard error may stop reading (``whalebridge run 2>&1 | less``); the process must go on watching, and
must still hear a signal. Lines for which there is no room meanwhile are counted and left out, and a line tells how
many as soon as there is room again.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable

STDERR = 2
LINES_KEPT = 1000
EXIT_SECONDS = 1.0  # what a reader that has fallen asleep is given at the end


class NonBlockingWriter:
    """Takes lines without ever waiting for the reader; writes them in order. ``left_out`` makes a line of a count."""

    def __init__(self, left_out: Callable[[int], str], *, descriptor: int = STDERR, kept: int = LINES_KEPT) -> None:
        self._tell_left_out = left_out
        self._descriptor = descriptor
        self._kept = kept
        self._lines: deque[str] = deque()
        self._left_out = 0
        self._closed = False
        self._changed = threading.Condition()
        # A daemon: a thread that is stuck in write(2) cannot be woken, and must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def write_line(self, line: str) -> None:
        """Take over one line; its line feed is added."""
        with self._changed:
            if len(self._lines) >= self._kept or self._closed:
                self._left_out += 1
                return
            if self._left_out:
                self._lines.append(self._tell_left_out(self._left_out))
                self._left_out = 0
            self._lines.append(line)
            self._changed.notify()

    def close(self, seconds: float = EXIT_SECONDS) -> None:
        """Write what is left, for as long as ``seconds``; lines taken over later are left out."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while line := self._next():
            # Not through sys.stderr: a thread that is stuck with its lock would abort the interpreter at its end.
            _write(self._descriptor, f"{line}\n".encode(errors="backslashreplace"))

    def _next(self) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closed)
            return self._lines.popleft() if self._lines else None


def _write(descriptor: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # whoever gave us the descriptor has made it non-blocking
            select.select([], [descriptor], [])
        except OSError:  # nobody reads any more, and there is nobody left to tell
            return
