"""Alerts and dashboard with a real Prometheus and Alertmanager: on one node, and on fleets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fleet_metrics import END, MINUTES, STEP, dashboard_queries, fleet_samples
from tests.testbed.prometheus import ALERTMANAGER_COMPONENTS, COMPONENTS, Alertmanager, Prometheus, promtool

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yaml"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "whalebridge.json").read_text())
OPERATIONS = (DEPLOY.parent / "docs" / "operations.md").read_text()
NODES = 15  # in each cluster
MAX_SERIES = 20  # that a panel can show


@pytest.fixture(scope="module")
def prometheus() -> Iterator[Prometheus]:
    with Prometheus(fleet_samples(NODES), RULES, start=END - STEP * MINUTES, end=END) as prometheus:
        yield prometheus


@pytest.fixture(autouse=True)
def _prometheus_component(require: Callable[..., None]) -> None:
    require(*COMPONENTS)


@pytest.mark.parametrize("arguments", [("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml")])
def test_promtool_accepts_rules(arguments: tuple[str, ...]) -> None:
    promtool(*arguments, directory=RULES.parent)


# --- all queries, on a fleet with every kind of problem ---


def test_each_alert_finds_its_problem_in_fleet(prometheus: Prometheus) -> None:
    group = yaml.safe_load(RULES.read_text())["groups"][0]
    found = {rule["alert"]: prometheus.query(rule["expr"], END) for rule in group["rules"]}
    assert [alert for alert, series in found.items() if not series] == []
    clusters = {alert: {each["metric"].get("cluster") for each in series} for alert, series in found.items()}
    assert clusters.pop("WhalebridgeAbsent") == {"gone"}
    assert {frozenset(each) for each in clusters.values()} == {frozenset({"eu", "us"})}


def test_each_dashboard_query_returns_few_series_of_fleet(prometheus: Prometheus) -> None:
    for title, type_, query in dashboard_queries(DASHBOARD):
        series = prometheus.query(query, END)
        assert 1 <= len(series) <= MAX_SERIES, f"{title}: {query}: {len(series)} series"
        if type_ == "timeseries":  # topk would select other nodes at each step
            assert not [each for each in series if "instance" in each["metric"]], title


@pytest.mark.parametrize("title", ["Exits by status", "Exits by namespace, 24 h", "Failed by namespace, 24 h"])
def test_recorded_exits_equal_those_of_the_nodes(title: str, prometheus: Prometheus) -> None:
    def shown(node: str) -> dict[str, float]:
        ((_, _, query),) = [each for each in dashboard_queries(DASHBOARD, node) if each[0] == title]
        series = prometheus.query(query, END)
        labels = ("containerd_namespace", "pod_namespace", "status")
        return {"/".join(each["metric"].get(name, "") for name in labels): float(each["value"][1]) for each in series}

    everywhere, selected, one = shown(".*"), shown("n.*"), shown("n2")
    assert everywhere.keys() == selected.keys() == one.keys()
    for name, value in selected.items():
        # Each exit is spread over the five minutes that follow: some 2.5 of the fleet's 20 minutes are still to come.
        assert everywhere[name] == pytest.approx(value, rel=0.15), name
        assert one[name] < value / 5, name


# --- alerts of fleets ---

HEALTHY = {
    "up": "1x40",
    "whalebridge_ready": "1x40",
    "whalebridge_sink_up{sink='kafka'}": "1x40",
    "whalebridge_outbox_limit_bytes": "1000x40",
    "whalebridge_outbox_backlog_bytes{sink='kafka'}": "10x40",
    "whalebridge_gaps_total{reason='outbox_reset'}": "0x40",
    "whalebridge_sink_dropped_records_total{sink='kafka'}": "0x40",
    "process_start_time_seconds": "-100000x40",
}
SINK_DOWN = {"whalebridge_sink_up{sink='kafka'}": "1x5 0x35"}
DOWN = {"up": "1x5 0x35"} | {name: "1x5 stale" for name in HEALTHY if name != "up"}
GONE = dict.fromkeys(HEALTHY, "1x5 stale")
RESET = {name: "_x5 " + values for name, values in HEALTHY.items()} | {
    "process_start_time_seconds": "_x5 300x35",
    "whalebridge_gaps_total{reason='outbox_reset'}": "_x5 1x35",
}
BACKLOG = {"whalebridge_outbox_backlog_bytes{sink='kafka'}": "900x40"}
NOT_READY = {"whalebridge_ready": "1x5 0x35"}


def nodes(
    count: int,
    cluster: str = "eu",
    *,
    first: int = 0,
    pod: str = "a",
    changed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the series of healthy nodes with some changes, by their names with labels."""
    series = {}
    for number in range(first, first + count):
        labels = f"job='whalebridge',cluster='{cluster}',instance='n{number}',pod='{pod}'"
        for metric, values in {**HEALTHY, **(changed or {})}.items():
            name, _, own = metric.partition("{")
            series[f"{name}{{{labels},{own or '}'}"] = values
    return series


