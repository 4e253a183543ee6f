"""``whalebridge watch``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Unpack

from bridge.cli import options, output
from bridge.cli.errors import WRONG_USAGE, CommandError

if TYPE_CHECKING:
    from config.settings import Settings

MIN_REDRAW_SECONDS = 0.1  # minimum time between two redraws
MAX_REDRAW_SECONDS = 0.5  # maximum: the state of the connection is polled


@options.shared
def watch(**given: Unpack[options.ContainerdOptions]) -> None:
    """Show running containers and last events in a live table.

    Requires a terminal. If the connection to containerd is lost, the last known state stays on the screen, with the
    error. Ctrl-C stops the command.

    \b
    Examples:
      whalebridge watch
      whalebridge watch --namespace k8s.io
    """
    import asyncio

    if not output.is_terminal() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        raise CommandError(
            "watch needs a terminal; use 'list' for a single listing, or 'run' for events",
            exit_status=WRONG_USAGE,
        )
    settings = options.load_settings(**given)
    asyncio.run(_watch(settings))


async def _watch(settings: Settings) -> None:
    import asyncio
    import signal

    from bridge.cli.container_queries import open_client
    from bridge.core.errors import BridgeError
    from bridge.task_groups import task_group
    from bridge.telemetry import logs

    logs.silence()
    async with open_client(settings):
        pass  # if containerd is not available, fail at once instead of waiting
    try:
        async with task_group() as tasks:
            drawing = tasks.create_task(_draw(settings))
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, drawing.cancel)
    except BridgeError as error:
        raise CommandError.from_connect_error(error) from error


async def _draw(settings: Settings) -> None:
    import asyncio
    import signal

    from rich.console import Console
    from rich.live import Live

    from bridge import app
    from bridge.cli.watch_screen import Screen
    from bridge.clock import SystemClock
    from bridge.task_groups import completes_within

    screen, console, clock = Screen(settings.containerd.address), Console(highlight=False), SystemClock()
    asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, screen.changed.set)
    live = Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    async with app.run_watch(settings, screen) as watched:
        with live:
            while True:
                last_error = None if watched.synced else watched.last_error
                width, height = console.size
                live.update(screen.page(width=width, height=height, last_error=last_error), refresh=True)
                await clock.sleep(MIN_REDRAW_SECONDS)
                await completes_within(MAX_REDRAW_SECONDS, clock, screen.changed.wait())
                screen.changed.clear()
