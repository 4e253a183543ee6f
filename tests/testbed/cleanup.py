"""Kill all processes of a workspace and remove its directory at the end of standard input.

Standard input also ends if the tests are killed, so only this script cleans up: python3 cleanup.py DIRECTORY
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
"""Environment variable with the directory of the workspace that a process belongs to."""


def main(directory: Path) -> None:
    """Wait for the end of standard input, then kill the processes and remove the directory."""
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
    """Yield the ids of the running processes of the workspace."""
    variable = f"{WORKSPACE_VARIABLE}={directory}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has exited meanwhile; a zombie's environment is empty
                if variable in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
