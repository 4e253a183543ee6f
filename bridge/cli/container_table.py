"""Formats running containers as a table for humans."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli import output
from bridge.cli.container_queries import ContainerInfo
from bridge.telemetry.safe_text import printable, shorten_ids

COLUMNS = ("ID", "NAME", "PROJECT", "SERVICE", "STATUS", "PID", "IMAGE", "CREATED")
MAX_WIDTH = 100_000  # no line is longer
_UNWRAPPED_COLUMNS = ("ID", "STATUS", "PID", "CREATED")  # copied by users, or short
_STYLES = {"running": "green", "paused": "yellow", "unknown": "red"}


def render(containers: Iterable[ContainerInfo], *, terminal: bool | None = None, width: int | None = None) -> str:
    """Return the table, sorted by project and name: fitted and colored for a terminal, else one line per container."""
    if terminal is None:
        terminal = output.is_terminal()
    if width is None:
        width = shutil.get_terminal_size().columns if terminal else MAX_WIDTH
    table = build(sort_rows(containers), short_ids=terminal)
    for column, name in zip(table.columns, COLUMNS, strict=True):
        column.overflow = "fold"
        column.no_wrap = not terminal or name in _UNWRAPPED_COLUMNS
    text = _draw(table, terminal=terminal, width=width)
    return "\n".join(line.rstrip() for line in text.splitlines())


def build(rows: Iterable[ContainerInfo], *, short_ids: bool, columns: Sequence[str] = COLUMNS) -> Table:
    """Return the table, one line per row; ``short_ids`` shortens ids, ``columns`` are the first columns to show."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in table.columns:
        column.overflow = "ellipsis"
        column.no_wrap = True
    for row in rows:
        table.add_row(*_format_cells(row, short_ids=short_ids)[: len(columns)])
    return table


def sort_rows(rows: Iterable[ContainerInfo]) -> list[ContainerInfo]:
    """Sort rows by project and name."""
    return sorted(rows, key=lambda row: (row.container.project, row.container.name, row.id))


def _format_cells(row: ContainerInfo, *, short_ids: bool) -> list[Text]:
    id_, status, container = row
    values = [
        shorten_ids(id_) if short_ids else id_,
        shorten_ids(container.name) if short_ids else container.name,
        container.project or "-",
        container.service or "-",
        status,
        str(container.pid or "-"),
        container.image or "-",
        _truncate_to_seconds(container.created_at),
    ]
    cells = [Text(printable(cell)) for cell in values]
    cells[COLUMNS.index("STATUS")].stylize(_STYLES[status])
    return cells


def _truncate_to_seconds(at: str | None) -> str:
    return "-" if at is None else at.partition(".")[0].removesuffix("Z") + "Z"


def _draw(table: Table, *, terminal: bool, width: int) -> str:
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
