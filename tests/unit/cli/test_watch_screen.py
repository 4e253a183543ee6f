from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from bridge.cli.watch_screen import MAX_EVENTS, Screen
from bridge.core.records import Record
from tests.golden import Golden
from tests.sample_records import control_record, record


def screen_after(*records: Record) -> Screen:
    screen = Screen("/c.sock")
    asyncio.run(screen.publish(records))
    return screen


def page(screen: Screen, *, width: int = 120, height: int = 30, last_error: str | None = None) -> list[str]:
    output = io.StringIO()
    console = Console(file=output, width=width, height=height, highlight=False)
    console.print(screen.page(width=width, height=height, last_error=last_error))
    return [line.rstrip() for line in output.getvalue().splitlines()]


def snapshot_of(count: int) -> list[Record]:
    present = [record(number + 2, "present", id_=f"web-{number:02}") for number in range(count)]
    return [control_record(1, "snapshot_started"), *present, control_record(count + 2, "snapshot_completed")]


def test_screen_shows_state_before_first_snapshot(golden: Golden) -> None:
    screen = Screen("/c.sock")
    assert "/c.sock" in page(screen)[0]
    golden.entry("watch_screen", "before the first snapshot", "\n".join(page(screen)))
    lines = page(screen, last_error="unavailable\x1b[1m")
    assert r"unavailable\x1b[1m" in lines[1]
    golden.entry("watch_screen", "before the first snapshot, not connected", "\n".join(lines))


def test_screen_shows_running_containers_and_last_events(golden: Golden) -> None:
    screen = screen_after(
        *snapshot_of(1), record(9, "started", id_="db"), record(10, "exited", id_="db"), record(10, "exited")
    )
    lines = page(screen)
    assert "/c.sock" in lines[0]
    golden.entry("watch_screen", "container and its events", "\n".join(lines))
    assert lines[3].split() == ["shop/web-00", "web-00", "web-shop", "web", "running", "4711", *lines[3].split()[6:]]
    assert lines[3].split()[6:] == ["docker.io/library/busybox:latest", "2026-11-23T15:21:08Z"]
    assert [line.split()[1:3] for line in lines[lines.index("LAST EVENTS") + 1 :]] == [
        ["snapshot", "started:"],
        ["started", "shop/db"],
        ["exited", "shop/db"],
    ]


def test_screen_labels_stale_state_and_failed_namespaces(golden: Golden) -> None:
    screen = screen_after(
        control_record(1, "snapshot_started"), control_record(2, "snapshot_completed", failed=["shop"])
    )
    assert "shop" in page(screen)[1]
    lines = page(screen, last_error="unavailable")
    assert "unavailable" in lines[1]
    assert "shop" in lines[2]
    golden.entry("watch_screen", "failed namespace, not connected", "\n".join(lines))


@pytest.mark.parametrize("height", [6, 10, 20, 100])
@pytest.mark.parametrize("width", [40, 200])
@pytest.mark.parametrize("count", [0, 3, 50])
def test_screen_fits_terminal_size(height: int, width: int, count: int) -> None:
    screen = screen_after(
        *snapshot_of(count), *[record(100 + number, "paused", id_="web-00") for number in range(count)]
    )
    lines = page(screen, width=width, height=height, last_error="unavailable")
    assert max(map(len, lines)) <= width
    if height >= 10:
        assert len(lines) <= height
        events = lines[lines.index("LAST EVENTS") + 1 :]
        assert len(events) == min(MAX_EVENTS, count + 1, len(events)) > 0
        table = lines[4 : lines.index("LAST EVENTS") - 1]
        omitted = int(table.pop().split()[1]) if any(line.startswith("and ") for line in table) else 0
        assert len(table) + omitted == count
