"""``python -m bridge`` is ``whalebridge``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from bridge import signal_mask

_PACKAGES = Path(__file__).parents[1]


def main() -> None:
    """Run the command line and exit; signals stay blocked during the imports, so that Ctrl-C prints no traceback."""
    signal_mask.block()
    for name in ("config", "sinks"):
        spec = importlib.util.find_spec(name)
        found = spec.origin if spec else None
        if found is None or Path(found).parent != _PACKAGES / name:
            sys.exit(
                f"whalebridge: Python package {name}: found {found}, instead of {_PACKAGES / name}; "
                "correct PYTHONPATH, or install whalebridge in a virtual environment of its own"
            )
    from bridge import cli  # noqa: PLC0415 (the imports take most of the start)

    cli.main()


if __name__ == "__main__":
    main()
