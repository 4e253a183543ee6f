"""A place where what the documents say can be typed as it stands there: the paths and names in it lead to the testbed.

It is a mount namespace: `/run` and `/var/lib/whalebridge` are folders of the test's, with containerd's sockets where
distributions have them, and `whalebridge` and the brokers' tools are on PATH. Addresses of brokers are replaced.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.documentation import ROOT
from tests.integration.commands import ENVIRONMENT
from tests.integration.terminal import Terminal
from tests.testbed import kcat
from tests.testbed.components import cache_directory
from tests.testbed.containerd import Containerd
from tests.testbed.install import search_path

SOCKETS = ("run/containerd/containerd.sock", "run/k3s/containerd/containerd.sock")


class ShellSandbox:
    """Where commands are typed.

    `brokers`: what stands for the addresses in the documents. `engine`: whose sockets are there. `state`: the directory
    of state that is there, of a bridge that runs.
    """

    def __init__(
        self, directory: Path, brokers: Mapping[str, str], engine: Containerd | None = None, state: Path | None = None
    ) -> None:
        self.directory = directory
        self.brokers = brokers
        for name in ("bin", "run/whalebridge-proxy", "lib", *(str(Path(path).parent) for path in SOCKETS)):
            (directory / name).mkdir(parents=True, exist_ok=True)
        if engine:
            for path in SOCKETS:
                (directory / path).symlink_to(engine.address)
        if state:
            (directory / "lib" / "whalebridge").symlink_to(state)
        self._program("whalebridge", f'exec {sys.executable} -m bridge "$@"')
        for tool, name in (("kafka-topics.sh", "TopicCommand"), ("kafka-acls.sh", "AclCommand")):
            self._program(
                tool, f"exec java -cp '{cache_directory()}/kafka-tools/libs/*' org.apache.kafka.tools.{name} \"$@\""
            )
        self._program(
            "make", f'exec /usr/bin/make --old-file=setup --old-file=testbed BIN={Path(sys.executable).parent} "$@"'
        )
        libraries = kcat.environment()["LD_LIBRARY_PATH"]
        self._program("kcat", f'LD_LIBRARY_PATH={libraries} exec $(PATH={search_path("kcat")} which kcat) "$@"')
        groups = Path("/etc/group").read_text()
        (directory / "group").write_text(f"{groups}whalebridge:x:4321:\n")

    def run(self, text: str) -> Terminal:
        """Type it; what it shows is on a terminal."""
        for name, address in self.brokers.items():
            text = text.replace(name, address)
        binds = {"group": "/etc/group", "run": "/run", "lib": "/var/lib"}
        mounts = [f"mount --bind {self.directory / ours} {theirs}" for ours, theirs in binds.items()]
        script = " && ".join([*mounts, f"cd {ROOT}", f"exec bash -c {shlex.quote(text)}"])
        environment = {**ENVIRONMENT, "PATH": f"{self.directory}/bin:{search_path('nats')}", "PYTHONPATH": str(ROOT)}
        # The documents' `nats` commands speak of the server of the reader's context.
        environment |= {"HOME": str(Path.home()), "NATS_URL": self.brokers.get("nats-1:4222", "")}
        # Names and dates are not cut.
        return Terminal(["unshare", "--mount", "sh", "-c", script], environment, columns=1000)

    def _program(self, name: str, script: str) -> None:
        path = self.directory / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


def interrupt(terminal: Terminal) -> int:
    """Ctrl-C, for all of a pipeline; return the exit status."""
    return _signal_and_wait(terminal, signal.SIGINT)


def terminate(terminal: Terminal) -> None:
    """End all that was typed; a shell that loops would go on after a Ctrl-C that the command in the loop heeds."""
    _signal_and_wait(terminal, signal.SIGTERM)


def _signal_and_wait(terminal: Terminal, signal_number: signal.Signals) -> int:
    os.killpg(terminal.process.pid, signal_number)
    return terminal.process.wait(60)
