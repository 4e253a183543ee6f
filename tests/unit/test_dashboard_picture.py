"""Test that the picture of the dashboard has every panel, with the results of its queries."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.bench import dashboard
from tests.dashboard_picture import Interval, Query, draw, format_value

DASHBOARD: dict[str, Any] = json.loads(dashboard.DASHBOARD.read_text())
INTERVAL = Interval(0, 120, 60)
LABELS = {
    "sink": "kafka",
    "state": "running",
    "version": "0.1.0",
    "type": "exited",
    "origin": "live",
    "reason": "audit",
}
LABELS |= {"status": "137", "pod_namespace": "team-1", "cluster": "eu", "instance": "n1", "severity": "critical"}
LABELS |= {"containerd_namespace": "k8s.io", "alertname": "WhalebridgeDown"}
GRAPH = {
    "type": "timeseries",
    "title": "A graph",
    "gridPos": {"h": 8, "w": 8, "x": 0, "y": 0},
    "fieldConfig": {"defaults": {"unit": "short", "min": 0, "custom": {"fillOpacity": 10}}},
    "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
    "targets": [{"expr": "up", "legendFormat": "{{sink}} {{ reason }}"}],
}
STAT = GRAPH | {"type": "stat", "options": {"colorMode": "value"}}
BARS = GRAPH | {"type": "bargauge", "options": {}}


def results(*values: float, labels: Mapping[str, str] = LABELS) -> Query:
    """Return a function that returns for each query a series that has values at 0 s, 60 s and so on."""

    def query(expression: str, instant: bool) -> list[dict[str, Any]]:
        assert "$" not in expression
        points = [(60 * number, str(value)) for number, value in enumerate(values)]
        return [{"metric": labels, "value": points[-1]} if instant else {"metric": labels, "values": points}]

    return query


def all_panels(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        yield panel
        yield from all_panels(panel.get("panels", []))


def blocks(page: str) -> dict[str, str]:
    """Return the content of each panel by title."""
    return dict(re.findall(r'<div class="panel"[^>]*><h2>(.*?)</h2>(.*)', page))


def draw_one(panel: Mapping[str, Any], query: Query) -> str:
    page, _ = draw(DASHBOARD | {"panels": [panel]}, query, INTERVAL)
    return blocks(page)[panel["title"]]


def test_each_panel_is_drawn_with_its_results() -> None:
    page, height = draw(DASHBOARD, results(1, 2, 0.75), INTERVAL)
    drawn = blocks(page)
    panels = list(all_panels(DASHBOARD["panels"]))
    headings = re.findall(r'class="row"[^>]*>&#8964; (.*?)</div>', page)
    assert headings == [panel["title"] for panel in panels if panel["type"] == "row"]
    assert list(drawn) == [panel["title"] for panel in panels if panel["type"] != "row"]
    assert height > max(panel["gridPos"]["y"] for panel in panels)
    for panel in panels:
        if panel["type"] == "timeseries":
            assert drawn[panel["title"]].count("<polyline") == len(panel["targets"]), panel["title"]
        elif panel["type"] != "row":
            field = panel["fieldConfig"]["defaults"]
            assert format_value(0.75, field["unit"], field.get("decimals")) in drawn[panel["title"]], panel["title"]


def test_graph_has_legend_and_units() -> None:
    graph = copy.deepcopy(GRAPH)
    graph["fieldConfig"]["defaults"]["unit"] = "bytes"  # type: ignore[index]
    drawn = draw_one(graph, results(3 << 20, 4 << 20, 5 << 20))
    assert "</i>kafka audit</span>" in drawn
    assert re.findall(r'text-anchor="end">(.*?)<', drawn) == ["0 B", "2 MiB", "4 MiB", "6 MiB"]


def test_graph_has_gap_where_samples_are_missing() -> None:
    assert draw_one(GRAPH, results(1, 2, 3)).count("<polyline") == 1
    assert draw_one(GRAPH, results(1, float("nan"), 3)).count("<polyline") == 2


@pytest.mark.parametrize(("value", "color"), [(79, "#73bf69"), (80, "#f2495c")])
def test_value_without_thresholds_has_color_of_grafana(value: float, color: str) -> None:
    assert f"color: {color}" in draw_one(STAT, results(value))
    assert f"fill: {color}" in draw_one(BARS, results(value))


def test_threshold_of_dashboard_colors_value() -> None:
    (panel,) = [each for each in DASHBOARD["panels"] if each["title"] == "Sinks up"]
    colors = {value: re.findall(r"color: (#\w+)", draw_one(panel, results(value))) for value in (0.5, 0.97, 1)}
    assert colors == {0.5: ["#f2495c"], 0.97: ["#ff9830"], 1: ["#73bf69"]}


def test_panel_without_series_says_so() -> None:
    assert "No data" in draw_one(GRAPH, lambda _expression, _instant: [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda panel: panel.update(type="heatmap"), "'A graph': type 'heatmap'"),
        (lambda panel: panel.update(type="row", panels=[GRAPH]), "'A graph': its collapsed panels"),
        (lambda panel: panel["fieldConfig"]["defaults"].update(unit="celsius"), "'celsius'"),
        (lambda panel: panel["options"].update(legend={"displayMode": "table", "placement": "right"}), "'A graph'"),
    ],
)
def test_panel_that_cannot_be_drawn_is_an_error(change: Callable[[Any], None], message: str) -> None:
    panel = copy.deepcopy(GRAPH)
    change(panel)
    with pytest.raises(ValueError, match=message):
        draw_one(panel, results(1))


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [
        (0, "short", None, "0"),
        (238, "short", None, "238"),
        (4567, "short", None, "4.57 K"),
        (0.0104, "short", None, "0.0104"),
        (19_600, "short", 0, "20 K"),
        (0.975, "percentunit", None, "97.5%"),
        (1, "percentunit", None, "100%"),
        (0.0996, "s", None, "99.6 ms"),
        (600, "s", None, "10 mins"),
        (67.2 * 2**20, "bytes", None, "67.2 MiB"),
        (1200, "ops", None, "1.2K ops/s"),
    ],
)
def test_value_has_unit(value: float, unit: str, decimals: int | None, text: str) -> None:
    assert format_value(value, unit, decimals) == text
