"""Forward many events of existing containers through a containerd, with the Go program in tests/bench/flood."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from bridge.core.time import from_seconds
from tests.testbed.containerd import Containerd
from tests.testbed.install import search_path
from tests.testbed.process import run

COMPONENTS = ("flood",)
"""Components that must be installed."""

NAMESPACE = "flooded"
PHASES = 4
"""Number of events per run of a container: started, paused, resumed, exited."""


@dataclass(frozen=True)
class FloodReport:
    """Report of a flood; `started_at` and `finished_at` are Unix nanoseconds, as are the events' timestamps."""

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
    due: Sequence[float] = (),
    workers: int = 4,
    prefix: str = "flood-",
) -> FloodReport:
    """Create missing containers, and forward the events.

    `due` has the time of each event in seconds after the start; without it, they are forwarded as fast as possible.
    `events` is a multiple of PHASES times `containers`, so that all containers exit. No tasks exist behind the events.
    Another flood of the same containers (with ids of `prefix` and a number) has the same pids.
    """
    limit = 60 + (due[-1] if due else events / 500)
    options = {"address": engine.address, "namespace": NAMESPACE, "events": events, "containers": containers}
    options |= {"workers": workers, "prefix": prefix, "limit": f"{limit:.0f}s", "scheduled": str(bool(due)).lower()}
    program = shutil.which("flood", path=search_path(*COMPONENTS)) or "flood"
    command = [program, "-create", *(f"-{name}={value}" for name, value in options.items())]
    report = json.loads(run(command, text=json.dumps([*map(from_seconds, due)]), timeout=limit + 5).stdout)
    return FloodReport(**{name: report[name] for name in FloodReport.__dataclass_fields__})


def evenly(events: int, rate: float) -> list[float]:
    """Return when events are due, in seconds after the start, if they are evenly spaced at a rate per second."""
    return [number / rate for number in range(events)]


def in_bursts(events: int, rate: float, burst: int) -> list[float]:
    """Return when events are due if they come in bursts of so many at once, at the same rate on average.

    Each period has one burst, at a random moment, which is the same in each call. Completely random moments would make
    some runs of a container longer than 2 s, after which whalebridge finds out that there is no task, and ends the run.
    """
    period, chance = burst / rate, Random(f"{events}/{rate}/{burst}")  # noqa: S311
    bursts = [chance.uniform(number, number + 1) * period for number in range(-(-events // burst))]
    return [bursts[number // burst] for number in range(events)]


def create_containers(engine: Containerd, containers: int = 100, prefix: str = "flood-") -> None:
    """Create the containers without sending events."""
    flood(engine, events=0, containers=containers, prefix=prefix)
