"""Measure whalebridge, and compare it with `ctr events | kcat -P` and with another commit: `python -m tests.bench`."""

from __future__ import annotations

import argparse
import compileall
import datetime
import importlib.util
import os
import platform
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.table import Table

from tests.bench.backlog import drain_to_jetstream, drain_to_kafka
from tests.bench.consumer import measure_consumer
from tests.bench.measure import CONTAINERS, WARM_UP_PREFIX, Load, measure
from tests.bench.pipelines import (
    KCAT,
    PROXIED,
    ROOT,
    WHALEBRIDGE,
    Pipeline,
    Values,
    ctr_kcat,
    proxied,
    whalebridge,
)
from tests.bench.results import (
    BURSTS,
    EVEN,
    FLOOD,
    PAGE,
    Result,
    Results,
    extent,
    number,
    write_page,
)
from tests.bench.simulated_node import measure_node, measure_start
from tests.testbed.containerd import Containerd
from tests.testbed.flood import create_containers, evenly, in_bursts
from tests.testbed.kafka import LONG_SESSION_TIMEOUT, Kafka
from tests.testbed.nats import Nats
from tests.testbed.process import run

LOADS = (
    Load(FLOOD, 40_000),
    Load(EVEN, 4_000, evenly(4_000, rate=200)),
    Load(BURSTS, 4_000, in_bursts(4_000, rate=200, burst=20)),
)
NODES = (0, 1_000, 10_000)
# A server's options, in contrast to those for fast starts: the compiler optimizes fully.
JAVA = ("-Xmx512m", "-XX:+UseSerialGC")

Measurement: TypeAlias = Callable[[str], Values]
"""Measures once; the argument is a name that no other measurement has."""


@dataclass(frozen=True)
class Peers:
    """What the pipelines run between."""

    engine: Containerd
    kafka: Kafka
    nats: Nats
    directory: Path


def main() -> int:
    """Measure, and print the results; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="measure everything N times (default: 3)")
    parser.add_argument("--work", help="measure only this work, such as flood, 200/s or start")
    parser.add_argument("--only", metavar="PIPELINE", help="measure only this pipeline")
    parser.add_argument("--against", metavar="REV", help="measure another commit of whalebridge, too, in turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all values after each round")
    parser.add_argument("--read", type=Path, metavar="FILE", help="do not measure: read what --json has written")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw CPU and latencies as a PNG (needs matplotlib)")
    parser.add_argument("--docs", action="store_true", help=f"write the tables in {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot: matplotlib is not installed: run make bench-docs, or pip install -r of its lock file")
    if options.plot and options.work not in (None, *(load.name for load in LOADS)):
        parser.error("--plot: only loads are drawn")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # exit through the context managers, which stop the servers
    results = Results.load(options.read) if options.read else _run(parser, options)
    if options.plot:
        from tests.bench.plot import draw  # noqa: PLC0415 (needs matplotlib)

        draw(results, options.plot)
    if options.docs:
        write_page(results)
    _show(results)
    return 1 if results.failures else 0


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Results:
    with _other_commit(options.against) as other, _peers() as peers:
        versions = {WHALEBRIDGE: ROOT} | ({f"{WHALEBRIDGE} {options.against}": other} if other is not None else {})
        for code in versions.values():
            _compile(code)
        works = _works(peers, versions)
        if options.work not in (None, *works):
            parser.error(f"--work: choose one of: {', '.join(works)}")
        machine = _machine()
        for results in _measure_all(works, options, machine):
            if options.json:
                results.save(options.json)
    return results


def _machine() -> dict[str, str]:
    """Return what the figures depend on; the commit is that of the measured code."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], check=False).stdout.strip(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": platform.python_version(),
        "CPUs": str(len(os.sched_getaffinity(0))),
        "load before": _load_average(),
    }


def _load_average() -> str:
    return f"{os.getloadavg()[0]:.1f}"


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
        works[load.name][PROXIED] = partial(through, proxied, load, ROOT)
        works[load.name][KCAT] = partial(through_kcat, load)
    works["consumer"] = {WHALEBRIDGE: partial(measure_consumer, kafka)}
    return works


def _measure_all(
    works: Mapping[str, Mapping[str, Measurement]], options: argparse.Namespace, machine: Mapping[str, str]
) -> Iterator[Results]:
    """Measure in rounds, the pipelines of one work one after the other, in each second round in reverse order.

    After each round, yield the results of all rounds so far. A measurement that fails does not end the others.
    """
    measured: dict[tuple[str, str, str], list[float]] = {}
    failures: list[str] = []
    order = [(work, pipeline) for work, pipelines in works.items() for pipeline in pipelines]
    for round_ in range(1, options.rounds + 1):
        for work, pipelines in works.items():
            chosen = [name for name in pipelines if options.only in (None, name) and options.work in (None, work)]
            for position, pipeline in enumerate(chosen if round_ % 2 else reversed(chosen)):
                print(f"bench: round {round_}: {work}: {pipeline} ...", file=sys.stderr, flush=True)
                name = re.sub(r"\W+", "-", f"{work}-{round_}-{position}")
                try:
                    values = pipelines[pipeline](name)
                except Exception as error:  # noqa: BLE001 (reported, with a status; the other values take an hour)
                    failures.append(f"round {round_}: {work}: {pipeline}: {error}")
                    print(f"bench: failed: {failures[-1]}", file=sys.stderr, flush=True)
                    continue
                for quantity, value in values.items():
                    measured.setdefault((work, pipeline, quantity), []).append(value)
        results = starmap(Result, ((*key, values) for key, values in measured.items()))
        conditions = {**machine, "load after": _load_average(), "rounds": str(round_)}
        yield Results(conditions, sorted(results, key=lambda result: order.index(result[:2])), failures)


def _show(results: Results) -> None:
    table = Table(caption=", ".join(f"{name} {value}" for name, value in results.machine.items()))
    for column in ("work", "pipeline", "quantity", "min", "median", "max"):
        table.add_column(column, justify="right" if column in ("min", "median", "max") else "left")
    for work, pipeline, quantity, values in results.results:
        table.add_row(work, pipeline, quantity, *map(number, extent(values)))
    console = Console()
    Console(width=max(console.width, 140)).print(table)
    for failure in results.failures:
        print(f"failed: {failure}")


if __name__ == "__main__":
    sys.exit(main())
