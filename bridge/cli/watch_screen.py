"""The page of ``whalebridge watch``: running containers, last events, and whether they are current."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from bridge.cli import container_table
from bridge.cli.container_queries import ContainerInfo
from bridge.cli.record_format import format_record
from bridge.consumer.projection import Projection
from bridge.consumer.record_decoder import DecodedRecord, decode
from bridge.telemetry.safe_text import printable

if TYPE_CHECKING:
    from bridge.core.records import Record

MAX_EVENTS = 10
_WIDE_TABLE_WIDTH = 100  # columns; from this width on, images and times fit
_NARROW_TABLE_COLUMNS = 6  # columns of the table on narrower terminals
_HEADING_LINES = 3  # lines: the heading of the table, a blank line, the heading of the events
_HIDDEN_TYPES = frozenset({"present", "snapshot_completed", "heartbeat"})


class Screen:
    """A sink that renders the published records as a page of any size."""

    def __init__(self, address: str) -> None:
        self.changed = asyncio.Event()
        self._address = address
        self._projection = Projection()
        self._events: deque[DecodedRecord] = deque(maxlen=MAX_EVENTS)
        self._failed_namespaces: Sequence[str] = ()
        self._synced = False

    async def start(self) -> None:
        """Do nothing: there is no connection."""

    async def publish(self, batch: Sequence[Record]) -> None:
        """Apply records to the page."""
        for record in batch:
            decoded, _ = decode(record.data)
            if not self._projection.apply(decoded):
                continue
            if decoded.type not in _HIDDEN_TYPES:
                self._events.append(decoded)
            if decoded.type == "snapshot_completed" and decoded.snapshot:
                self._synced, self._failed_namespaces = True, decoded.snapshot.failed
        self.changed.set()

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    def page(self, *, width: int, height: int, last_error: str | None) -> Group:
        """Return the page, fitted to the size; ``last_error`` is why containerd is not watched at the moment."""
        rows = self._table_rows()
        header = [*self._header(len(rows), last_error), Text()]
        room = max(2, height - len(header) - _HEADING_LINES)
        events = list(self._events)[-max(1, room // 3, room - len(rows)) :]
        room -= len(events)
        shown = rows if len(rows) <= room else rows[: max(0, room - 1)]
        columns = (
            container_table.COLUMNS if width >= _WIDE_TABLE_WIDTH else container_table.COLUMNS[:_NARROW_TABLE_COLUMNS]
        )
        containers: list[RenderableType] = [container_table.build(shown, columns=columns)]
        if len(shown) < len(rows):
            containers.append(_styled_text(f"and {len(rows) - len(shown)} more", "dim"))
        last_events = [Text(), _styled_text("LAST EVENTS", "bold"), *map(_format_event, events)]
        return Group(*header, *containers, *last_events)

    def _table_rows(self) -> list[ContainerInfo]:
        """Return the running containers, sorted."""
        return container_table.sort_rows(
            ContainerInfo(id_, "paused" if container.paused else "running", container)
            for source in self._projection.sources.values()
            for id_, container in source.running.items()
        )

    def _header(self, count: int, last_error: str | None) -> Iterator[Text]:
        containers = "1 container" if count == 1 else f"{count} containers"
        yield _styled_text(f"{containers} at {self._address}", "bold")
        if last_error:
            stale = " (showing the last known state)" if self._synced else ""
            yield _styled_text(f"not connected{stale}: {printable(last_error)}", "red")
        elif not self._synced:
            yield _styled_text("waiting for the first snapshot", "dim")
        if self._failed_namespaces:
            yield _styled_text(f"namespaces not listed: {printable(', '.join(self._failed_namespaces))}", "red")


def _format_event(record: DecodedRecord) -> Text:
    text = Text.from_ansi(
        format_record(record, colored=True, with_host=False)
    )  # its only escape sequences are the colors
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _styled_text(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
