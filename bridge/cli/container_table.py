"""Formats running containers as a table for humans."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli import output
from bridge.telemetry.safe_text import printable, shorten_ids

if TYPE_CHECKING:
    from bridge.cli.container_queries import ContainerInfo

COLUMNS = ("ID", "NAME", "PROJECT", "SERVICE", "STATUS", "PID", "IMAGE", "CREATED")
MAX_WIDTH = 100_000  # no line is longer
_UNWRAPPED_COLUMNS = ("ID", "STATUS", "PID", "CREATED")  # copied by users, or short
_STYLES = {"running": "green", "paused": "yellow", "unknown": "red", "started": "green", "ended": "red"}
_SHORTENED_COLUMNS = ("ID", "NAME")
_STYLED_COLUMNS = ("STATUS", "CHANGE")


def render(containers: Iterable[ContainerInfo], *, terminal: bool | None = None, width: int | None = None) -> str:
    """Return the table, sorted by project and name: fitted and colored for a terminal, else one line per container."""
    if terminal is None:
        terminal = output.is_terminal()
    return draw(build(sort_rows(containers), short_ids=terminal), terminal=terminal, width=width)


def draw(table: Table, *, terminal: bool, width: int | None = None) -> str:
    """Return a table as text: fitted and colored for a terminal, else each row is one complete line."""
    if width is None:
        width = shutil.get_terminal_size().columns if terminal else MAX_WIDTH
    for column in table.columns:
        column.overflow = "fold"
        column.no_wrap = not terminal or column.header in _UNWRAPPED_COLUMNS
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
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def build(rows: Iterable[ContainerInfo], *, short_ids: bool, columns: Sequence[str] = COLUMNS) -> Table:
    """Return the table, one line per row; ``short_ids`` shortens ids, ``columns`` are the first columns to show."""
    return build_table(columns, (_format_cells(row) for row in rows), short_ids=short_ids)


def build_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, short_ids: bool) -> Table:
    """Return a table of the columns, from rows with a cell for each of them; further cells are left out."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in table.columns:
        column.overflow = "ellipsis"
        column.no_wrap = True
    for row in rows:
        table.add_row(
            *(
                Text(
                    printable(shorten_ids(cell) if short_ids and name in _SHORTENED_COLUMNS else cell),
                    style=_STYLES[cell] if name in _STYLED_COLUMNS else "",
                )
                for name, cell in zip(columns, row, strict=False)
            )
        )
    return table


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
