"""The page of ``whalebridge watch``: running containers, last events, and whether they are current."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from bridge.cli import table
from bridge.cli.line import line
from bridge.cli.table import Row
from bridge.fleet.documents import Container, Document, decode
from bridge.fleet.fold import Fold
from bridge.telemetry.text import printable

if TYPE_CHECKING:
    from bridge.core.events import Record

EVENTS = 10
_WIDE = 100  # columns; from this width on, images and times fit
_NARROW = 6  # columns of the table on narrower terminals
_HEADS = 3  # lines: the heading of the table, a blank line, the heading of the events
_UNSHOWN = frozenset({"present", "snapshot_completed", "heartbeat"})


class Screen:
    """A sink that renders the published records as a page of any size."""

    def __init__(self, address: str) -> None:
        self.changed = asyncio.Event()
        self._address = address
        self._fold = Fold()
        self._events: deque[Document] = deque(maxlen=EVENTS)
        self._failed: Sequence[str] = ()
        self._complete = False

    async def start(self) -> None:
        """Do nothing: there is no connection."""

    async def publish(self, batch: Sequence[Record]) -> None:
        """Apply records to the page."""
        for record in batch:
            document, _ = decode(record.data)
            if not self._fold.take(document):
                continue
            if document.type not in _UNSHOWN:
                self._events.append(document)
            if document.type == "snapshot_completed" and document.snapshot:
                self._complete, self._failed = True, document.snapshot.failed
        self.changed.set()

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    def page(self, *, width: int, height: int, trouble: str | None) -> Group:
        """Return the page, fitted to the size; ``last_error`` is why containerd is not watched at the moment."""
        rows = self._rows()
        top = [*self._top(len(rows), trouble), Text()]
        room = max(2, height - len(top) - _HEADS)
        events = list(self._events)[-max(1, room // 3, room - len(rows)) :]
        room -= len(events)
        shown = rows if len(rows) <= room else rows[: max(0, room - 1)]
        columns = table.COLUMNS if width >= _WIDE else table.COLUMNS[:_NARROW]
        middle: list[RenderableType] = [table.build(shown, short=True, columns=columns)]
        if len(shown) < len(rows):
            middle.append(_text(f"and {len(rows) - len(shown)} more", "dim"))
        below = [Text(), _text("LAST EVENTS", "bold"), *map(_event, events)]
        return Group(*top, *middle, *below)

    def _rows(self) -> list[Row]:
        """Return the rows of the running containers, sorted."""
        running = (each for source in self._fold.sources.values() for each in source.living.items())
        return table.ordered(_row(id_, container) for id_, container in running)

    def _top(self, count: int, trouble: str | None) -> Iterator[Text]:
        containers = "1 container" if count == 1 else f"{count} containers"
        yield _text(f"{containers} at {self._address}", "bold")
        if trouble:
            stale = " (showing the last known state)" if self._complete else ""
            yield _text(f"not connected{stale}: {printable(trouble)}", "red")
        elif not self._complete:
            yield _text("waiting for the first snapshot", "dim")
        if self._failed:
            yield _text(f"namespaces not listed: {printable(', '.join(self._failed))}", "red")


def _row(id_: str, container: Container) -> Row:
    return Row(
        id_,
        container.name,
        container.project,
        container.service,
        "paused" if container.paused else "running",
        container.pid,
        container.image,
        container.created_at,
    )


def _event(document: Document) -> Text:
    text = Text.from_ansi(line(document, coloured=True, host=False))  # its only escape sequences are the colors
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _text(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
