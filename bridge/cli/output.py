"""Standard output of the commands that print something and end."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

from bridge.cli.failure import CommandError
from bridge.telemetry.text import printable_json

STDOUT = 1


def write(text: str) -> None:
    """Write ``text`` and a line feed; it is out when this returns.

    Raises:
        CommandError: It cannot be written. Nothing is said of a reader that has seen enough.
    """
    if sys.stdout is None:
        raise CommandError("standard output is closed: send it to a file, a pipe or a terminal")
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError as error:
        abandon()
        raise CommandError from error
    except OSError as error:
        abandon()
        raise CommandError(f"standard output cannot be written: {error.strerror}") from error


def to_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def write_json(document: Any) -> None:
    """Write one JSON document, for people and programs alike."""
    write(printable_json(json.dumps(document, indent=2, ensure_ascii=False)))


def abandon() -> None:
    """Send what is still buffered to nowhere; else the interpreter complains of it as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDOUT)
    os.close(nowhere)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
