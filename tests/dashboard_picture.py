"""Draw the Grafana dashboard as an HTML page, with the results of its queries: a picture for the documents.

It looks like Grafana's dark theme, and follows what the dashboard sets: layout, units, thresholds, legends. What the
dashboard leaves out has Grafana's defaults. A type of panel or a unit that is not known here is an error.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from tests.fleet_metrics import with_variables
from tests.testbed.browser import WIDTH

COLUMN, LINE, GAP = WIDTH / 24, 25, 6  # units of `gridPos`, and the distance of panels, in pixels
HEADER = 46
TITLE = 22
FAMILY = 'Inter, "DejaVu Sans", sans-serif'
FONT, CHARACTER = 11, 6.6  # size of the text, and about the width of its characters
LEGEND = 16  # height of a line
COLORS = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0")
NAMED = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2"}
GRAY, WHITE = "#8e8e8e", "#d8d8d8"
SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "short": ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K"), (1, "")),
    "ops": ((1e6, "M ops/s"), (1e3, "K ops/s"), (1, " ops/s")),
    "percentunit": ((0.01, "%"),),
    "s": ((86400, " days"), (3600, " hours"), (60, " mins"), (1, " s"), (1e-3, " ms")),
    "bytes": ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"), (1, " B")),
}
TIMES = 1200  # distance of the times below a graph, in seconds
ALERT = f'stroke="{NAMED["red"]}" stroke-dasharray="3 3" stroke-opacity="0.5"'
STYLE = f"""
body {{ margin: 0; background: #111111; color: {WHITE}; font: {FONT}px {FAMILY} }}
.panel, .row, header {{ position: absolute; box-sizing: border-box; overflow: hidden; white-space: nowrap }}
.panel {{ background: #181818; border: 1px solid #272727; border-radius: 2px }}
h2 {{ margin: 0; padding: 4px 8px 0; font-size: 12px; font-weight: 500; line-height: 16px }}
.row {{ font-size: 14px; font-weight: 500; padding-top: 3px }}
header {{ height: 26px; left: {GAP}px; right: {GAP}px; top: 12px; color: {GRAY} }}
header b {{ color: {WHITE}; font-size: 16px; margin-right: 14px }}
header i {{ font-style: normal; border: 1px solid #2e2e2e; padding: 3px 7px; margin-right: 6px; color: {WHITE} }}
header span {{ float: right }}
.tiles {{ display: flex; position: absolute; inset: {TITLE}px 0 0 0 }}
.tile {{ flex: 1; position: relative; text-align: center }}
.tile em {{ display: block; font-style: normal; font-size: 12px; height: 15px }}
.tile strong {{ display: block; font-weight: 500; position: relative }}
.tile svg {{ position: absolute; left: 0; bottom: 0 }}
svg {{ display: block }} polyline {{ shape-rendering: crispEdges }}
text {{ font: {FONT}px {FAMILY}; fill: {GRAY} }}
.legend {{ padding: 0 8px; line-height: {LEGEND}px; white-space: normal }}
.legend span {{ margin-right: 12px; display: inline-block }}
.legend i {{ display: inline-block; width: 12px; height: 3px; margin: 0 5px 3px 0 }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: 0 8px; line-height: 18px; border-bottom: 1px solid #272727 }}
th {{ color: #6e9fff }}
"""


class Series(NamedTuple):
    """A series of a query: the name that its legend has, its labels, and (time, value)."""

    name: str
    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]

    @property
    def last(self) -> float:
        return self.points[-1][1]


class Interval(NamedTuple):
    """The time that the dashboard shows, and the distance of its points, in seconds."""

    start: float
    end: float
    step: float

    def clock(self, at: float) -> str:
        """Return the time of day."""
        return time.strftime("%H:%M", time.gmtime(at))


Query = Callable[[str, bool], list[dict[str, Any]]]
"""Returns the series of a PromQL query as the API of Prometheus does, for an instant query only the last values."""


def draw(dashboard: Mapping[str, Any], query: Query, interval: Interval) -> tuple[str, int]:
    """Return the page and its height in pixels."""
    starts = sorted(set(_alert_starts(dashboard, query, interval)))
    panels = [_place(panel, _results(panel, query), interval, starts) for panel in dashboard["panels"]]
    height = HEADER + max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in dashboard["panels"]) * LINE + GAP
    variables = "".join(
        f"<i>{escape(each['label'])}: {'All' if each['type'] == 'query' else 'Prometheus'}</i>"
        for each in dashboard["templating"]["list"]
    )
    shown = f"{interval.clock(interval.start)} to {interval.clock(interval.end)} UTC"
    note = "the dashboard's queries on a simulated fleet, drawn without Grafana"
    header = f"<header><span>{shown} · {note}</span><b>{escape(dashboard['title'])}</b>{variables}</header>"
    body = "\n".join((header, *panels))
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><style>{STYLE}</style>{body}</html>', height


def _alert_starts(dashboard: Mapping[str, Any], query: Query, interval: Interval) -> Iterator[float]:
    for annotation in dashboard["annotations"]["list"]:
        for each in query(with_variables(annotation["expr"]), False):
            yield from (line[0][0] for line in _lines(_points(each), interval) if line[0][0] > interval.start)


def _results(panel: Mapping[str, Any], query: Query) -> list[Series]:
    return [
        Series(_legend(target["legendFormat"], each["metric"]), each["metric"], _points(each))
        for target in panel.get("targets", ())
        for each in query(with_variables(target["expr"]), target.get("instant", False))
    ]


def _points(result: Mapping[str, Any]) -> list[tuple[float, float]]:
    values = result["values"] if "values" in result else [result["value"]]
    return [(at, number) for at, value in values if math.isfinite(number := float(value))]


def _legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match[1], ""), template).strip()


def _place(panel: Mapping[str, Any], series: list[Series], interval: Interval, starts: list[float]) -> str:
    if (kind := panel["type"]) not in ("row", *_PANELS):
        raise ValueError(f"panel {panel['title']!r}: type {kind!r} cannot be drawn")
    position = panel["gridPos"]
    width, height = round(position["w"] * COLUMN - GAP), position["h"] * LINE - GAP
    place = f"left: {position['x'] * COLUMN + GAP / 2}px; top: {HEADER + position['y'] * LINE}px"
    title = escape(panel["title"])
    if kind == "row":
        if panel["panels"]:
            raise ValueError(f"row {title!r}: its collapsed panels cannot be drawn")
        return f'<div class="row" style="{place}">&#8964; {title}</div>'
    content = '<div class="legend">No data</div>'
    if series := [each for each in series if each.points]:
        content = _PANELS[kind](_Panel(panel, series, width - 2, height - TITLE - 2, interval, starts))
    return f'<div class="panel" style="{place}; width: {width}px; height: {height}px"><h2>{title}</h2>{content}</div>'


class _Panel(NamedTuple):
    """A panel with its results and its size without the title, in pixels."""

    panel: Mapping[str, Any]
    series: list[Series]
    width: float
    height: float
    interval: Interval
    starts: list[float]  # of alerts

    @property
    def field(self) -> Mapping[str, Any]:
        defaults: Mapping[str, Any] = self.panel["fieldConfig"]["defaults"]
        return defaults

    def text(self, value: float) -> str:
        return format_value(value, self.field["unit"], self.field.get("decimals"))

    def color(self, value: float) -> str:
        """Return the fixed color, or that of the last threshold that the value has reached."""
        if fixed := self.field.get("color", {}).get("fixedColor"):
            return NAMED[fixed]
        steps = self.field.get("thresholds", _THRESHOLDS)["steps"]
        return NAMED[[each["color"] for each in steps if each["value"] is None or value >= each["value"]][-1]]


_THRESHOLDS = {"steps": [{"color": "green", "value": None}, {"color": "red", "value": 80}]}  # Grafana's default


def format_value(value: float, unit: str, decimals: int | None = None) -> str:
    """Return a value with its unit; without ``decimals`` with three digits."""
    divisor, suffix = _scale(value, unit)
    return f"{_number(value / divisor, decimals)}{suffix}"


def _scale(value: float, unit: str) -> tuple[float, str]:
    if unit not in SCALES:
        raise ValueError(f"unit {unit!r} is not known")
    if value == 0:
        return next(((divisor, suffix) for divisor, suffix in SCALES[unit] if divisor == 1), SCALES[unit][-1])
    return next((each for each in SCALES[unit] if abs(value) >= each[0]), SCALES[unit][-1])


def _number(value: float, decimals: int | None) -> str:
    if decimals is None:
        decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        return f"{value:.{decimals}f}".rstrip("0").rstrip(".") if decimals else f"{value:.0f}"
    return f"{value:.{decimals}f}"


def _stat(panel: _Panel) -> str:
    mode = panel.panel["options"].get("textMode", "auto")
    with_name = mode == "value_and_name" or (mode == "auto" and len(panel.series) > 1)
    width, height = panel.width / len(panel.series), panel.height
    size = 19 if len(panel.series) > 1 else 24 if with_name else 28
    tiles = []
    for each in panel.series:
        plain = panel.panel["options"]["colorMode"] == "none"
        color = COLORS[0] if plain else panel.color(each.last)
        name = f"<em>{escape(each.name)}</em>" if with_name else ""
        values = [value for _, value in each.points]
        low, high = min(values), max(*values, min(values) + 1e-9)
        area = Plot(width, height * 0.35, panel.interval, low - (high - low) * 0.3, high)
        drawing = area.line(each.points, color, fill=0.2)
        style = f"font-size: {size}px; color: {WHITE if plain else color}"
        tiles.append(
            f'<div class="tile"><svg width="{area.width}" height="{area.height}">{drawing}</svg>'
            f'{name}<strong style="{style}">{panel.text(each.last)}</strong></div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _bargauge(panel: _Panel) -> str:
    values = [each.last for each in panel.series]
    low, high = panel.field.get("min", min(values)), panel.field.get("max", max(values))
    left = max(len(each.name) for each in panel.series) * CHARACTER + 16
    right = max(len(panel.text(value)) for value in values) * CHARACTER + 16
    pitch = min((panel.height - 4) / len(values), 32)
    bars = []
    for index, (each, value) in enumerate(zip(panel.series, values, strict=True)):
        y, middle = index * pitch, (index + 0.5) * pitch + 4
        length = (panel.width - left - right) * min(1, max(0, value - low) / ((high - low) or 1))
        bars.append(
            f'<text x="{left - 8}" y="{middle}" text-anchor="end">{escape(each.name)}</text>'
            f'<rect x="{left}" y="{y + 2}" width="{panel.width - left - right}" height="{pitch - 4}" fill="#242424"/>'
            f'<rect x="{left}" y="{y + 2}" width="{length:.1f}" height="{pitch - 4}" fill="{panel.color(value)}"/>'
            f'<text x="{panel.width - 8}" y="{middle}" text-anchor="end" style="fill: {panel.color(value)}">'
            f"{panel.text(value)}</text>"
        )
    return f'<svg width="{panel.width}" height="{panel.height}">{"".join(bars)}</svg>'


def _table(panel: _Panel) -> str:
    (organize,) = [each["options"] for each in panel.panel["transformations"] if each["id"] == "organize"]
    renamed, hidden = organize["renameByName"], organize["excludeByName"]
    entries: list[dict[str, Any]] = [{**each.labels, "Value": each.last} for each in panel.series]
    labels = sorted({label for each in panel.series for label in each.labels})
    columns = {renamed.get(name, name): name for name in (*labels, "Value") if not hidden.get(name)}
    for sort in panel.panel["options"].get("sortBy", ()):
        column = columns[sort["displayName"]]
        entries.sort(key=lambda entry: entry.get(column, ""), reverse=sort["desc"])
    head = "".join(f"<th>{escape(title)}</th>" for title in columns)
    lines = []
    for entry in entries:
        texts = [panel.text(entry[name]) if name == "Value" else entry.get(name, "") for name in columns.values()]
        lines.append("".join(f"<td>{escape(text)}</td>" for text in texts))
    return f"<table><tr>{'</tr><tr>'.join((head, *lines))}</tr></table>"


class Plot(NamedTuple):
    """An area whose axes are the time and the values from ``low`` to ``high``."""

    width: float
    height: float
    interval: Interval
    low: float
    high: float

    def x(self, at: float) -> float:
        return (at - self.interval.start) / (self.interval.end - self.interval.start) * self.width

    def y(self, value: float) -> float:
        return self.height - (value - self.low) / (self.high - self.low) * self.height

    def line(self, points: Sequence[tuple[float, float]], color: str, fill: float) -> str:
        """Return a line with the area below it; without a sample, it has a gap."""
        drawn = []
        for part in _lines(points, self.interval):
            path = " ".join(f"{self.x(at):.1f},{self.y(value):.1f}" for at, value in part)
            area = f"{self.x(part[0][0]):.1f},{self.height} {path} {self.x(part[-1][0]):.1f},{self.height}"
            drawn.append(f'<polygon points="{area}" fill="{color}" fill-opacity="{fill}"/>')
            drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        return "".join(drawn)


def _lines(points: Sequence[tuple[float, float]], interval: Interval) -> list[list[tuple[float, float]]]:
    """Divide points where some are missing."""
    lines: list[list[tuple[float, float]]] = []
    for point in points:
        if not lines or point[0] - lines[-1][-1][0] > interval.step:
            lines.append([])
        lines[-1].append(point)
    return lines


def _timeseries(panel: _Panel) -> str:
    options = panel.panel["options"]["legend"]
    if (options["displayMode"], options["placement"]) != ("list", "bottom"):
        raise ValueError(f"panel {panel.panel['title']!r}: legend {options} cannot be drawn")
    field, values = panel.field, [value for each in panel.series for _, value in each.points]
    ticks, labels = _ticks(field.get("min", min(values)), field.get("max", max(values)), panel)
    left, right, top, bottom = max(map(len, labels)) * CHARACTER + 10, 12, 8, 20
    names = [each.name for each in panel.series]
    legend = _lines_of_text([len(name) * CHARACTER + 30 for name in names], panel.width - 16) * LEGEND + 4
    width, height = panel.width - left - right, panel.height - legend - top - bottom
    plot = Plot(width, height, panel.interval, ticks[0], ticks[-1])
    drawn = []
    for value, label in zip(ticks, labels, strict=True):
        y = round(plot.y(value)) + 0.5
        drawn.append(f'<line x1="0" x2="{width}" y1="{y}" y2="{y}" stroke="#2b2b2b"/>')
        drawn.append(f'<text x="-6" y="{y + 4}" text-anchor="end">{label}</text>')
    for time_of_day in range(math.ceil(plot.interval.start / TIMES) * TIMES, int(plot.interval.end) + 1, TIMES):
        text = plot.interval.clock(time_of_day)
        drawn.append(f'<text x="{plot.x(time_of_day):.1f}" y="{height + 15}" text-anchor="middle">{text}</text>')
    for start in panel.starts:
        x = round(plot.x(start)) + 0.5
        drawn.append(f'<line x1="{x}" x2="{x}" y1="0" y2="{height}" {ALERT}/>')
    fill = field["custom"]["fillOpacity"] / 100
    colors = [COLORS[index % len(COLORS)] for index in range(len(names))]
    drawn += [plot.line(each.points, color, fill) for each, color in zip(panel.series, colors, strict=True)]
    entries = [
        f'<span><i style="background: {color}"></i>{escape(name)}</span>'
        for name, color in zip(names, colors, strict=True)
    ]
    return (
        f'<svg width="{panel.width}" height="{panel.height - legend}">'
        f'<g transform="translate({round(left)}, {top})">{"".join(drawn)}</g></svg>'
        f'<div class="legend">{"".join(entries)}</div>'
    )


def _lines_of_text(widths: Sequence[float], available: float) -> int:
    lines, used = 1, 0.0
    for width in widths:
        if used and used + width > available:
            lines, used = lines + 1, 0.0
        used += width
    return lines


def _ticks(low: float, high: float, panel: _Panel) -> tuple[list[float], list[str]]:
    """Return values from below ``low`` to above ``high``, round in the unit that they are shown in, and their texts."""
    unit = panel.field["unit"]
    divisor, suffix = _scale(max(abs(low), abs(high)), unit)
    span = (high - low) / divisor or abs(high) / divisor or 1.0
    power = 10.0 ** math.floor(math.log10(span / 3))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 4)
    step = max(step, 10 ** -panel.field.get("decimals", 9))
    first, last = math.floor(low / divisor / step + 1e-9), math.ceil(high / divisor / step - 1e-9)
    numbers = [number * step for number in range(first, max(last, first + 1) + 1)]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    texts = [f"{number:.{decimals}f}{suffix}" if number else format_value(0, unit) for number in numbers]
    return [number * divisor for number in numbers], texts


_PANELS: dict[str, Callable[[_Panel], str]] = {
    "stat": _stat,
    "table": _table,
    "timeseries": _timeseries,
    "bargauge": _bargauge,
}
