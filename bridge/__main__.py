"""``python -m bridge`` is ``whalebridge``."""

from __future__ import annotations

from bridge import signals


def main() -> None:
    """Run the command that the process was called with, and exit; Ctrl-C is no traceback, however early."""
    signals.block()
    from bridge import cli  # noqa: PLC0415 (imports are what takes time)

    cli.main()


if __name__ == "__main__":
    main()
