"""Show what the dashboard shows of a simulated fleet: ``python -m tests.bench.dashboard --nodes 5000``.

A real Prometheus with the metrics of the fleet runs each query of the dashboard once; the table has the number of
series, the duration, and the first values.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fleet_metrics import CLUSTERS, END, dashboard_queries, fleet_samples
from tests.testbed import install
from tests.testbed.prometheus import COMPONENTS, Prometheus

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "whalebridge.json"
SHOWN = 3  # values of each query


def main() -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.dashboard", description=__doc__)
    parser.add_argument("--nodes", type=int, default=100, help="nodes of the fleet (%(default)s)")
    parser.add_argument("--minutes", type=int, default=2, help="minutes with a sample per series (%(default)s)")
    args = parser.parse_args()
    install.install(COMPONENTS)
    dashboard = json.loads(DASHBOARD.read_text())
    with Prometheus(fleet_samples(args.nodes // len(CLUSTERS), minutes=args.minutes)) as prometheus:
        sys.stdout.writelines(f"{line}\n" for line in _table(prometheus, dashboard))
    return 0


def _table(prometheus: Prometheus, dashboard: dict[str, Any]) -> Iterator[str]:
    yield "| panel | series | duration | values |\n|---|---|---|---|"
    total = 0.0
    for title, _, query in dashboard_queries(dashboard):
        started = time.monotonic()
        series = prometheus.query(query, END)
        duration = time.monotonic() - started
        total += duration
        values = "; ".join(f"{_name(each['metric'])} {float(each['value'][1]):.4g}".strip() for each in series[:SHOWN])
        yield f"| {title} | {len(series)} | {duration * 1000:.0f} ms | {values} |"
    yield f"| all | | {total * 1000:.0f} ms | |"


def _name(labels: dict[str, str]) -> str:
    return " ".join(value for _, value in sorted(labels.items()))


if __name__ == "__main__":
    sys.exit(main())
