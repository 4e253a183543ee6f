"""Living containers as a table for people."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli.containers import Living
from bridge.core.encode import rfc3339
from bridge.telemetry.text import printable, shortened

COLUMNS = ("ID", "NAME", "PROJECT", "SERVICE", "STATUS", "PID", "IMAGE", "CREATED")
WIDE = 100_000  # no line is longer than that
_WHOLE = ("ID", "STATUS", "PID", "CREATED")  # what a person copies, or is short anyway
_STYLES = {"running": "green", "paused": "yellow", "unknown": "red"}


def render(containers: Iterable[Living], *, terminal: bool | None = None, width: int | None = None) -> str:
    """Return the table, sorted by project and name: fitted and coloured for a terminal, else one line a container."""
    if terminal is None:
        terminal = sys.stdout is not None and sys.stdout.isatty()
    if width is None:
        width = shutil.get_terminal_size().columns if terminal else WIDE
    table = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column, name in zip(table.columns, COLUMNS, strict=True):
        column.overflow = "fold"
        column.no_wrap = not terminal or name in _WHOLE
    for each in sorted(containers, key=lambda each: (each.metadata.project, each.metadata.name, each.id)):
        table.add_row(*_row(each, short=terminal))
    text = _drawn(table, terminal=terminal, width=width)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _row(container: Living, *, short: bool) -> list[Text]:
    metadata = container.metadata
    told = [
        shortened(container.id) if short else container.id,
        shortened(metadata.name) if short else metadata.name,
        metadata.project or "-",
        metadata.service or "-",
        container.status,
        str(container.task.pid or "-"),
        metadata.image or "-",
        _to_the_second(metadata.created_at),
    ]
    cells = [Text(printable(cell)) for cell in told]
    cells[COLUMNS.index("STATUS")].stylize(_STYLES[container.status])
    return cells


def _to_the_second(at: int | None) -> str:
    return "-" if at is None else rfc3339(at - at % 1_000_000_000)


def _drawn(table: Table, *, terminal: bool, width: int) -> str:
    page = io.StringIO()
    # Without a height, rich would not believe the width on a dumb terminal.
    Console(
        file=page,
        width=width,
        height=1,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
        highlight=False,
    ).print(table)
    return page.getvalue()
