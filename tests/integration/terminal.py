"""Run a command on a terminal and read its pages."""

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
SHOW_CURSOR = "\x1b[?25h"


class Terminal:
    """A command with a new terminal as its standard input, output and error; a context manager."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, columns: int = 140, lines: int = 40
    ) -> None:
        self._descriptor, terminal = pty.openpty()
        self._resize(terminal, columns, lines)
        self._written = b""
        self.process = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
        )
        os.close(terminal)
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
        """The complete output, with control sequences."""
        return self._written.decode(errors="replace")

    @property
    def page(self) -> str:
        """The last complete page, without colors."""
        return re.sub(r"\x1b\[[\d;]*m", "", self.colored_page)

    @property
    def colored_page(self) -> str:
        """The last complete page."""
        return self.text.split(CURSOR_HOME)[-2:][0]

    def wait(self, predicate: Callable[[str], object], what: str, seconds: float = 30) -> str:
        """Wait until the page satisfies the predicate, and return the page."""
        deadline = time.monotonic() + seconds
        while not predicate(self.page):
            assert time.monotonic() < deadline, f"no {what}: {self.page}"
            time.sleep(0.05)
        return self.page

    def resize(self, columns: int, lines: int) -> None:
        self._resize(self._descriptor, columns, lines)
        self.process.send_signal(signal.SIGWINCH)

    def stop(self, signal_number: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(signal_number)
        return self.wait_exit()

    def wait_exit(self) -> int:
        """Wait until the command has exited and its output is read; return the exit status."""
        status = self.process.wait(30)
        self._reader.join(30)
        return status

    @staticmethod
    def _resize(descriptor: int, columns: int, lines: int) -> None:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def _read(self) -> None:
        try:
            while data := os.read(self._descriptor, 65536):
                self._written += data
        except OSError:  # Linux: the other end is closed
            pass
