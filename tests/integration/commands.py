"""Run the command line as a user does, and create containers for it."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, ClassVar, Self

from tests.testbed.containerd import Containerd
from tests.testbed.process import run

WHALEBRIDGE = [sys.executable, "-m", "bridge"]
# A name with control sequences, which a terminal would execute if they were not escaped.
HOSTILE = "web\x1b]0;title\x07[red]\x9b2J\u202e"
# Without the HTTP endpoint: concurrent processes would compete for the default port.
ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "xterm", "WHALEBRIDGE_HTTP__LISTEN": ""}


def whalebridge(
    *arguments: str, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run whalebridge without a terminal, with a text as its input."""
    command = [*prefix, *WHALEBRIDGE, *arguments]
    return run(command, env=ENVIRONMENT | dict(environment or {}), text=text, check=False)


def assert_one_line(process: subprocess.CompletedProcess[str], status: int, *message: str) -> None:
    assert (process.returncode, process.stdout) == (status, ""), process.stderr
    assert re.fullmatch(r"whalebridge: .*\n", process.stderr), process.stderr
    assert [each for each in message if each not in process.stderr] == []


class PipedCommand:
    """whalebridge with pipes for both outputs; exiting the context kills it."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*WHALEBRIDGE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT | dict(environment or {}),
        )

    @property
    def out(self) -> IO[bytes]:
        assert self.process.stdout
        return self.process.stdout

    @property
    def log(self) -> IO[bytes]:
        assert self.process.stderr
        return self.process.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        with self.process:
            pass


class ContainerFactory:
    """Create containers with unique names on a shared containerd, and remove them."""

    _numbers = itertools.count()
    _with_image: ClassVar[set[tuple[str, str]]] = set()
    """Addresses of containerds and namespaces that have the image."""

    def __init__(self, engine: Containerd) -> None:
        self.engine = engine
        self.address = engine.address
        self._created: list[tuple[str, str]] = []

    def run(
        self,
        namespace: str = "default",
        labels: dict[str, str] | None = None,
        prefix: str = "cli",
        command: Sequence[str] = ("sleep", "86400"),
    ) -> str:
        """Run a container, by default an idle one, and return its id."""
        id_ = f"{prefix}-{os.getpid()}-{self.engine.version.replace('.', '')}-{next(self._numbers)}"
        if (self.address, namespace) not in self._with_image:
            self.engine.import_image(namespace)
            self._with_image.add((self.address, namespace))
        self.engine.run(id_, *command, namespace=namespace, labels=labels)
        self._created.append((namespace, id_))
        return id_

    def remove_all(self) -> None:
        for namespace, id_ in self._created:
            self.engine.ctr("tasks", "delete", "--force", id_, namespace=namespace, check=False)
            self.engine.ctr("containers", "delete", id_, namespace=namespace)
