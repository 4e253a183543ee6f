"""``whalebridge version``."""

from __future__ import annotations

from bridge import __version__
from bridge.cli.output import write


def version() -> None:
    """Print the version."""
    write(f"whalebridge {__version__}")
