"""Show what the dashboard shows of a simulated fleet: ``python -m tests.bench.dashboard --nodes 5000``.

A real Prometheus with the metrics of the fleet runs each query of the dashboard once; the table has the number of
series, the duration, and the first values. Further lines have the duration of one evaluation of each recording rule.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.fleet_metrics import CLUSTERS, END, STEP, dashboard_queries, fleet_samples
from tests.testbed import install
from tests.testbed.prometheus import COMPONENTS, Prometheus

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "whalebridge.json"
RULES = DEPLOY / "prometheus" / "rules.yaml"
SHOWN = 3  # values of each query


def main() -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.dashboard", description=__doc__)
    parser.add_argument("--nodes", type=int, default=100, help="nodes of the fleet (%(default)s)")
    parser.add_argument("--minutes", type=int, default=2, help="minutes with a sample per series (%(default)s)")
    args = parser.parse_args()
    install.install(COMPONENTS)
    dashboard = json.loads(DASHBOARD.read_text())
    samples = fleet_samples(args.nodes // len(CLUSTERS), minutes=args.minutes)
    with Prometheus(samples, RULES, start=END - STEP * args.minutes, end=END) as prometheus:
        sys.stdout.writelines(f"{line}\n" for line in _table(prometheus, dashboard))
    return 0


def _table(prometheus: Prometheus, dashboard: dict[str, Any]) -> Iterator[str]:
    yield "| panel | series | duration | values |\n|---|---|---|---|"
    total = 0.0
    for title, _, query in dashboard_queries(dashboard):
        line, duration = _line(prometheus, title, query)
        total += duration
        yield line
    yield f"| all | | {total * 1000:.0f} ms | |"
    groups = yaml.safe_load(RULES.read_text())["groups"]
    for rule in [rule for group in groups for rule in group["rules"] if "record" in rule]:
        yield _line(prometheus, f"rule {rule['record']}", rule["expr"])[0]


def _line(prometheus: Prometheus, title: str, query: str) -> tuple[str, float]:
    started = time.monotonic()
    series = prometheus.query(query, END)
    duration = time.monotonic() - started
    values = "; ".join(f"{_name(each['metric'])} {float(each['value'][1]):.4g}".strip() for each in series[:SHOWN])
    return f"| {title} | {len(series)} | {duration * 1000:.0f} ms | {values} |", duration


def _name(labels: dict[str, str]) -> str:
    return " ".join(value for _, value in sorted(labels.items()))


if __name__ == "__main__":
    sys.exit(main())
