"""Formats running containers as a table for humans."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli import output
from bridge.cli.containers import Living
from bridge.core.encode import rfc3339
from bridge.telemetry.text import printable, shortened

COLUMNS = ("ID", "NAME", "PROJECT", "SERVICE", "STATUS", "PID", "IMAGE", "CREATED")
WIDE = 100_000  # no line is longer
_WHOLE = ("ID", "STATUS", "PID", "CREATED")  # copied by users, or short
_STYLES = {"running": "green", "paused": "yellow", "unknown": "red"}


class Row(NamedTuple):
    """A container in the table; "" for unknown or inapplicable values."""

    id: str
    name: str
    project: str
    service: str
    status: str
    pid: int
    image: str
    created: str | None


def render(containers: Iterable[Living], *, terminal: bool | None = None, width: int | None = None) -> str:
    """Return the table, sorted by project and name: fitted and colored for a terminal, else one line per container."""
    if terminal is None:
        terminal = output.to_terminal()
    if width is None:
        width = shutil.get_terminal_size().columns if terminal else WIDE
    table = build(ordered(map(_row, containers)), short=terminal)
    for column, name in zip(table.columns, COLUMNS, strict=True):
        column.overflow = "fold"
        column.no_wrap = not terminal or name in _WHOLE
    text = _drawn(table, terminal=terminal, width=width)
    return "\n".join(line.rstrip() for line in text.splitlines())


def build(rows: Iterable[Row], *, short: bool, columns: Sequence[str] = COLUMNS) -> Table:
    """Return the table, one line per row; ``short_ids`` shortens ids, ``columns`` are the first columns to show."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in table.columns:
        column.overflow = "ellipsis"
        column.no_wrap = True
    for row in rows:
        table.add_row(*_cells(row, short=short)[: len(columns)])
    return table


def ordered(rows: Iterable[Row]) -> list[Row]:
    """Sort rows by project and name."""
    return sorted(rows, key=lambda row: (row.project, row.name, row.id))


def _row(container: Living) -> Row:
    metadata = container.metadata
    return Row(
        container.id,
        metadata.name,
        metadata.project,
        metadata.service,
        container.status,
        container.task.pid,
        metadata.image,
        rfc3339(metadata.created_at),
    )


def _cells(row: Row, *, short: bool) -> list[Text]:
    values = [
        shortened(row.id) if short else row.id,
        shortened(row.name) if short else row.name,
        row.project or "-",
        row.service or "-",
        row.status,
        str(row.pid or "-"),
        row.image or "-",
        _to_the_second(row.created),
    ]
    cells = [Text(printable(cell)) for cell in values]
    cells[COLUMNS.index("STATUS")].stylize(_STYLES[row.status])
    return cells


def _to_the_second(at: str | None) -> str:
    return "-" if at is None else at.partition(".")[0].removesuffix("Z") + "Z"


def _drawn(table: Table, *, terminal: bool, width: int) -> str:
    page = io.StringIO()
    # Without a height, rich ignores the width on a dumb terminal.
    Console(
        file=page,
        width=width,
        height=1,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
        highlight=False,
    ).print(table)
    return page.getvalue()
