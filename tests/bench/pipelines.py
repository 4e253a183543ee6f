"""The compared pipelines from containerd to a topic, each started as its users start it."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from bridge.core.time import SECOND
from tests.testbed import kcat
from tests.testbed.containerd import Containerd
from tests.testbed.flood import NAMESPACE
from tests.testbed.process import Closing

Values: TypeAlias = dict[str, float]
"""Measured values by quantity, whose name has the unit."""

ROOT = Path(__file__).parents[2]
"""The code that is measured by default: this repository."""

WHALEBRIDGE, PROXIED, KCAT = "whalebridge", "whalebridge + proxy", "ctr events | kcat"
"""Names of the pipelines."""

TOPICS = frozenset({"/tasks/start", "/tasks/paused", "/tasks/resumed", "/tasks/exit"})
TYPES = frozenset({"started", "paused", "unpaused", "exited"})
_LINE = re.compile(rb"(\S+ \S+) \+0000 UTC (\S+) (\S+) ")


@dataclass
class Pipeline(Closing):
    """Processes that publish to a topic; they run within the context.

    `sent_at` returns the time at which the event of a record was sent, or None if the flood did not send it. Each
    process reads the output of the previous one, unless `side_by_side`.
    """

    name: str
    commands: Sequence[tuple[Sequence[str], dict[str, str] | None]]
    sent_at: Callable[[bytes], int | None]
    log: Path
    side_by_side: bool = False
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """Ids of the started processes."""
        return [process.pid for process in self.processes]

    def check(self) -> None:
        """Raise RuntimeError if a process has exited."""
        if any(process.poll() is not None for process in self.processes):
            raise RuntimeError(f"{self.name} exited: {self.log.read_text()[-2000:]}")

    def start(self) -> None:
        """Start the processes."""
        with self.log.open("ab") as log:
            for number, (command, environment) in enumerate(self.commands, 1):
                stdin = (self.processes and self.processes[-1].stdout) or subprocess.DEVNULL
                piped = number < len(self.commands) and not self.side_by_side
                stdout = subprocess.PIPE if piped else log
                self.processes.append(
                    subprocess.Popen(command, env=environment, stdin=stdin, stdout=stdout, stderr=log)
                )
        for process in self.processes:  # otherwise the writer would not notice that its reader has exited
            if process.stdout is not None:
                process.stdout.close()

    def close(self) -> None:
        """Stop the first process; the others exit at the end of their input, or are stopped after a timeout."""
        for number, process in enumerate(self.processes):
            if number == 0 or self.side_by_side:
                process.terminate()
            for escalate in (process.terminate, process.kill, None):
                try:
                    process.wait(15)
                    break
                except subprocess.TimeoutExpired:
                    if escalate is not None:
                        escalate()


def whalebridge(address: str, sink: str, directory: Path, code: Path = ROOT) -> Pipeline:
    """Return whalebridge with its outbox in a directory; ``code`` is the repository that it is run from."""
    command = [sys.executable, "-m", "bridge", "run", "--containerd", address, "--log-format", "json"]
    command += ["--sink", sink, "--state-dir", str(directory)]
    return Pipeline(WHALEBRIDGE, [(command, _environment(code))], record_sent_at, directory.with_suffix(".log"))


def proxied(address: str, sink: str, directory: Path, code: Path = ROOT) -> Pipeline:
    """Return whalebridge behind `whalebridge proxy`; the usage of both is added up."""
    listen = str(directory.with_suffix(".sock"))
    proxy = [sys.executable, "-m", "bridge", "proxy", "--containerd", address, "--listen", listen]
    behind = whalebridge(listen, sink, directory, code)
    commands = [(proxy, _environment(code)), *behind.commands]
    return Pipeline(PROXIED, commands, record_sent_at, behind.log, side_by_side=True)


def _environment(code: Path) -> dict[str, str]:
    # The working directory must not come first in the search path; several bridges cannot listen on one port.
    return {**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "WHALEBRIDGE_HTTP__LISTEN": ""}


def ctr_kcat(engine: Containerd, bootstrap: str, topic: str, log: Path) -> Pipeline:
    """Return the shell's pipeline `ctr events | kcat -P`."""
    ctr = engine.sandboxed_command("ctr", "--address", engine.address, "events")
    producer = ["kcat", "-P", "-b", bootstrap, "-t", topic]
    commands = [(ctr, engine.env), (producer, kcat.environment())]
    return Pipeline(KCAT, commands, line_sent_at, log)


def record_sent_at(value: bytes) -> int | None:
    record = json.loads(value)
    of_flood = record["type"] in TYPES and record["container"]["namespace"] == NAMESPACE
    return parse_nanoseconds(record["timestamp"].removesuffix("Z")) if of_flood and record["origin"] == "live" else None


def line_sent_at(value: bytes) -> int | None:
    match = _LINE.match(value)
    if not match or match[2].decode() != NAMESPACE or match[3].decode() not in TOPICS:
        return None
    return parse_nanoseconds(match[1].decode())


def parse_nanoseconds(timestamp: str) -> int:
    whole_seconds, _, fraction = timestamp.partition(".")
    seconds = datetime.datetime.fromisoformat(whole_seconds).replace(tzinfo=datetime.UTC).timestamp()
    return int(seconds) * SECOND + int(fraction.ljust(9, "0") or "0")
