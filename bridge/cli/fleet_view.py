"""The containers of all sources as rows of a table, as JSON, and as a page of a terminal, for ``whalebridge fleet``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, NamedTuple

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from bridge.cli import container_table, options
from bridge.consumer.history import PastSource, PastState, Period, Run
from bridge.consumer.projection import STALE_MINIMUM
from bridge.consumer.record_decoder import Container, Source
from bridge.consumer.record_reader import RESUMED
from bridge.consumer.state import Running, State, pod_name
from bridge.telemetry.safe_text import printable

STATUSES = ("running", "paused", "unknown")
COLUMNS: tuple[str, ...] = ("PROJECT OR POD", "NAME", "STATUS", "HOST", "ID", "IMAGE", "CREATED")
PERIOD_COLUMNS: tuple[str, ...] = ("PROJECT OR POD", "NAME", "CHANGE", "AT", "EXIT", "HOST", "ID", "IMAGE")
_WIDE_TABLE_WIDTH = 120  # columns; from this width on, ids, images and times fit
_NARROW_TABLE_COLUMNS = 4
_MAX_NOTES = 5  # lines on a page about what is not known
_HEADING_LINES = 2  # the heading of the table, and the line before it


class FleetFilter(NamedTuple):
    """Selects containers by globs; a filter that is not set selects everything."""

    hosts: list[str]
    namespaces: list[str]
    projects: list[str]
    pods: list[str]
    images: list[str]
    statuses: list[str]

    def selects(self, source: Source, container: Container, status: str | None = None) -> bool:
        """Return whether a container, with a status if it has one, matches all filters."""
        return (
            options.matches(self.hosts, source.host)
            and options.matches(self.namespaces, container.namespace)
            and options.matches(self.projects, container.project)
            and options.matches(self.pods, pod_name(container) or "")
            and options.matches(self.images, container.image)
            and (status is None or options.matches(self.statuses, status))
        )


class Fleet(NamedTuple):
    """The containers at a time, sorted, and what is known of their sources."""

    at: datetime
    containers: list[Running]
    sources: list[PastSource]

    @classmethod
    def of(cls, state: State | PastState, filter_: FleetFilter) -> Fleet:
        """Return the selected containers and sources of a state: at its moment, or now."""
        if isinstance(state, PastState):
            at, containers, sources = state.at, state.containers(), state.sources()
        else:
            at = datetime.now(UTC)
            containers, sources = state.containers(now=at), [PastSource(each, []) for each in state.sources(now=at)]
        selected = [each for each in containers if filter_.selects(each.source, each.container, status(each))]
        return cls(
            at,
            sorted(selected, key=_sort_key),
            sorted(
                (each for each in sources if options.matches(filter_.hosts, each.info.source.host)),
                key=lambda each: each.info.source,
            ),
        )

    def document(self) -> dict[str, Any]:
        """Return the content of the JSON document."""
        return {
            "at": _format_time(self.at),
            "sources": [_source_document(each, self.at) for each in self.sources],
            "containers": [
                {**_identity(each), "status": status(each), "container": msgspec.to_builtins(each.container)}
                for each in self.containers
            ],
        }

    def notes(self) -> Iterator[str]:
        """Say what is not known of the sources, one line each."""
        for each in self.sources:
            for text in _unknown(each, self.at):
                yield printable(f"{'/'.join(each.info.source)}: {text}")

    def cells(self, *, short: bool, count: int | None = None) -> Iterator[list[str]]:
        """Yield the cells of the first ``count`` containers; if the table is ``short``, groups are named once."""
        for group, containers in groupby(self.containers[:count], key=lambda each: _group(each.container)):
            for number, each in enumerate(containers):
                yield _cells(each, group if not (short and number) else "")


def status(running: Running) -> str:
    """Return whether a container is running or paused, or that its state is unknown."""
    return "unknown" if running.stale else "paused" if running.container.paused else "running"


class FleetScreen:
    """The page of ``whalebridge fleet``: the containers as of now, and what is not known.

    Attributes:
        state: The state, which the reader updates.
        changed: Set when the page is to be drawn again.
        notice: What the reader has reported last.
    """

    def __init__(self, target: str, filter_: FleetFilter) -> None:
        self.state = State()
        self.changed = asyncio.Event()
        self.notice = ""
        self._target = target
        self._filter = filter_

    def notify(self, text: str) -> None:
        """Show why there are no new records, until reading resumes, or that some were skipped."""
        self.notice = "" if text == RESUMED else text
        self.changed.set()

    def page(self, width: int, height: int) -> RenderableType:
        """Return the page, fitted to a size."""
        fleet = Fleet.of(self.state, self._filter)
        stale = sum(bool(each.info.stale) for each in fleet.sources)
        counts = f"{_count(len(fleet.containers), 'container')} of {_count(len(fleet.sources), 'source')}"
        header = [_line(f"{counts} at {self._target}{f', {stale} stale' if stale else ''}", "bold")]
        if self.notice:
            header.append(_line(self.notice, "red"))
        if not fleet.sources:
            header.append(_line("no records yet", "dim"))
        notes = list(fleet.notes())
        most = max(1, min(_MAX_NOTES, height // 4))
        shown = notes if len(notes) <= most else notes[: most - 1]
        header += [_line(each, "red") for each in shown]
        if len(shown) < len(notes):
            header.append(_line(f"and {len(notes) - len(shown)} more", "red"))
        room = max(2, height - len(header) - _HEADING_LINES)
        rows = len(fleet.containers) if len(fleet.containers) <= room else room - 1
        columns = len(COLUMNS) if width >= _WIDE_TABLE_WIDTH else _NARROW_TABLE_COLUMNS
        table = container_table.build_table(COLUMNS[:columns], fleet.cells(short=True, count=rows))
        page: list[RenderableType] = [*header, Text(), table]
        if rows < len(fleet.containers):
            page.append(_line(f"and {len(fleet.containers) - rows} more", "dim"))
        return Group(*page)


def period_document(period: Period, filter_: FleetFilter) -> dict[str, Any]:
    """Return the content of the JSON document for what started and ended in a period."""
    before, after = (Fleet.of(each, filter_) for each in (period.before, period.after))
    return {
        "since": _format_time(before.at),
        "until": _format_time(after.at),
        "sources": [
            {"since": _source_document(first, before.at), "until": _source_document(second, after.at)}
            for first, second in zip(before.sources, after.sources, strict=True)
        ],
        **{
            change: [
                {
                    **_identity(run),
                    "at": run.at,
                    "noticed_at": run.noticed_at,
                    **({"exit": msgspec.to_builtins(run.exit)} if change == "ended" else {}),
                    "container": msgspec.to_builtins(run.container),
                }
                for run in runs
            ]
            for change, runs in _changes(period, filter_)
        },
    }


def period_cells(period: Period, filter_: FleetFilter) -> Iterator[list[str]]:
    """Yield the cells of what started and ended in a period."""
    for change, runs in _changes(period, filter_):
        for run in runs:
            yield [
                _group(run.container) or "-",
                _name(run.container),
                change,
                _time_cell(run),
                _exit_cell(run) if change == "ended" else "-",
                run.source.host,
                run.id,
                run.container.image or "-",
            ]


def period_notes(period: Period, filter_: FleetFilter) -> Iterator[str]:
    """Say what is not known of the sources at both moments, one line each."""
    for state in (period.before, period.after):
        for note in Fleet.of(state, filter_).notes():
            yield f"at {_format_time(state.at)}: {note}"


def _changes(period: Period, filter_: FleetFilter) -> Iterator[tuple[str, list[Run]]]:
    for name, runs in (("started", period.started()), ("ended", period.ended())):
        yield name, [run for run in runs if filter_.selects(run.source, run.container)]


def _unknown(source: PastSource, at: datetime) -> Iterator[str]:
    info = source.info
    yield from source.unknown
    if info.retired is not None or info.watermark.year == 1:  # ended, or without any record
        return
    if info.stale:
        yield f"stale, silent since {_format_time(info.watermark)}: the state of its containers is unknown"
    if info.stale is None and at - info.watermark > STALE_MINIMUM:
        yield f"no heartbeats: whether it is stale, silent since {_format_time(info.watermark)}, cannot be known"
    if info.failed_namespaces:
        yield f"namespaces that could not be listed: {', '.join(info.failed_namespaces)}"
    if info.missing:
        epoch, first, last = info.missing[-1]
        more = f", and {_count(len(info.missing) - 1, 'range')} before" if len(info.missing) > 1 else ""
        yield f"records are missing: epoch {epoch} sequence {first} to {last}{more}"
    if not info.complete and not info.missing:
        yield "containers may be missing: no snapshot has been complete yet, or records were lost after it"


def _identity(container: Running | Run) -> dict[str, Any]:
    return {**container.source._asdict(), "id": container.id}


def _source_document(source: PastSource, at: datetime) -> dict[str, Any]:
    info = source.info
    return {
        **info.source._asdict(),
        "position": {"epoch": info.position[0], "sequence": info.position[1]},
        "watermark": _format_time(info.watermark) if info.watermark.year > 1 else None,
        "stale": info.stale,
        "complete": info.complete,
        "retired": msgspec.to_builtins(info.retired),
        "unknown": list(_unknown(source, at)),
    }


def _sort_key(running: Running) -> tuple[str, str, Source, str]:
    return _group(running.container), _name(running.container), running.source, running.id


def _group(container: Container) -> str:
    return pod_name(container) or container.project


def _name(container: Container) -> str:
    return (container.pod and container.pod.container) or container.name


def _cells(running: Running, group: str) -> list[str]:
    container = running.container
    return [
        group or ("-" if not _group(container) else ""),
        _name(container),
        status(running),
        running.source.host,
        running.id,
        container.image or "-",
        container_table.truncate_to_seconds(container.created_at),
    ]


def _time_cell(run: Run) -> str:
    if run.at is None and run.noticed_at is not None:
        return f"before {container_table.truncate_to_seconds(run.noticed_at)}"
    return container_table.truncate_to_seconds(run.at)


def _exit_cell(run: Run) -> str:
    return "unknown" if run.exit is None or run.exit.status is None else str(run.exit.status)


def _format_time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _line(text: str, style: str) -> Text:
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")
