"""Formats running containers as a table for humans."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli import output
from bridge.telemetry.safe_text import printable, shorten_ids

if TYPE_CHECKING:
    from bridge.cli.container_queries import ContainerInfo

COLUMNS = ("ID", "NAME", "PROJECT", "SERVICE", "STATUS", "PID", "IMAGE", "CREATED")
_UNWRAPPED_COLUMNS = ("ID", "STATUS", "PID", "CREATED")  # copied by users, or short
_STYLES = {"running": "green", "paused": "yellow", "unknown": "red", "started": "green", "ended": "red"}
_SHORTENED_COLUMNS = ("ID", "NAME")
_STYLED_COLUMNS = ("STATUS", "CHANGE")


def render(containers: Iterable[ContainerInfo], *, terminal: bool | None = None, width: int | None = None) -> str:
    """Return the table, sorted by project and name, as ``draw`` does."""
    if terminal is None:
        terminal = output.is_terminal()
    return draw(COLUMNS, map(_format_cells, sort_rows(containers)), terminal=terminal, width=width)


def draw(columns: Sequence[str], rows: Iterable[Sequence[str]], *, terminal: bool, width: int | None = None) -> str:
    """Return a table as text: fitted, colored and with short ids for a terminal, else each row is one complete line."""
    if not terminal:
        return _align([columns, *([printable(cell) for cell in row] for row in rows)])
    table = build_table(columns, rows)
    for column in table.columns:
        column.overflow = "fold"
        column.no_wrap = column.header in _UNWRAPPED_COLUMNS
    page = io.StringIO()
    # Without a height, rich ignores the width on a dumb terminal.
    Console(
        file=page,
        width=width or shutil.get_terminal_size().columns,
        height=1,
        force_terminal=True,
        color_system="standard",
        highlight=False,
    ).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def build(rows: Iterable[ContainerInfo], *, columns: Sequence[str] = COLUMNS) -> Table:
    """Return the table for a terminal, one line per row; ``columns`` are the first columns to show."""
    return build_table(columns, map(_format_cells, rows))


def build_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table for a terminal, from rows with a cell for each of the columns; further cells are left out."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in table.columns:
        column.overflow = "ellipsis"
        column.no_wrap = True
    for row in rows:
        table.add_row(
            *(
                Text(
                    printable(shorten_ids(cell) if name in _SHORTENED_COLUMNS else cell),
                    style=_STYLES[cell] if name in _STYLED_COLUMNS else "",
                )
                for name, cell in zip(columns, row, strict=False)
            )
        )
    return table


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows with aligned columns. (rich needs minutes for the containers of a large fleet.)"""
    widths = [max(map(_width, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _width(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def sort_rows(rows: Iterable[ContainerInfo]) -> list[ContainerInfo]:
    """Sort rows by project and name."""
    return sorted(rows, key=lambda row: (row.container.project, row.container.name, row.id))


def truncate_to_seconds(at: str | None) -> str:
    """Return a timestamp without its fraction."""
    return "-" if at is None else at.partition(".")[0].removesuffix("Z") + "Z"


def _format_cells(row: ContainerInfo) -> list[str]:
    id_, status, container = row
    return [
        id_,
        container.name,
        container.project or "-",
        container.service or "-",
        status,
        str(container.pid or "-"),
        container.image or "-",
        truncate_to_seconds(container.created_at),
    ]
