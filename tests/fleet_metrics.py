"""The metrics of a simulated fleet with every kind of problem, as Prometheus would store them: the real exposition of
bridges in two clusters with the same node names, with a sample per minute. Problems begin after a third of the time.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from bridge.core.container_state import Transition
from bridge.core.containerd_model import Engine
from bridge.core.exit_counts import STATUSES, ExitNamespace, NamespaceExits
from bridge.core.ports import Lag
from bridge.core.records import SnapshotReason
from bridge.telemetry.counters import Counters, Histogram
from bridge.telemetry.http.metrics import Metrics
from bridge.telemetry.status import SinkState, SinkStatus, Status

END = 1_700_000_000  # seconds since 1970, of the last samples
STEP = 60
MINUTES = 20  # with a sample
CLUSTERS = ("eu", "us")
SINKS = ("kafka", "nats")
# Numbers of nodes: those that cannot be scraped, the one that is not ready and has other problems, those that cannot
# reach the sink kafka and lose records, the one with an old and a new pod.
DOWN, SICK, SINK_PROBLEM, REPLACED = (0, 6), 1, (2, 3, 4), 5
# Exits per minute on a node, by status, of all teams; a team's share grows with its number.
EXITS = {"0": 24, "1": 6, "2": 1, "137": 4, "139": 1, "143": 21, "other": 2, "unknown": 1}
TEAMS = range(1, 13)
MIB = 1 << 20
_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")


class _Bridge(Struct):
    """The bridge of one node, ``minute`` minutes after its start; it has problems from ``problems_from`` on."""

    number: int
    problems_from: int
    minute: int = 0

    def status(self) -> Status:
        """Return a status with problems that depend on the number of the node."""
        number, minute, outage = self.number, self.minute, self._outage()
        sick = number == SICK and outage > 0
        counters = Counters()
        exits = sum(EXITS.values())
        counters.records.update({("started", "live"): self._total(exits), ("exited", "live"): self._total(exits - 2)})
        counters.records["exited", "inferred"] = self._total(2)
        counters.snapshots.update({"start": 1, "interval": (minute + number) // 30})
        if number in SINK_PROBLEM:
            reasons: tuple[SnapshotReason, ...] = ("overflow", "audit", "outbox_reset")
            for delay, reason in enumerate(reasons):
                counters.snapshots[reason] = counters.gaps[reason] = max(0, outage - delay)
                counters.gap_seconds[reason] = counters.gaps[reason] * (1.5 + delay)
        counters.reconnects = outage if number == SICK else 0
        counters.exits.restore({ExitNamespace("k8s.io", f"team-{team}"): self._exits(team) for team in TEAMS})
        return Status(
            host=f"n{number}",
            attributes={},
            engine=Engine(f"engine-{number}", "2.4", "/c.sock", 1),
            include=("*",),
            exclude=(),
            synced=not sick,
            containerd_error=None,
            second_bridges=int(sick),
            excluded_namespaces=(),
            watermark_age=60.0 * outage if sick else 1 + (7 * number + 3 * minute) % 10 / 5,
            max_watermark_age=20.0,
            outbox_error="full" if sick else None,
            outbox_max_bytes=256 * MIB,
            sinks=[self._sink(name) for name in SINKS],
            running=20 + number % 20 + self._total(6) - self._total(6, minute - 1),
            paused=int(number % 7 == 0),
            counters=counters,
            ignored_events=Counter(
                exec_exit=self._total(9),
                duplicate=self._total(1),
                undecodable=outage * sick,
                query_failed=(minute + number) // 20,
                cri_exit=(minute + number) // 10,
            ),
            proxy_denied_calls=outage * sick,
            commits=self._latency(0.003),
            settings_error="restart" if sick else None,
        )

    def running_containers(self) -> list[Transition]:
        """Not used."""
        return []

    async def snapshot(self) -> tuple[str, int]:
        """Not used."""
        raise NotImplementedError

    def process_metrics(self) -> dict[str, float]:
        """Return what replaces the metrics of the process that simulates the fleet."""
        backlog = 20 * MIB * min(1.0, self._outage() / 20) if self.number in SINK_PROBLEM else 0
        return {
            "process_resident_memory_bytes": (44 + self.number % 13 / 2 + self.minute / 60) * MIB + backlog,
            "process_cpu_seconds_total": self._total(60) / 60 * (0.5 + self.number * 0.618 % 1 / 2),
        }

    def _outage(self) -> int:
        """Return the minutes since the problems began."""
        return max(0, self.minute - self.problems_from)

    def _total(self, rate: float, minute: int | None = None) -> int:
        """Return how often something has happened that happens ``rate`` times per minute, in waves.

        The numbers of the nodes are rounded differently, so that their sums rise smoothly.
        """
        at = self.minute if minute is None else minute
        waves = at + 2 * math.sin(at / 6.4) + math.sin(at / 19) if at > 0 else 0.0
        return int(rate * waves + self.number * 0.618 % 1)

    def _exits(self, team: int) -> NamespaceExits:
        share = team / sum(TEAMS)
        counts = tuple(self._total(EXITS[status] * share) for status in STATUSES)
        return NamespaceExits(counts, self._total(share), 0)

    def _latency(self, seconds: float) -> Histogram:
        """Return durations that are longer under load."""
        latency = Histogram()
        for minute in range(self.minute):
            for factor in (0.5, 1.0, 1.0, 3.0):
                latency.observe(factor * seconds * (1.2 + math.sin(minute / 5)))
        return latency

    def _sink(self, name: str) -> SinkStatus:
        outage = self._outage() if name == SINKS[0] and self.number in SINK_PROBLEM else 0
        full = 10 + 5 * (self.number % 3)  # minutes until the backlog exceeds its limit
        lost = 100 * max(0, outage - full)
        share = min(1.0, outage / full) * 0.97
        lag = Lag(int(share * 180_000), int(share * 256 * MIB), 60.0 * min(outage, full), lost) if outage else _LAG
        state: SinkState = "failing" if outage else "ok"
        published = self._total(2 * sum(EXITS.values()), self.minute - outage)
        return SinkStatus(
            name, state, None, lag, published, 4 * outage, outage, self._latency(0.004 if name == "nats" else 0.008)
        )


_LAG = Lag(3, 4_000, 0.1, 0)  # of a sink without problems


def fleet_samples(nodes: int, *, minutes: int = MINUTES) -> Iterator[str]:
    """Yield the samples of ``nodes`` nodes in each cluster, and of kube-state-metrics and a cluster that is gone."""
    yield f'up{{job="whalebridge",cluster="gone",instance="n1"}} 1 {END - 24 * 3600}'
    bridges = [(_Bridge(number, minutes // 3), pod) for number in range(nodes) for pod in _pods(number)]
    exposed = [(bridge, pod, Metrics(bridge)) for bridge, pod in bridges]
    for minute in range(minutes + 1):
        at = END - STEP * (minutes - minute)
        for cluster in CLUSTERS:
            yield from _kubernetes_samples(cluster, at)
        for bridge, pod, metrics in exposed:
            bridge.minute = minute
            target = f'job="whalebridge",instance="n{bridge.number}",pod="{pod}"'
            down = bridge.number in DOWN and minute >= minutes // 3
            text = "" if down else metrics.render("")[0].decode()
            for cluster in CLUSTERS:
                yield from _samples(text, bridge.process_metrics(), f'{target},cluster="{cluster}"', at)


def _pods(number: int) -> tuple[str, ...]:
    return (f"p{number}", "new") if number == REPLACED else (f"p{number}",)


def _samples(text: str, process: dict[str, float], target: str, at: int) -> Iterator[str]:
    yield f"up{{{target}}} {int(bool(text))} {at}"
    for line in text.splitlines():
        sample = _SAMPLE.fullmatch(line)
        if sample is not None and not sample["name"].startswith("process_"):
            labels = ",".join(filter(None, (target, (sample["labels"] or "").rstrip(","))))
            yield f"{sample['name']}{{{labels}}} {sample['value']} {at}"
    if text:
        for name, value in process.items():
            yield f"{name}{{{target}}} {value} {at}"
        yield f"process_start_time_seconds{{{target}}} {END - 600 if 'new' in target else END - 10**6} {at}"


def _kubernetes_samples(cluster: str, at: int) -> Iterator[str]:
    labels = f'job="kube-state-metrics",cluster="{cluster}",namespace="w",daemonset="whalebridge"'
    for name, value in (("number_unavailable", 1), ("updated_number_scheduled", 30)):
        yield f"kube_daemonset_status_{name}{{{labels}}} {value} {at}"


def dashboard_queries(dashboard: dict[str, Any], node: str = ".*") -> Iterator[tuple[str, str, str]]:
    """Yield the title, the type and the query of each query of a dashboard, with values for its variables."""
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], "annotation", with_variables(annotation["expr"], node)
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], panel["type"], with_variables(target["expr"], node)


def with_variables(query: str, node: str = ".*") -> str:
    """Return a query with values for its variables. Like in Grafana, ``node`` is a regular expression, and by default
    that of all nodes.
    """
    values = {"job": "whalebridge", "cluster": ".*", "instance": node}
    # Grafana's value for intervals of up to three minutes: four times that between two samples.
    for variable, value in {**values, "__rate_interval": f"{4 * STEP}s"}.items():
        query = query.replace(f"${variable}", value)
    return query
