"""Servers of one program each, in a folder of their own, that can be started, ended and frozen, alone or together."""

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
from types import TracebackType
from typing import Self

from tests.eventually import eventually
from tests.testbed import cleanup
from tests.testbed.process import suspend_process

HOST = "127.0.0.1"
# Below the range of outgoing connections: on loopback a client that retries a dead port of that range may, in the end,
# be connected to itself. Each worker of pytest-xdist has its share: much time may pass until a port is listened at, and
# while a server is dead nobody does.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(20_000, 32_000)[_WORKER :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
_allocated_ports: set[int] = set()


def free_port() -> int:
    """A TCP port that nothing listens at, and that was not handed out before."""
    for _ in range(1000):
        port = random.choice(_PORTS)  # noqa: S311 - others look for ports at the same time, so not one after the other
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
    """A folder whose processes, and itself, go away with close() or the end of the tests, however that comes."""

    def __init__(self, name: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"whalebridge-{name}-", dir="/tmp"))
        self._cleanup = subprocess.Popen(
            [sys.executable, cleanup.__file__, str(self.directory)], stdin=subprocess.PIPE, start_new_session=True
        )

    def spawn(
        self, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program that goes on; both its outputs are appended to `log`."""
        environment = {**(os.environ if env is None else env), cleanup.WORKSPACE_VARIABLE: str(self.directory)}
        with log.open("ab") as file:
            # A session of its own: Ctrl-C at a terminal ends the tests alone, which then end it in their order.
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    def close(self) -> None:
        """End and remove everything."""
        self._cleanup.communicate(timeout=60)  # the end of its standard input is its sign
        if self._cleanup.returncode:
            raise RuntimeError(f"cleaning up {self.directory} failed")
        shutil.rmtree(self.directory, ignore_errors=True)


class Server:
    """One process of a peer."""

    def __init__(
        self, name: str, workspace: Workspace, command: Sequence[str], *, is_ready: Callable[[], object]
    ) -> None:
        """`ready` is polled after a start; its OSError counts as no."""
        self.name = name
        self.log = workspace.directory / f"{name}.log"
        self._workspace = workspace
        self._command = command
        self._is_ready = is_ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id, while it runs."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and not ended since."""
        return self._process is not None

    def launch(self) -> None:
        """Start it without waiting."""
        if self._process is not None:
            raise RuntimeError(f"{self.name} is running")
        self._process = self._workspace.spawn(self._command, log=self.log)

    def wait_ready(self, timeout: float = 60) -> None:
        """Wait until it answers; where it ended instead, raise with the end of its log."""

        def answers() -> object:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended: {self.log.read_text()[-2000:]}")
            try:
                return self._is_ready()
            except OSError:
                return False

        eventually(answers, f"{self.name} to answer ({self.log})", within=timeout)

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch()
        self.wait_ready()

    def stop(self, timeout: float = 30) -> None:
        """End it as an operator does (SIGTERM)."""
        self._signal_and_wait(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """SIGKILL it."""
        self._signal_and_wait(signal.SIGKILL, 30)

    def suspend(self) -> None:
        """Freeze it (SIGSTOP): its sockets still accept, and nothing answers."""
        suspend_process(self.pid)

    def resume(self) -> None:
        """End what suspend() began."""
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


class Servers:
    """Servers that make one peer; as a context manager it is started, and removed."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.directory = workspace.directory
        self.servers: list[Server] = []

    def start(self) -> None:
        """Start those that do not run, and wait until all answer."""
        for server in self.servers:
            if not server.running:
                server.launch()
        for server in self.servers:
            server.wait_ready()

    def stop(self) -> None:
        """End all as an operator does, one after the other."""
        for server in self.servers:
            server.stop()

    def kill(self) -> None:
        """SIGKILL all."""
        for server in self.servers:
            server.kill()

    def suspend(self) -> None:
        """Freeze all."""
        for server in self.servers:
            server.suspend()

    def resume(self) -> None:
        """End what suspend() began."""
        for server in self.servers:
            server.resume()

    def close(self) -> None:
        """End and remove everything that this instance brought about."""
        try:
            self.kill()
        finally:
            self._workspace.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
