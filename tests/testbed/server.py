"""Servers in a private directory that can be started, stopped, killed and suspended, one by one or together."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.testbed import cleanup
from tests.testbed.process import Closing, Daemon

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


class Server(Daemon):
    """One server process, with its log in a workspace."""

    def __init__(
        self, name: str, workspace: Workspace, command: Sequence[str], *, is_ready: Callable[[], object]
    ) -> None:
        """Poll `is_ready` after each start."""
        super().__init__(name, workspace.directory / f"{name}.log")
        self._workspace = workspace
        self._command = command
        self._is_ready = is_ready

    def _responds(self) -> object:
        return self._is_ready()

    def _spawn(self) -> subprocess.Popen[bytes]:
        return self._workspace.spawn(self._command, log=self.log)

    def start(self) -> None:
        """Start the server, and wait until it is ready."""
        self.launch()
        self.wait_ready()


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
