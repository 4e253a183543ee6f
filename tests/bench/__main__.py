"""Compare whalebridge, with and without its proxy, with `ctr events | kcat -P`: `python -m tests.bench`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.measure import CONTAINERS, WARM_UP_PREFIX, Load, Result, measure
from tests.bench.pipelines import PIPELINES
from tests.testbed.containerd import Containerd
from tests.testbed.flood import create_containers
from tests.testbed.kafka import Kafka

LOADS = (Load("flood", 40_000), Load("200/s", 4_000, rate=200))
# A server's options, in contrast to those for fast starts: the compiler optimizes fully.
JAVA = ("-Xmx512m", "-XX:+UseSerialGC")


def main() -> int:
    """Measure the pipelines, and print the results."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Compare whalebridge, with and without its proxy, with `ctr events | kcat -P`.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--rounds", type=int, default=1, metavar="N", help="repeat the measurements N times (default: 1)"
    )
    parser.add_argument("--only", choices=PIPELINES, help="measure only this pipeline")
    parser.add_argument("--load", choices=[load.name for load in LOADS], help="measure only this load")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # exit through the context managers, which stop the servers
    load_before = os.getloadavg()[0]
    results = list(_measure_all(options))
    machine = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
    }
    if options.json:
        print(json.dumps({"machine": machine, "results": [asdict(result) for result in results]}, indent=2))
    else:
        _show(machine, results)
    return 0


def _measure_all(options: argparse.Namespace) -> Iterator[Result]:
    with (
        tempfile.TemporaryDirectory(prefix="whalebridge-bench-") as directory,
        Containerd("2.4") as engine,
        Kafka(java=JAVA) as kafka,
    ):
        create_containers(engine, CONTAINERS)
        create_containers(engine, CONTAINERS, WARM_UP_PREFIX)
        for number in range(options.rounds):
            for load in LOADS:
                for name, create_pipeline in PIPELINES.items():
                    if options.load in (None, load.name) and options.only in (None, name):
                        print(f"bench: {load.name}: {name} ...", file=sys.stderr, flush=True)
                        topic = f"{name}-{load.events}-{number}"
                        pipeline = create_pipeline(engine, kafka.bootstrap, topic, Path(directory))
                        yield measure(engine, kafka, pipeline, topic, load)


def _show(machine: dict[str, object], results: list[Result]) -> None:
    table = Table(caption=", ".join(f"{name} {value}" for name, value in machine.items()))
    columns = ("load", "pipeline", "delivered/sent", "sent/s", "to last append", "CPU/event", "containerd CPU/event")
    for column in (*columns, "p50", "p99", "peak memory"):
        table.add_column(column, justify="left" if column in ("load", "pipeline") else "right")
    for each in results:
        table.add_row(
            each.load,
            each.pipeline,
            f"{each.delivered}/{each.sent}" + (f" (+{each.repeated})" if each.repeated else ""),
            f"{each.sent_per_second:.0f}",
            f"{each.seconds:.2f} s",
            f"{each.cpu_us:.0f} us",
            f"{each.containerd_cpu_us:.0f} us",
            f"{each.p50_ms:.1f} ms",
            f"{each.p99_ms:.1f} ms",
            f"{each.peak_mib:.0f} MiB",
        )
    console = Console()
    Console(width=max(console.width, 140)).print(table)


if __name__ == "__main__":
    sys.exit(main())
