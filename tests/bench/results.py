"""Results of a bench: their JSON, the tables and goals in docs/performance.md, and how values are written."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tests.bench.pipelines import KCAT, ROOT, WHALEBRIDGE

PAGE = ROOT / "docs" / "performance.md"
PICTURE = PAGE.with_suffix(".png")
FLOOD, EVEN, BURSTS = "flood", "200/s", "200/s in bursts"
"""Names of the loads."""
_BLOCK = re.compile(r"(?<=<!-- bench results: make bench-docs -->\n).*(?=<!-- end of the bench results -->)", re.S)


class Result(NamedTuple):
    """All measured values of one quantity, whose name has the unit in parentheses."""

    work: str
    pipeline: str
    quantity: str
    values: Sequence[float]


@dataclass(frozen=True)
class Results:
    """All results, in the order of works and pipelines, and where they were measured."""

    machine: Mapping[str, str]
    results: Sequence[Result]
    failures: Sequence[str] = ()
    """Measurements that failed, each with its error; their values are missing."""

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        results = [result._asdict() for result in self.results]
        path.write_text(json.dumps({**asdict(self), "results": results}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` has written."""
        document = json.loads(path.read_text())
        return cls(document["machine"], [Result(**each) for each in document["results"]], document["failures"])

    def values(self, work: str, pipeline: str, quantity: str) -> Sequence[float]:
        """Return the values of a quantity; KeyError if it was not measured."""
        for result in self.results:
            if result[:3] == (work, pipeline, quantity):
                return result.values
        raise KeyError(f"{work}, {pipeline}: {quantity}")


# --- values ---


def number(value: float) -> str:
    """Write a number with two or three significant digits."""
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}"


def extent(values: Sequence[float]) -> tuple[float, float, float]:
    """Return minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)


# --- goals ---

_NODE = "node with {:,} containers"
_RATIO = f"ratio to {KCAT}"
_MEMORY, _SNAPSHOT, _RECONNECT = "memory (MiB)", "CPU to the first snapshot (s)", "CPU of a reconnect (s)"


@dataclass(frozen=True)
class Goal:
    """What a quantity, or a ratio of two, shall be at most, or else at least.

    ``measured`` raises KeyError if there are no values.
    """

    text: str
    bound: float
    measured: Callable[[Results], float]
    unit: str = ""
    at_least: bool = False

    def line(self, results: Results) -> str:
        """Return a line of the table."""
        bound = f"{'≥' if self.at_least else '≤'} {number(self.bound)} {self.unit}".rstrip()
        try:
            value = self.measured(results)
        except (KeyError, ZeroDivisionError):
            return _line(self.text, bound, "not measured", "")
        reached = value >= self.bound if self.at_least else value <= self.bound
        return _line(self.text, bound, f"{number(value)} {self.unit}".rstrip(), "yes" if reached else "no")


def _lost(results: Results) -> float:
    """Return the most events that were lost in any round."""
    return max(max(results.values(load, WHALEBRIDGE, "lost")) for load in (FLOOD, EVEN, BURSTS))


def _of(work: str, quantity: str, pipeline: str = WHALEBRIDGE) -> Callable[[Results], float]:
    return lambda results: statistics.median(results.values(work, pipeline, quantity))


def _ratio(work: str, quantity: str) -> Callable[[Results], float]:
    return lambda results: _of(work, quantity)(results) / _of(work, quantity, KCAT)(results)


def _growth(quantity: str) -> Callable[[Results], float]:
    """Return how much more a node with 10,000 containers takes than one without."""
    with_containers, without = (_of(_NODE.format(count), quantity) for count in (10_000, 0))
    return lambda results: with_containers(results) - without(results)


GOALS = (
    Goal("events lost in any round of any load", 0, _lost),
    Goal(f"flood: CPU/event, {_RATIO}", 0.65, _ratio(FLOOD, "CPU/event (us)")),
    Goal(f"flood: time to the last append, {_RATIO}", 0.9, _ratio(FLOOD, "time to the last append (s)")),
    Goal(f"200/s: CPU/event, {_RATIO}", 1, _ratio(EVEN, "CPU/event (us)")),
    Goal(f"200/s: p99, {_RATIO}", 0.33, _ratio(EVEN, "p99 (ms)")),
    Goal(f"200/s in bursts: CPU/event, {_RATIO}", 1, _ratio(BURSTS, "CPU/event (us)")),
    Goal("memory without containers", 70, _of(_NODE.format(0), _MEMORY), "MiB"),
    Goal("memory for each of 10,000 containers", 4, lambda results: _growth(_MEMORY)(results) * 1024 / 10_000, "KiB"),
    Goal("CPU to the first record", 0.45, _of("start", "CPU to the first record (s)"), "s"),
    Goal("CPU of the first snapshot of 10,000 containers, without the start", 0.6, _growth(_SNAPSHOT), "s"),
    Goal("CPU of a reconnect with 10,000 containers", 0.5, _of(_NODE.format(10_000), _RECONNECT), "s"),
    Goal("idle CPU with 1,000 containers", 0.1, _of(_NODE.format(1_000), "idle CPU (% of a core)"), "%"),
    Goal("backlog to Kafka", 25_000, _of("backlog to Kafka", "records/s"), "records/s", at_least=True),
    Goal("backlog to JetStream", 15_000, _of("backlog to JetStream", "records/s"), "records/s", at_least=True),
    Goal(
        "consumer: projection, decoding included",
        100_000,
        _of("consumer", "records per second of CPU"),
        "records per second of CPU",
        at_least=True,
    ),
    Goal("consumer: memory/container", 1024, _of("consumer", "allocated memory/container (bytes)"), "bytes"),
)

# --- the page ---


def write_page(results: Results, path: Path = PAGE) -> None:
    """Write the results between the markers of the page."""
    page, count = _BLOCK.subn(lambda _: "\n".join(_lines(results)) + "\n", path.read_text(encoding="utf-8"))
    if count != 1:
        raise ValueError(f"{path} has no place for the results: {_BLOCK.pattern}")
    path.write_text(page, encoding="utf-8")


def _lines(results: Results) -> Iterator[str]:
    yield f"Machine: {', '.join(f'{name} {value}' for name, value in results.machine.items())}."
    if results.failures:
        yield f"\nMeasurements that failed: {'; '.join(results.failures)}."
    if PICTURE.exists():
        yield f"\n![CPU per event and latencies of the pipelines]({PICTURE.name})"
    yield from ("", "| goal (medians) | bound | measured | reached |", "|---|---|---|---|")
    yield from (goal.line(results) for goal in GOALS)
    for quantities, group in groupby(_measured(results), key=lambda line: tuple(line[2])):
        yield from ("", _line("work", "pipeline", *quantities), "|---|---|" + "---|" * len(quantities))
        for work, pipeline, values in group:
            yield _line(work, pipeline, *map(_cell, values.values()))


def _measured(results: Results) -> Iterator[tuple[str, str, dict[str, Sequence[float]]]]:
    """Yield work, pipeline and values by quantity."""
    for (work, pipeline), group in groupby(results.results, key=lambda result: result[:2]):
        yield work, pipeline, {result.quantity: result.values for result in group}


def _cell(values: Sequence[float]) -> str:
    low, median, high = map(number, extent(values))
    return median if low == high else f"{median} ({low} to {high})"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |".replace(KCAT, KCAT.replace("|", r"\|"))
