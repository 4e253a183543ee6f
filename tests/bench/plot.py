"""The results of a bench as a picture: CPU per event and latencies of the pipelines, side by side for each load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tests.bench.pipelines import KCAT, PROXIED, WHALEBRIDGE
from tests.bench.results import BURSTS, EVEN, FLOOD, Results, extent, number

_COLORS = {WHALEBRIDGE: "#1b6ca8", PROXIED: "#6fb1dd", KCAT: "#d98c26"}
_OTHER_COLOR = "#777777"  # of another commit
_MARKERS: Final[dict[str, tuple[str, Literal["left", "right", ""]]]] = {
    "p50 (ms)": ("o", "right"),
    "p90 (ms)": ("d", ""),
    "p99 (ms)": ("s", "left"),
}
"""By quantity, the marker and the alignment of the number above it."""
_CPU = "CPU/event (us)"
_RANGE_COLOR = "#333333"


def draw(results: Results, path: Path) -> None:
    """Write a PNG."""
    measured = [each.work for each in results.results]
    loads = [load for load in (FLOOD, EVEN, BURSTS) if load in measured]
    figure = Figure(figsize=(11, 1 + 1.8 * len(loads)), layout="constrained")
    grid = figure.subplots(len(loads), 2, squeeze=False, sharex="col")
    for load, (cpu, latency) in zip(loads, grid, strict=True):
        pipelines = list(dict.fromkeys(each.pipeline for each in results.results if each.work == load))
        for axes in (cpu, latency):
            axes.set_yticks(range(len(pipelines)), pipelines)
            axes.set_ylim(len(pipelines) - 0.4, -0.6)  # the first one on top
            axes.set_axisbelow(True)
            axes.grid(axis="x", color="#dddddd")
            axes.spines[["top", "right"]].set_visible(False)
        latency.tick_params(labelleft=False)
        cpu.set_title(load, loc="left", fontweight="bold")
        for position, pipeline in enumerate(pipelines):
            color = _COLORS.get(pipeline, _OTHER_COLOR)
            _draw_cpu(cpu, position, results.values(load, pipeline, _CPU), color)
            for quantity, (marker, alignment) in _MARKERS.items():
                _draw_latency(latency, position, results.values(load, pipeline, quantity), color, marker, alignment)
    grid[-1][0].margins(x=0.1)
    grid[-1][0].set_xlabel("CPU per event (us)")
    grid[-1][1].set_xlabel("time from event to append (ms)")
    grid[-1][1].set_xscale("log")
    grid[-1][1].xaxis.set_major_formatter(lambda value, _: number(value))
    names = [Line2D([], [], color=_RANGE_COLOR, marker=marker, linestyle="") for marker, _ in _MARKERS.values()]
    labels = [quantity.removesuffix(" (ms)") for quantity in _MARKERS]
    grid[0][1].legend(names, labels, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(labels), frameon=False)
    figure.suptitle("medians; the lines are the ranges of all rounds", fontsize="medium")
    figure.savefig(path, dpi=110)


def _draw_cpu(axes: Axes, position: int, values: Sequence[float], color: str) -> None:
    _, median, high = extent(values)
    axes.barh(position, median, height=0.6, color=color)
    _draw_range(axes, position, values)
    axes.annotate(number(median), (high, position), (6, 0), textcoords="offset points", va="center")


def _draw_latency(
    axes: Axes, position: int, values: Sequence[float], color: str, marker: str, alignment: Literal["left", "right", ""]
) -> None:
    _, median, _ = extent(values)
    axes.plot(median, position, marker=marker, markersize=8, color=color)
    _draw_range(axes, position, values)
    if alignment:
        axes.annotate(number(median), (median, position), (0, 7), textcoords="offset points", ha=alignment)


def _draw_range(axes: Axes, position: int, values: Sequence[float]) -> None:
    low, median, high = extent(values)
    axes.errorbar(median, position, xerr=[[median - low], [high - median]], fmt="none", ecolor=_RANGE_COLOR, capsize=3)
