from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from bridge.cli.screen import EVENTS, Screen
from bridge.core.events import Record
from tests.sample_records import frame, record


def told(*records: Record) -> Screen:
    screen = Screen("/c.sock")
    asyncio.run(screen.publish(records))
    return screen


def page(screen: Screen, *, width: int = 120, height: int = 30, trouble: str | None = None) -> list[str]:
    shown = io.StringIO()
    console = Console(file=shown, width=width, height=height, highlight=False)
    console.print(screen.page(width=width, height=height, trouble=trouble))
    return [line.rstrip() for line in shown.getvalue().splitlines()]


def rows(count: int) -> list[Record]:
    present = [record(number + 2, "present", id_=f"web-{number:02}") for number in range(count)]
    return [frame(1, "snapshot_started"), *present, frame(count + 2, "snapshot_completed")]


def test_before_anything_is_known() -> None:
    screen = Screen("/c.sock")
    assert page(screen)[:2] == ["0 containers at /c.sock", "asking containerd what lives"]
    assert page(screen, trouble="it is \x1baway")[1] == r"not watched now: it is \x1baway"


def test_what_lives_and_what_happened() -> None:
    screen = told(*rows(1), record(9, "started", id_="db"), record(10, "exited", id_="db"), record(10, "exited"))
    shown = page(screen)
    assert shown[0] == "1 container at /c.sock"
    assert shown[3].split() == ["shop/web-00", "web-00", "web-shop", "web", "running", "4711", *shown[3].split()[6:]]
    assert shown[3].split()[6:] == ["docker.io/library/busybox:latest", "2026-11-23T15:21:08Z"]
    assert [line.split()[1:3] for line in shown[shown.index("LAST EVENTS") + 1 :]] == [
        ["snapshot", "begins:"],
        ["started", "shop/db"],
        ["exited", "shop/db"],
    ]


def test_what_is_not_as_of_now_is_told() -> None:
    screen = told(frame(1, "snapshot_started"), frame(2, "snapshot_completed", failed=["shop"]))
    assert page(screen)[1] == "not listed by containerd: shop"
    assert page(screen, trouble="away")[1:3] == [
        "not watched now (shown is what was known last): away",
        "not listed by containerd: shop",
    ]


@pytest.mark.parametrize("height", [6, 10, 20, 100])
@pytest.mark.parametrize("width", [40, 200])
@pytest.mark.parametrize("count", [0, 3, 50])
def test_it_fits(height: int, width: int, count: int) -> None:
    screen = told(*rows(count), *[record(100 + number, "paused", id_="web-00") for number in range(count)])
    shown = page(screen, width=width, height=height, trouble="away")
    assert max(map(len, shown)) <= width
    if height >= 10:
        assert len(shown) <= height
        events = shown[shown.index("LAST EVENTS") + 1 :]
        assert len(events) == min(EVENTS, count + 1, len(events)) > 0
        table = shown[4 : shown.index("LAST EVENTS") - 1]
        left_out = int(table.pop().split()[1]) if any(line.startswith("and ") for line in table) else 0
        assert len(table) + left_out == count
