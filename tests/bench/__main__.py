"""Measure whalebridge, and compare it with `ctr events | kcat -P` and with another commit: `python -m tests.bench`."""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import re
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import NamedTuple, TypeAlias

from rich.console import Console
from rich.table import Table

from tests.bench.backlog import drain_to_jetstream, drain_to_kafka
from tests.bench.consumer import measure_consumer
from tests.bench.measure import CONTAINERS, WARM_UP_PREFIX, Load, measure
from tests.bench.pipelines import ROOT, Pipeline, Values, ctr_kcat, proxied, whalebridge
from tests.bench.simulated_node import measure_node, measure_start
from tests.testbed.containerd import Containerd
from tests.testbed.flood import create_containers
from tests.testbed.kafka import LONG_SESSION_TIMEOUT, Kafka
from tests.testbed.nats import Nats
from tests.testbed.process import run

LOADS = (Load("flood", 40_000), Load("200/s", 4_000, rate=200))
NODES = (0, 1_000, 10_000)
# A server's options, in contrast to those for fast starts: the compiler optimizes fully.
JAVA = ("-Xmx512m", "-XX:+UseSerialGC")

Measurement: TypeAlias = Callable[[str], Values]
"""Measures once; the argument is a name that no other measurement has."""


class Result(NamedTuple):
    """All measured values of one quantity, whose name has the unit."""

    work: str
    pipeline: str
    quantity: str
    values: Sequence[float]


@dataclass(frozen=True)
class Peers:
    """What the pipelines run between."""

    engine: Containerd
    kafka: Kafka
    nats: Nats
    directory: Path


def main() -> int:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON, with all values, instead of a table")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="measure everything N times (default: 3)")
    parser.add_argument("--work", help="measure only this work, such as flood, 200/s or start")
    parser.add_argument("--only", metavar="PIPELINE", help="measure only this pipeline")
    parser.add_argument("--against", metavar="REV", help="measure another commit of whalebridge, too, in turn")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # exit through the context managers, which stop the servers
    load_before = os.getloadavg()[0]
    with _other_commit(options.against) as other, _peers() as peers:
        versions = {"whalebridge": ROOT} | ({f"whalebridge {options.against}": other} if other is not None else {})
        for code in versions.values():
            _compile(code)
        works = _works(peers, versions)
        if options.work not in (None, *works):
            parser.error(f"--work: choose one of: {', '.join(works)}")
        results = _measure_all(works, options)
    machine = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
    }
    if options.json:
        print(json.dumps({"machine": machine, "results": [result._asdict() for result in results]}, indent=2))
    else:
        _show(machine, results)
    return 0


@contextmanager
def _other_commit(revision: str | None) -> Iterator[Path | None]:
    """Check out another commit beside this one."""
    if revision is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="whalebridge-bench-") as directory:
        tree = Path(directory) / "code"
        run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), revision])
        try:
            yield tree
        finally:
            run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)])


def _compile(code: Path) -> None:
    """Write the bytecode, so that no start compiles."""
    for package in ("bridge", "config", "sinks"):
        compileall.compile_dir(code / package, quiet=1)


@contextmanager
def _peers() -> Iterator[Peers]:
    with (
        tempfile.TemporaryDirectory(prefix="whalebridge-bench-") as directory,
        Containerd("2.4") as engine,
        Kafka(java=JAVA, settings=LONG_SESSION_TIMEOUT) as kafka,
        Nats() as nats,
    ):
        create_containers(engine, CONTAINERS)
        create_containers(engine, CONTAINERS, WARM_UP_PREFIX)
        yield Peers(engine, kafka, nats, Path(directory))


def _works(peers: Peers, versions: Mapping[str, Path]) -> dict[str, dict[str, Measurement]]:
    """Return the measurements by work and pipeline; ``versions`` is the code of whalebridge by name."""
    kafka, nats, engine, directory = peers.kafka, peers.nats, peers.engine, peers.directory

    def through(create: Callable[[str, str, Path, Path], Pipeline], load: Load, code: Path, name: str) -> Values:
        pipeline = create(engine.address, f"kafka://{kafka.bootstrap}/{name}", directory / name, code)
        return measure(engine, kafka, pipeline, name, load)

    def through_kcat(load: Load, name: str) -> Values:
        pipeline = ctr_kcat(engine, kafka.bootstrap, name, directory / f"{name}.log")
        return measure(engine, kafka, pipeline, name, load)

    own: dict[str, Callable[[Path, str], Values]] = {load.name: partial(through, whalebridge, load) for load in LOADS}
    own["start"] = partial(measure_start, directory)
    own |= {f"node with {count:,} containers": partial(measure_node, kafka, count, directory) for count in NODES}
    own["backlog to Kafka"] = partial(drain_to_kafka, engine, kafka, directory)
    own["backlog to JetStream"] = partial(drain_to_jetstream, engine, nats, directory)
    works: dict[str, dict[str, Measurement]] = {
        work: {version: partial(function, code) for version, code in versions.items()} for work, function in own.items()
    }
    for load in LOADS:
        works[load.name]["whalebridge + proxy"] = partial(through, proxied, load, ROOT)
        works[load.name]["ctr events | kcat"] = partial(through_kcat, load)
    works["consumer"] = {"whalebridge": partial(measure_consumer, kafka)}
    return works


def _measure_all(works: Mapping[str, Mapping[str, Measurement]], options: argparse.Namespace) -> list[Result]:
    """Measure in rounds, the pipelines of one work one after the other, in each second round in reverse order."""
    measured: dict[tuple[str, str, str], list[float]] = {}
    for number in range(options.rounds):
        for work, pipelines in works.items():
            chosen = [name for name in pipelines if options.only in (None, name) and options.work in (None, work)]
            for position, pipeline in enumerate(chosen if number % 2 == 0 else reversed(chosen)):
                print(f"bench: round {number + 1}: {work}: {pipeline} ...", file=sys.stderr, flush=True)
                name = re.sub(r"\W+", "-", f"{work}-{number}-{position}")
                for quantity, value in pipelines[pipeline](name).items():
                    measured.setdefault((work, pipeline, quantity), []).append(value)
    order = [(work, pipeline) for work, pipelines in works.items() for pipeline in pipelines]
    results = starmap(Result, ((*key, values) for key, values in measured.items()))
    return sorted(results, key=lambda result: order.index(result[:2]))


def _show(machine: dict[str, object], results: Sequence[Result]) -> None:
    table = Table(caption=", ".join(f"{name} {value}" for name, value in machine.items()))
    for column in ("work", "pipeline", "quantity", "min", "median", "max"):
        table.add_column(column, justify="right" if column in ("min", "median", "max") else "left")
    for work, pipeline, quantity, values in results:
        extent = (min(values), statistics.median(values), max(values))
        table.add_row(work, pipeline, quantity, *(f"{value:,.{0 if value >= 100 else 2}f}" for value in extent))
    console = Console()
    Console(width=max(console.width, 140)).print(table)


if __name__ == "__main__":
    sys.exit(main())
