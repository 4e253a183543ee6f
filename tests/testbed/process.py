"""Running programs and waiting for what they do, always with a bound."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.eventually import eventually


class CommandError(Exception):
    """A program ended with another status than 0; `result` has its output."""

    def __init__(self, result: subprocess.CompletedProcess[str]) -> None:
        said = (result.stderr.strip() or result.stdout.strip())[-4000:]
        super().__init__(f"{' '.join(map(str, result.args))}: exit status {result.returncode}: {said}")
        self.result = result


def run(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = 60, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and hand back its output; a failure raises with what it wrote to stderr."""
    result = subprocess.run(
        command,
        env=env,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if check and result.returncode:
        raise CommandError(result)
    return result


def suspend_process(pid: int) -> None:
    """SIGSTOP a process, and wait until all of its threads have stopped: until then one may still have answered."""
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")

    def stopped() -> bool:
        try:
            return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads.glob("*/stat"))
        except OSError:  # one of them has ended meanwhile
            return False

    eventually(stopped, f"process {pid} to stop")


def pids_with_arguments(*required: str) -> list[int]:
    """Living processes that have all of these among the arguments of their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_text(errors="replace").split("\0")
            except OSError:  # it ended while we looked
                continue
            if all(argument in arguments for argument in required):
                found.append(int(entry.name))
    return found
