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


class Daemon:
    """A server process that can be started, stopped, killed and suspended."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start the program."""
        raise NotImplementedError

    def _responds(self) -> object:
        """Return whether the server is ready; an OSError counts as not ready."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """Return the process id of the running server."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Return whether the server was started and not stopped since."""
        return self._process is not None

    def launch(self) -> None:
        """Start the server without waiting."""
        if self._process is not None:
            raise RuntimeError(f"{self.name} is running")
        self._process = self._spawn()

    def wait_ready(self, timeout: float = 120) -> None:
        """Wait until the server is ready: on a busy machine, Kafka needs more than a minute.

        Raises:
            RuntimeError: The server has exited; the message has the end of its log.
        """

        def is_ready() -> object:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"{self.name} exited: {self.log.read_text()[-2000:]}")
            try:
                return self._responds()
            except OSError:
                return False

        eventually(is_ready, f"{self.name} to be ready ({self.log})", within=timeout)

    def stop(self) -> None:
        """Stop the server with SIGTERM."""
        self._signal_and_wait(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self._signal_and_wait(signal.SIGKILL)

    def suspend(self) -> None:
        """Suspend the server with SIGSTOP: its sockets still accept connections, but do not respond."""
        suspend_process(self.pid)

    def resume(self) -> None:
        """Resume the server after `suspend`."""
        os.kill(self.pid, signal.SIGCONT)

    def _signal_and_wait(self, signal_number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal_number)
        process.send_signal(signal.SIGCONT)  # it may be suspended
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
