"""Ends every process of a workspace and removes its folder, once its own standard input ends.

That comes also when the tests are killed, so this script is the one way of cleaning up: python3 sweep.py FOLDER
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

WORKSPACE_VARIABLE = "WHALEBRIDGE_TESTBED"
"""The environment variable that names the folder a process belongs to."""


def main(directory: Path) -> None:
    """Wait, then kill and remove."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    sys.stdin.read()
    deadline = time.monotonic() + 30
    while pids := list(workspace_processes(directory)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"cannot kill {pids} of {directory}")
        time.sleep(0.02)
    shutil.rmtree(directory)


def workspace_processes(directory: Path) -> Iterator[int]:
    """The living processes that were started in this folder."""
    wanted = f"{WORKSPACE_VARIABLE}={directory}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it ended while we looked; a zombie's environment is empty
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
