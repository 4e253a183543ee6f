"""A shell in which documented commands run verbatim: their paths and names lead to the testbed.

The shell has a mount namespace: `/run`, `/var/lib` and `/var/log` are directories of the test, with containerd's
sockets at the paths of the distributions; `whalebridge`, DuckDB and the brokers' tools are on PATH. Broker addresses
are replaced.
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
    """Run documented commands.

    Args:
        directory: Directory for the mounts.
        brokers: Replacements for the broker addresses in the documents.
        engine: The containerd behind the sockets.
        state: State directory of a running bridge, mounted at the documented path.
        logs: Directory with the file of a sink, mounted at the documented path.
    """

    def __init__(
        self,
        directory: Path,
        brokers: Mapping[str, str],
        engine: Containerd | None = None,
        *,
        state: Path | None = None,
        logs: Path | None = None,
    ) -> None:
        self.directory = directory
        self.brokers = brokers
        for name in ("bin", "run/whalebridge-proxy", "lib", "log", *(str(Path(path).parent) for path in SOCKETS)):
            (directory / name).mkdir(parents=True, exist_ok=True)
        if engine:
            for path in SOCKETS:
                (directory / path).symlink_to(engine.address)
        if state:
            (directory / "lib" / "whalebridge").symlink_to(state)
        if logs:
            (directory / "log" / "whalebridge").symlink_to(logs)
        self._program("whalebridge", f'exec {sys.executable} -m bridge "$@"')
        self._program("duckdb", f'exec {Path(sys.executable).with_name("duckdb")} "$@"')
        jars = ":".join(f"{cache_directory()}/{component}/libs/*" for component in ("kafka-tools", "kafka"))
        for tool, name in (
            ("kafka-topics.sh", "org.apache.kafka.tools.TopicCommand"),
            ("kafka-acls.sh", "org.apache.kafka.tools.AclCommand"),
            ("kafka-configs.sh", "kafka.admin.ConfigCommand"),
        ):
            self._program(tool, f"exec java -cp '{jars}' {name} \"$@\"")
        self._program(
            "make",
            "exec /usr/bin/make --old-file=setup --old-file=setup-runtime --old-file=testbed "
            f'BIN={Path(sys.executable).parent} "$@"',
        )
        libraries = kcat.environment()["LD_LIBRARY_PATH"]
        self._program("kcat", f'LD_LIBRARY_PATH={libraries} exec $(PATH={search_path("kcat")} which kcat) "$@"')
        groups = Path("/etc/group").read_text()
        (directory / "group").write_text(f"{groups}whalebridge:x:4321:\n")

    def run(self, text: str) -> Terminal:
        """Run a command on a terminal."""
        for name, address in self.brokers.items():
            text = text.replace(name, address)
        binds = {"group": "/etc/group", "run": "/run", "lib": "/var/lib", "log": "/var/log"}
        mounts = [f"mount --bind {self.directory / source} {target}" for source, target in binds.items()]
        script = " && ".join([*mounts, f"cd {ROOT}", f"exec bash -c {shlex.quote(text)}"])
        environment = {**ENVIRONMENT, "PATH": f"{self.directory}/bin:{search_path('nats')}", "PYTHONPATH": str(ROOT)}
        # The documented `nats` commands use the server of the reader's context.
        environment |= {"HOME": str(Path.home()), "NATS_URL": self.brokers.get("nats-1:4222", "")}
        # Wide enough for complete names and dates.
        return Terminal(["unshare", "--mount", "sh", "-c", script], environment, columns=1000)

    def _program(self, name: str, script: str) -> None:
        path = self.directory / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


def interrupt(terminal: Terminal) -> int:
    """Send SIGINT to a pipeline, like Ctrl-C, and return the exit status."""
    return _signal_and_wait(terminal, signal.SIGINT)


def terminate(terminal: Terminal) -> None:
    """Send SIGTERM to a pipeline; a shell loop would continue after SIGINT if the command in it handles the signal."""
    _signal_and_wait(terminal, signal.SIGTERM)


def _signal_and_wait(terminal: Terminal, signal_number: signal.Signals) -> int:
    os.killpg(terminal.process.pid, signal_number)
    return terminal.process.wait(60)
