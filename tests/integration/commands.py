"""Calling the command line as people do, and containers to call it about."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from tests.testbed.containerd import Containerd

WHALEBRIDGE = [sys.executable, "-m", "bridge"]
# A name that a terminal would obey, were it shown as it is.
HOSTILE = "web\x1b]0;title\x07[red]\x9b2J\u202e"
# Without the HTTP endpoint: many run at a time, and the default port is one.
ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "xterm", "WHALEBRIDGE_HTTP__LISTEN": ""}


def whalebridge(*arguments: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Call it without a terminal."""
    command = [*prefix, *WHALEBRIDGE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT)


def assert_one_line(done: subprocess.CompletedProcess[str], status: int, *said: str) -> None:
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert re.fullmatch(r"whalebridge: .*\n", done.stderr), done.stderr
    assert [each for each in said if each not in done.stderr] == []


class Yard:
    """Makes containers of names of their own on a shared containerd, and removes them."""

    _numbers = itertools.count()

    def __init__(self, engine: Containerd) -> None:
        self.engine = engine
        self.address = engine.address
        self._made: list[tuple[str, str]] = []

    def run(self, namespace: str = "default", labels: dict[str, str] | None = None, stem: str = "cli") -> str:
        """Run a container that does nothing, and return its id."""
        id_ = f"{stem}-{os.getpid()}-{self.engine.version.replace('.', '')}-{next(self._numbers)}"
        self.engine.import_image(namespace)
        self.engine.run(id_, "sleep", "86400", namespace=namespace, labels=labels)
        self._made.append((namespace, id_))
        return id_

    def clear(self) -> None:
        for namespace, id_ in self._made:
            self.engine.ctr("tasks", "delete", "--force", id_, namespace=namespace, check=False)
            self.engine.ctr("containers", "delete", id_, namespace=namespace)
