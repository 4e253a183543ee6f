"""``python -m bridge`` is ``whalebridge``."""

from __future__ import annotations

from bridge import signal_mask


def main() -> None:
    """Run the command line and exit; signals stay blocked during the imports, so that Ctrl-C prints no traceback."""
    signal_mask.block()
    from bridge import cli  # noqa: PLC0415 (the imports take most of the start)

    cli.main()


if __name__ == "__main__":
    main()
