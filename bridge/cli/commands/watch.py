"""``whalebridge watch``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from bridge.cli import options
from bridge.cli.errors import CommandError

if TYPE_CHECKING:
    from config.settings import Settings


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

    from bridge.cli.live_display import require_terminal

    require_terminal("watch", "'list' for a single listing, or 'run' for events")
    asyncio.run(_watch(options.load_settings(**given)))


async def _watch(settings: Settings) -> None:
    from bridge.cli.container_queries import open_client
    from bridge.cli.live_display import run_until_signal
    from bridge.core.errors import BridgeError
    from bridge.telemetry import logs

    logs.silence()
    async with open_client(settings):
        pass  # if containerd is not available, fail at once instead of waiting
    try:
        await run_until_signal(_show(settings))
    except BridgeError as error:
        raise CommandError.from_connect_error(error) from error


async def _show(settings: Settings) -> None:
    from bridge import app
    from bridge.cli.live_display import show
    from bridge.cli.watch_screen import Screen

    screen = Screen(settings.containerd.address)
    async with app.run_watch(settings, screen) as watched:
        await show(
            lambda width, height: screen.page(
                width=width, height=height, last_error=None if watched.synced else watched.last_error
            ),
            screen.changed,
        )
