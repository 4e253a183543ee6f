"""Standard output of commands that print a result and end."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

from bridge.cli.errors import CommandError
from bridge.telemetry.safe_text import printable_json

STDOUT = 1


def write(text: str) -> None:
    """Write ``text`` and a line feed, and flush.

    Raises:
        CommandError: Standard output cannot be written; without a message if the reader has closed the pipe.
    """
    if sys.stdout is None:
        raise CommandError("standard output is closed; redirect it to a file, a pipe or a terminal")
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError as error:
        discard()
        raise CommandError from error
    except OSError as error:
        discard()
        raise CommandError(f"standard output cannot be written: {error.strerror}") from error


def is_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def is_colored() -> bool:
    """Return whether text on standard output may be colored: on a terminal, unless NO_COLOR is set."""
    return is_terminal() and not os.environ.get("NO_COLOR")


def write_json(value: Any) -> None:
    """Write one indented JSON document."""
    write(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))


def discard() -> None:
    """Discard buffered output; otherwise the interpreter prints an error when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STDOUT)
    os.close(null)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
