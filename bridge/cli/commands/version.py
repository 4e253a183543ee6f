"""``whalebridge version``, and the option ``--version``."""

from __future__ import annotations

import typer

from bridge import __version__
from bridge.cli.output import write


def version() -> None:
    """Print the version."""
    write(f"whalebridge {__version__}")


def print_and_exit(is_set: bool) -> None:
    """Print the version, and end, if the option is set."""
    if is_set:
        version()
        raise typer.Exit
