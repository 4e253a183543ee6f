"""A command on a terminal: what it draws, page by page."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

CURSOR_HOME = "\x1b[H"
ALTERNATE_SCREEN, MAIN_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
SHOW_CURSOR = "\x1b[?25h"  # the cursor


class Terminal:
    """As a context manager: a command is run on a terminal of its own, which is its standard input and output, too."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, columns: int = 140, lines: int = 40
    ) -> None:
        self._descriptor, theirs = pty.openpty()
        self._size(theirs, columns, lines)
        self._written = b""
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        self._reader.join(30)
        os.close(self._descriptor)

    @property
    def text(self) -> str:
        """All that was written, as it was written."""
        return self._written.decode(errors="replace")

    @property
    def page(self) -> str:
        """What was drawn last, without colours; where pages are drawn one over the other, the last that is whole."""
        return re.sub(r"\x1b\[[\d;]*m", "", self.text.split(CURSOR_HOME)[-2:][0])

    def wait(self, predicate: Callable[[str], object], what: str, seconds: float = 30) -> str:
        """Wait until the page fits; return it."""
        deadline = time.monotonic() + seconds
        while not predicate(self.page):
            assert time.monotonic() < deadline, f"no {what}: {self.page}"
            time.sleep(0.05)
        return self.page

    def resize(self, columns: int, lines: int) -> None:
        self._size(self._descriptor, columns, lines)
        self.process.send_signal(signal.SIGWINCH)

    def stop(self, signal_number: signal.Signals) -> int:
        """End it, and return its exit status."""
        self.process.send_signal(signal_number)
        status = self.process.wait(30)
        self._reader.join(30)
        return status

    @staticmethod
    def _size(descriptor: int, columns: int, lines: int) -> None:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def _read(self) -> None:
        try:
            while data := os.read(self._descriptor, 65536):
                self._written += data
        except OSError:  # how Linux tells that the other end is closed
            pass
