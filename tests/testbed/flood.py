"""Many events of existing container records, forwarded through a containerd by the Go program of tests/bench/flood."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

from tests.testbed.containerd import Containerd
from tests.testbed.install import search_path
from tests.testbed.process import run

COMPONENTS = ("flood",)
"""What has to be installed for a flood."""

NAMESPACE = "flooded"
PHASES = 4
"""The events of one life: started, paused, resumed, exited."""


@dataclass(frozen=True)
class FloodReport:
    """What was sent; began and ended are Unix nanoseconds, and each event carries the time at which it was sent."""

    containers: int
    events: int
    started_at: int
    finished_at: int
    seconds: float
    per_second: float


def flood(
    engine: Containerd,
    *,
    events: int = 40_000,
    containers: int = 100,
    rate: float = 0,
    workers: int = 4,
    prefix: str = "flood-",
) -> FloodReport:
    """Create the container records that are not there yet, and forward the events; rate 0: as fast as can be.

    `events` is a multiple of PHASES times `containers`, so that every life ends; nothing runs behind the events.
    Another flood of the same containers (the ids are `prefix` and a number) has the same pids again.
    """
    limit = 60 + (events / rate if rate else events / 500)
    options = {"address": engine.address, "namespace": NAMESPACE, "events": events, "containers": containers}
    options |= {"rate": rate, "workers": workers, "prefix": prefix, "limit": f"{limit:.0f}s"}
    program = shutil.which("flood", path=search_path(*COMPONENTS)) or "flood"
    command = [program, "-create", *(f"-{name}={value}" for name, value in options.items())]
    said = json.loads(run(command, timeout=limit + 5).stdout)
    return FloodReport(**{name: said[name] for name in FloodReport.__dataclass_fields__})


def create_containers(engine: Containerd, containers: int = 100, prefix: str = "flood-") -> None:
    """Only create the container records."""
    flood(engine, events=0, containers=containers, prefix=prefix)
