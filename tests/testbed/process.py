"""Run and suspend processes, with timeouts."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.eventually import eventually


class Closing:
    """A context manager that starts, and closes in any case, also if the start fails."""

    def start(self) -> None:
        """Start; by default, there is nothing to start."""

    def close(self) -> None:
        """Stop and remove everything that this instance started or created."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CommandError(Exception):
    """A program exited with a status other than 0; `result` has its output."""

    def __init__(self, result: subprocess.CompletedProcess[str]) -> None:
        output = (result.stderr.strip() or result.stdout.strip())[-4000:]
        super().__init__(f"{' '.join(map(str, result.args))}: exit status {result.returncode}: {output}")
        self.result = result


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    directory: Path | None = None,
    text: str = "",
    timeout: float = 60,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a program with a text as its input, and return its output.

    With `check`, a failure raises CommandError with its stderr.
    """
    result = subprocess.run(
        command,
        env=env,
        cwd=directory,
        timeout=timeout,
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if check and result.returncode:
        raise CommandError(result)
    return result


def suspend_process(pid: int) -> None:
    """Send SIGSTOP, and wait until all threads have stopped: until then, a thread may still respond."""
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")

    def stopped() -> bool:
        try:
            return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads.glob("*/stat"))
        except OSError:  # a thread has exited meanwhile
            return False

    eventually(stopped, f"process {pid} to stop")


def pids_with_arguments(*required: str) -> list[int]:
    """Return the ids of running processes whose command lines contain all of these arguments."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_text(errors="replace").split("\0")
            except OSError:  # it has exited meanwhile
                continue
            if all(argument in arguments for argument in required):
                pids.append(int(entry.name))
    return pids
