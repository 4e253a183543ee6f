"""The parts of the bench that do not measure: the times of the events, values as text, goals, and the page."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.bench.pipelines import KCAT, WHALEBRIDGE
from tests.bench.results import BURSTS, EVEN, FLOOD, GOALS, PAGE, Goal, Result, Results, number, write_page
from tests.testbed.flood import evenly, in_bursts

MACHINE = {"date": "2026-11-30", "rounds": "3"}


def make_results(*results: Result, failures: tuple[str, ...] = ()) -> Results:
    return Results(MACHINE, list(results), list(failures))


def loads(own_cpu: float, pipeline_cpu: float) -> Results:
    """Return results of one load, with other values before and after the median."""
    values = ((WHALEBRIDGE, own_cpu), (KCAT, pipeline_cpu))
    return make_results(*(Result(FLOOD, name, "CPU/event (us)", [2 * cpu, cpu / 2, cpu]) for name, cpu in values))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A copy of the page."""
    path = tmp_path / "performance.md"
    path.write_text(PAGE.read_text())
    return path


# --- loads ---


def test_even_load_has_equal_pauses() -> None:
    due = evenly(400, rate=200)
    assert due[0] == 0
    assert [after - before for before, after in pairwise(due)] == pytest.approx([0.005] * 399)


def test_bursts_have_equal_sizes_and_one_period_each() -> None:
    due = in_bursts(4000, rate=200, burst=20)
    moments = sorted(set(due))
    assert due == sorted(due)
    assert [due.count(at) for at in moments] == [20] * 200
    assert [int(at / 0.1) for at in moments] == list(range(200))


def test_bursts_are_irregular_and_repeatable() -> None:
    due = in_bursts(4000, rate=200, burst=20)
    pauses = [after - before for before, after in pairwise(sorted(set(due)))]
    assert min(pauses) < 0.03
    assert max(pauses) > 0.17
    assert due == in_bursts(4000, rate=200, burst=20)


# --- values and goals ---


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3, "3"), (12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.0123, "0.012")],
)
def test_numbers_have_few_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("bound", "at_least", "reached"), [(5, False, "yes"), (4, False, "no"), (5, True, "yes"), (6, True, "no")]
)
def test_goal_is_reached_up_to_its_bound(bound: float, at_least: bool, reached: str) -> None:
    goal = Goal("what", bound, lambda _: 5, "s", at_least=at_least)
    sign = "≥" if at_least else "≤"
    assert goal.line(make_results()) == f"| what | {sign} {bound} s | 5 s | {reached} |"


def test_goal_compares_with_shell_pipeline(page: Path) -> None:
    write_page(loads(own_cpu=30, pipeline_cpu=50), page)
    assert r"| flood: CPU/event, ratio to ctr events \| kcat | ≤ 0.65 | 0.60 | yes |" in page.read_text()


def test_event_lost_in_one_round_misses_goal(page: Path) -> None:
    results = [Result(load, WHALEBRIDGE, "lost", [0, 0, 0]) for load in (FLOOD, EVEN)]
    write_page(make_results(*results, Result(BURSTS, WHALEBRIDGE, "lost", [0, 2, 0])), page)
    assert "| events lost in any round of any load | ≤ 0 | 2 | no |" in page.read_text()


def test_goal_without_measurement_is_not_reached(page: Path) -> None:
    write_page(make_results(Result(EVEN, WHALEBRIDGE, "lost", [0])), page)
    assert page.read_text().count("| not measured |  |") == len(GOALS)


def test_memory_of_container_is_growth_from_none(page: Path) -> None:
    node, quantity = "node with {:,} containers", "memory (MiB)"
    results = (Result(node.format(count), WHALEBRIDGE, quantity, [mib]) for count, mib in ((0, 60), (10_000, 99)))
    write_page(make_results(*results), page)
    assert "| memory for each of 10,000 containers | ≤ 4 KiB | 3.99 KiB | yes |" in page.read_text()


# --- the page ---


def test_page_has_median_and_range(page: Path) -> None:
    write_page(loads(own_cpu=30, pipeline_cpu=50), page)
    text = page.read_text()
    assert "Machine: date 2026-11-30, rounds 3." in text
    assert "| work | pipeline | CPU/event (us) |\n|---|---|---|\n| flood | whalebridge | 30 (15 to 60) |" in text
    assert r"| flood | ctr events \| kcat | 50 (25 to 100) |" in text


def test_page_names_failed_measurements(page: Path) -> None:
    write_page(make_results(failures=("round 2: flood: whalebridge: killed",)), page)
    assert "Measurements that failed: round 2: flood: whalebridge: killed." in page.read_text()


def test_page_keeps_text_around_results(page: Path) -> None:
    write_page(make_results(), page)
    before, after = page.read_text(), PAGE.read_text()
    assert before.partition("<!-- bench results")[0] == after.partition("<!-- bench results")[0]
    assert before.partition("<!-- end of the")[2] == after.partition("<!-- end of the")[2]


def test_page_without_markers_is_rejected(page: Path) -> None:
    page.write_text("# Performance\n")
    with pytest.raises(ValueError, match="has no place for the results"):
        write_page(make_results(), page)


def test_saved_results_can_be_read(tmp_path: Path) -> None:
    results = make_results(Result(FLOOD, KCAT, "p50 (ms)", [1.5, 2]), failures=("one",))
    results.save(tmp_path / "build" / "bench.json")
    assert Results.load(tmp_path / "build" / "bench.json") == results
