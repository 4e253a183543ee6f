"""Pages on a terminal that are redrawn when something changes, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from bridge.cli import output
from bridge.cli.errors import WRONG_USAGE, CommandError
from bridge.clock import SystemClock
from bridge.core.time import SECOND
from bridge.task_groups import completes_within, task_group

if TYPE_CHECKING:
    from rich.console import RenderableType

MIN_REDRAW_SECONDS = 0.1  # minimum time between two redraws
MAX_REDRAW_SECONDS = 0.5  # maximum: what is shown also depends on the time
_PAUSE_FACTOR = 3  # of the time that drawing took: large tables leave time for what they show


def require_terminal(command: str, alternatives: str) -> None:
    """Check that pages can be shown.

    Raises:
        CommandError: Standard output is no terminal, or one that can only print.
    """
    if not output.is_terminal() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        raise CommandError(f"{command} needs a terminal; use {alternatives}", exit_status=WRONG_USAGE)


async def run_until_signal(display: Coroutine[None, None, None]) -> None:
    """Run ``display`` until it ends, or until Ctrl-C or SIGTERM."""
    async with task_group() as tasks:
        task = tasks.create_task(display)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def show(page: Callable[[int, int], RenderableType], changed: asyncio.Event) -> None:
    """Show the page for a width and a height until cancelled; draw it again when ``changed`` is set, and regularly."""
    console, clock = Console(highlight=False), SystemClock()
    asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, changed.set)
    with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        while True:
            began_at = clock.now().monotonic
            live.update(page(*console.size), refresh=True)
            drawing = (clock.now().monotonic - began_at) / SECOND
            await clock.sleep(max(MIN_REDRAW_SECONDS, _PAUSE_FACTOR * drawing))
            await completes_within(MAX_REDRAW_SECONDS, clock, changed.wait())
            changed.clear()