def rolling_restart(count: int) -> dict[str, str]:
    """Return the series of pods that are replaced one after the other, two a minute."""
    series: dict[str, str] = {}
    for number in range(count):
        at = 2 + number // 2
        before, after = f"x{at} stale", f"_x{at} "
        old = {metric: values.replace("x40", before) for metric, values in HEALTHY.items()}
        new = {metric: after + values for metric, values in HEALTHY.items()}
        new |= {"process_start_time_seconds": f"{after}{60 * at}x40", "whalebridge_ready": f"{after}0 1x40"}
        series |= nodes(1, first=number, pod="a", changed=old) | nodes(1, first=number, pod="b", changed=new)
    return series


FLEETS: dict[str, tuple[dict[str, str], dict[tuple[str, str], int]]] = {
    "all is well": (nodes(100) | nodes(100, "us"), {}),
    "a broker is away for one cluster": (
        nodes(100, changed=SINK_DOWN) | nodes(100, "us"),
        {("WhalebridgeFleetSinkDown", "eu"): 1, ("WhalebridgeSinkDown", "eu"): 100},
    ),
    "three of a hundred nodes are down": (
        nodes(3, changed=DOWN) | nodes(97, first=3) | nodes(3, "us"),
        {("WhalebridgeDown", "eu"): 3},
    ),
    "six of a hundred nodes are down or not ready": (
        nodes(3, changed=DOWN) | nodes(3, first=3, changed=NOT_READY) | nodes(94, first=6) | nodes(100, "us"),
        {("WhalebridgeFleetDown", "eu"): 1, ("WhalebridgeDown", "eu"): 3, ("WhalebridgeNotReady", "eu"): 3},
    ),
    "one of one node is down": (nodes(1, changed=DOWN), {("WhalebridgeDown", "eu"): 1}),
    "nodes of the same name have other backlogs": (
        nodes(2, changed=BACKLOG) | nodes(2, "us") | nodes(1, pod="b"),
        {("WhalebridgeOutboxNearlyFull", "eu"): 2},
    ),
    "no bridge is left": (nodes(3, changed=GONE), {("WhalebridgeAbsent", ""): 1}),
    "all pods are replaced": (rolling_restart(60), {}),
    "a replaced pod has lost its outbox": (
        nodes(1, changed=GONE) | nodes(1, pod="b", changed=RESET),
        {("WhalebridgeEventGap", "eu"): 1},
    ),
}


@pytest.mark.parametrize(("series", "expected"), FLEETS.values(), ids=FLEETS)
def test_alerts_of_fleet(series: dict[str, str], expected: dict[tuple[str, str], int], tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES.read_text())
    samples = [
        {"labels": f'{{alertname="{alert}"' + (f', cluster="{cluster}"' if cluster else "") + "}", "value": count}
        for (alert, cluster), count in expected.items()
    ]
    expression = 'count by (alertname, cluster) (ALERTS{alertstate="firing"})'
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": "25m", "exp_samples": samples}],
    }
    (tmp_path / "test.yaml").write_text(json.dumps({"rule_files": ["rules.yaml"], "tests": [test]}))
    promtool("test", "rules", "test.yaml", directory=tmp_path)


def test_cluster_that_is_gone_raises_an_alert(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES.read_text())
    series = [
        {"series": "up{job='whalebridge',cluster='eu',instance='n1'}", "values": "1x200"},
        {"series": "up{job='whalebridge',cluster='us',instance='n1'}", "values": "1x60 stale"},
    ]
    expression = 'ALERTS{alertname="WhalebridgeAbsent",alertstate="firing"}'
    labels = (
        '{__name__="ALERTS", alertname="WhalebridgeAbsent", alertstate="firing", severity="critical", '
        'cluster="us", job="whalebridge"}'
    )
    tests = [
        {"expr": expression, "eval_time": f"{hours}h", "exp_samples": [{"labels": labels, "value": 1}] * fires}
        for hours, fires in ((9, False), (28, True))
    ]
    test = {"interval": "10m", "input_series": series, "promql_expr_test": tests}
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "10m", "tests": [test]}
    (tmp_path / "test.yaml").write_text(json.dumps(document))
    promtool("test", "rules", "test.yaml", directory=tmp_path)


def test_documented_inhibition_leaves_one_alert_of_broker(require: Callable[..., None]) -> None:
    require(*ALERTMANAGER_COMPONENTS)
    (inhibition,) = re.findall(r"```yml\n(inhibit_rules:\n.*?)```", OPERATIONS, re.DOTALL)
    route = "route: {receiver: none}\nreceivers: [{name: none}]\n"
    common = {"job": "whalebridge", "sink": "kafka", "cluster": "eu"}
    fleet = {"alertname": "WhalebridgeFleetSinkDown", "severity": "critical", **common}
    single = [
        {"alertname": alert, "instance": f"n{number}", "severity": "warning", **common}
        for alert in ("WhalebridgeSinkDown", "WhalebridgeSinkLagging", "WhalebridgeOutboxNearlyFull")
        for number in range(100)
    ]
    others = [
        {**single[0], "cluster": "us"},
        {**single[0], "sink": "nats"},
        {**single[0], "alertname": "WhalebridgeDown"},
    ]
    with Alertmanager(inhibition + route) as alertmanager:
        alertmanager.post([fleet, *single, *others])
        active = alertmanager.active()
    assert {frozenset(each.items()) for each in active} == {frozenset(each.items()) for each in (fleet, *others)}
    assert len(active) == 1 + len(others)
