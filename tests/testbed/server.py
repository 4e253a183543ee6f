"""Servers in a private directory that can be started, stopped, killed and suspended, one by one or together."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.eventually import eventually
from tests.testbed import cleanup
from tests.testbed.process import Closing, suspend_process

HOST = "127.0.0.1"
# Below the range of ephemeral ports: on loopback, a client that retries a closed port in that range can eventually
# connect to itself. Each worker of pytest-xdist has separate ports, because a port is not bound between its allocation
# and the start of the server, and while the server is down.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(20_000, 32_000)[_WORKER :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
_allocated_ports: set[int] = set()


def free_port() -> int:
    """Return a TCP port that is free and was not returned before."""
    for _ in range(1000):
        port = random.choice(_PORTS)  # noqa: S311 - random, because other processes allocate ports, too
        with socket.socket() as probe:
            if port not in _allocated_ports and probe.connect_ex((HOST, port)) and _can_bind(port):
                _allocated_ports.add(port)
                return port
    raise RuntimeError(f"no free port on {HOST}")


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


class Workspace:
    """A directory that close(), or the end of the tests (even by SIGKILL), removes with its processes."""

    def __init__(self, name: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"whalebridge-{name}-", dir="/tmp"))
        self._cleanup = subprocess.Popen(
            [sys.executable, cleanup.__file__, str(self.directory)], stdin=subprocess.PIPE, start_new_session=True
        )

    def spawn(
        self, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program in the background; stdout and stderr are appended to `log`."""
        environment = {**(os.environ if env is None else env), cleanup.WORKSPACE_VARIABLE: str(self.directory)}
        with log.open("ab") as file:
            # In a new session: Ctrl-C in a terminal interrupts only the tests, which stop the program in order.
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    def close(self) -> None:
        """Kill the processes, and remove the directory."""
        self._cleanup.communicate(timeout=60)  # closes its standard input, which starts the cleanup
        if self._cleanup.returncode:
            raise RuntimeError(f"cleaning up {self.directory} failed")
        shutil.rmtree(self.directory, ignore_errors=True)


class Server:
    """One server process."""

    def __init__(
        self, name: str, workspace: Workspace, command: Sequence[str], *, is_ready: Callable[[], object]
    ) -> None:
        """Poll `is_ready` after each start; an OSError counts as not ready."""
        self.name = name
        self.log = workspace.directory / f"{name}.log"
        self._workspace = workspace
        self._command = command
        self._is_ready = is_ready
        self._process: subprocess.Popen[bytes] | None = None

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
        self._process = self._workspace.spawn(self._command, log=self.log)

    def wait_ready(self, timeout: float = 60) -> None:
        """Wait until the server is ready.

        Raises:
            RuntimeError: The server has exited; the message has the end of its log.
        """

        def is_ready() -> object:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"{self.name} exited: {self.log.read_text()[-2000:]}")
            try:
                return self._is_ready()
            except OSError:
                return False

        eventually(is_ready, f"{self.name} to be ready ({self.log})", within=timeout)

    def start(self) -> None:
        """Start the server, and wait until it is ready."""
        self.launch()
        self.wait_ready()

    def stop(self, timeout: float = 30) -> None:
        """Stop the server with SIGTERM."""
        self._signal_and_wait(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self._signal_and_wait(signal.SIGKILL, 30)

    def suspend(self) -> None:
        """Suspend the server with SIGSTOP: its sockets still accept connections, but do not respond."""
        suspend_process(self.pid)

    def resume(self) -> None:
        """Resume the server after `suspend`."""
        os.kill(self.pid, signal.SIGCONT)

    def _signal_and_wait(self, signal_number: signal.Signals, timeout: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal_number)
        process.send_signal(signal.SIGCONT)  # it may be suspended
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)


class Servers(Closing):
    """The servers of one peer; they run within the context and are removed on exit."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.directory = workspace.directory
        self.servers: list[Server] = []

    def start(self) -> None:
        """Start the servers that do not run, and wait until all are ready."""
        for server in self.servers:
            if not server.running:
                server.launch()
        for server in self.servers:
            server.wait_ready()

    def stop(self) -> None:
        """Stop all servers with SIGTERM, one after the other."""
        for server in self.servers:
            server.stop()

    def kill(self) -> None:
        """Kill all servers with SIGKILL."""
        for server in self.servers:
            server.kill()

    def suspend(self) -> None:
        """Suspend all servers."""
        for server in self.servers:
            server.suspend()

    def resume(self) -> None:
        """Resume all servers after `suspend`."""
        for server in self.servers:
            server.resume()

    def close(self) -> None:
        """Stop and remove everything that this instance started or created."""
        try:
            self.kill()
        finally:
            self._workspace.close()
