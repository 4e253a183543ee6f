"""Writes log lines to standard error in a dedicated thread.

The reader of standard error may stop reading (``whalebridge run 2>&1 | less``). The process must still watch containerd
and handle signals, so lines that exceed the buffer are dropped and counted. The next line that fits is preceded by a
line with the count.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable

STDERR = 2
MAX_PENDING_LINES = 1000
EXIT_SECONDS = 1.0  # for a reader that has stopped reading


class NonBlockingWriter:
    """Writes lines in order; the caller never waits for the reader.

    Args:
        format_dropped: Returns the line that reports a number of dropped lines.
        descriptor: The file descriptor to write to.
        max_lines: Maximum number of pending lines; further lines are dropped.
    """

    def __init__(
        self,
        format_dropped: Callable[[int], str],
        *,
        descriptor: int = STDERR,
        max_lines: int = MAX_PENDING_LINES,
    ) -> None:
        self._format_dropped = format_dropped
        self._descriptor = descriptor
        self._max_lines = max_lines
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._closed = False
        self._changed = threading.Condition()
        # A daemon: a thread that is stuck in write(2) cannot be woken, and must not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write_line(self, line: str) -> None:
        """Queue a line, given without its line feed."""
        with self._changed:
            if len(self._lines) >= self._max_lines or self._closed:
                self._dropped += 1
                return
            if self._dropped:
                self._lines.append(self._format_dropped(self._dropped))
                self._dropped = 0
            self._lines.append(line)
            self._changed.notify()

    def close(self, seconds: float = EXIT_SECONDS) -> None:
        """Write the pending lines, for at most ``seconds``; later lines are dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while line := self._next_line():
            # Not with sys.stderr: a stuck thread that holds its lock would make the interpreter abort at exit.
            _write(self._descriptor, f"{line}\n".encode(errors="backslashreplace"))

    def _next_line(self) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closed)
            return self._lines.popleft() if self._lines else None


def _write(descriptor: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # the parent process made the descriptor non-blocking
            select.select([], [descriptor], [])
        except OSError:  # the reader is gone, and the error cannot be logged
            return
