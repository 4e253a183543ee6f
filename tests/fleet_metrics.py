"""The metrics of a simulated fleet with every kind of problem, as Prometheus would store them: the real exposition of
bridges in two clusters with the same node names, with a sample per minute.
"""

from __future__ import annotations

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
_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")


class _Bridge(Struct):
    """The bridge of one node, ``minute`` minutes after its start."""

    number: int
    minute: int = 0

    def status(self) -> Status:
        """Return a status with problems that depend on the number of the node."""
        sick, minute = self.number == SICK, self.minute
        counters = Counters()
        counters.records.update({("started", "live"): 20 * minute, ("exited", "live"): 19 * minute})
        counters.records["exited", "inferred"] = minute
        counters.snapshots.update({"start": 1, "interval": minute})
        if self.number in SINK_PROBLEM:
            reasons: tuple[SnapshotReason, ...] = ("overflow", "audit", "outbox_reset")
            counters.gaps.update(dict.fromkeys(reasons, minute))
            counters.gap_seconds.update(dict.fromkeys(reasons, minute * 1.5))
        counters.reconnects = minute if sick else 0
        counters.exits.restore(
            {
                ExitNamespace("k8s.io", f"team-{team}"): NamespaceExits((minute * team,) * len(STATUSES), minute, 0)
                for team in range(1, 13)
            }
        )
        return Status(
            host=f"n{self.number}",
            attributes={},
            engine=Engine(f"engine-{self.number}", "2.4", "/c.sock", 1),
            include=("*",),
            exclude=(),
            synced=not sick,
            containerd_error=None,
            second_bridges=int(sick),
            excluded_namespaces=(),
            watermark_age=90.0 if sick else 2.0,
            max_watermark_age=20.0,
            outbox_error="full" if sick else None,
            outbox_max_bytes=1000,
            sinks=[self._sink(name) for name in SINKS],
            running=30,
            paused=1,
            counters=counters,
            ignored_events=Counter(exec_exit=minute, undecodable=minute * sick, query_failed=minute, cri_exit=minute),
            proxy_denied_calls=minute * sick,
            settings_error="restart" if sick else None,
        )

    def running_containers(self) -> list[Transition]:
        """Not used."""
        return []

    async def snapshot(self) -> tuple[str, int]:
        """Not used."""
        raise NotImplementedError

    def _sink(self, name: str) -> SinkStatus:
        fails = name == SINKS[0] and self.number in SINK_PROBLEM
        lost = self.minute * fails
        latency = Histogram()
        for number in range(self.minute):
            latency.observe(0.002 * (number % 7))
        lag = Lag(90, 900, 600.0, lost) if fails else Lag(1, 10, 0.1, 0)
        state: SinkState = "failing" if fails else "ok"
        return SinkStatus(name, state, None, lag, 20 * self.minute, lost, lost, latency)


def fleet_samples(nodes: int, *, minutes: int = MINUTES) -> Iterator[str]:
    """Yield the samples of ``nodes`` nodes in each cluster, and of kube-state-metrics and a cluster that is gone."""
    yield f'up{{job="whalebridge",cluster="gone",instance="n1"}} 1 {END - 24 * 3600}'
    bridges = [(_Bridge(number), pod) for number in range(nodes) for pod in _pods(number)]
    exposed = [(bridge, pod, Metrics(bridge)) for bridge, pod in bridges]
    for minute in range(minutes + 1):
        at = END - STEP * (minutes - minute)
        for cluster in CLUSTERS:
            yield from _kubernetes_samples(cluster, at)
        for bridge, pod, metrics in exposed:
            bridge.minute = minute
            target = f'job="whalebridge",instance="n{bridge.number}",pod="{pod}"'
            text = metrics.render("")[0].decode() if bridge.number not in DOWN else ""
            for cluster in CLUSTERS:
                yield from _samples(text, f'{target},cluster="{cluster}"', at)


def _pods(number: int) -> tuple[str, ...]:
    return (f"p{number}", "new") if number == REPLACED else (f"p{number}",)


def _samples(text: str, target: str, at: int) -> Iterator[str]:
    yield f"up{{{target}}} {int(bool(text))} {at}"
    for line in text.splitlines():
        sample = _SAMPLE.fullmatch(line)
        if sample is not None and sample["name"] != "process_start_time_seconds":
            labels = ",".join(filter(None, (target, (sample["labels"] or "").rstrip(","))))
            yield f"{sample['name']}{{{labels}}} {sample['value']} {at}"
    if text:
        yield f"process_start_time_seconds{{{target}}} {END - 600 if 'new' in target else END - 10**6} {at}"


def _kubernetes_samples(cluster: str, at: int) -> Iterator[str]:
    labels = f'job="kube-state-metrics",cluster="{cluster}",namespace="w",daemonset="whalebridge"'
    for name, value in (("number_unavailable", 1), ("updated_number_scheduled", 30)):
        yield f"kube_daemonset_status_{name}{{{labels}}} {value} {at}"
    alert = f'alertname="WhalebridgeSinkDown",alertstate="firing",severity="warning",sink="kafka",cluster="{cluster}"'
    yield f'ALERTS{{{alert},instance="n2"}} 1 {at}'


def dashboard_queries(dashboard: dict[str, Any], node: str = ".*") -> Iterator[tuple[str, str, str]]:
    """Yield the title, the type and the query of each query of a dashboard, with values for its variables.

    Like in Grafana, ``node`` is a regular expression, and by default that of all nodes.
    """
    queries = [(each["name"], "annotation", each["expr"]) for each in dashboard["annotations"]["list"]]
    for panel in dashboard["panels"]:
        queries += [(panel["title"], panel["type"], target["expr"]) for target in panel.get("targets", ())]
    for title, type_, query in queries:
        for variable, value in {"job": "whalebridge", "cluster": ".*", "instance": node}.items():
            query = query.replace(f"${variable}", value)  # noqa: PLW2901
        yield title, type_, query.replace("$__rate_interval", "5m")
