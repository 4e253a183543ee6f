"""A record as a line for people."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from bridge.fleet.documents import Container, Document, Snapshot
from bridge.telemetry.text import printable, shortened

_COLOURS = {
    "started": {"fg": "green"},
    "exited": {"fg": "red"},
    "paused": {"fg": "yellow"},
    "unpaused": {"fg": "green"},
    "lost": {"fg": "magenta", "bold": True},
    "present": {"dim": True},
    "snapshot": {"dim": True},
    "heartbeat": {"dim": True},
}
_WIDTH = 9  # of the usual types


def line(document: Document, *, coloured: bool, host: bool = True) -> str:
    """Return one line: when, (where,) what, which container, and what else there is to say.

    Nothing in it is anything that a terminal would obey, but for our own colours.
    """
    kind = "snapshot" if document.type.startswith("snapshot_") else document.type
    told = [_time(document.timestamp)]
    if host:
        told.append(document.host)
    what = printable(kind).ljust(_WIDTH)
    rest = [*_who(document), *_details(document)]
    front, back = "  ".join(map(printable, told)), "  ".join(map(printable, rest))
    if coloured and kind in _COLOURS:
        what = typer.style(what, **_COLOURS[kind])  # type: ignore[arg-type]
    return f"{front}  {what}  {back}".rstrip()


def _time(timestamp: str) -> str:
    """Cut a timestamp to milliseconds."""
    second, _, fraction = timestamp.rstrip("Z").partition(".")
    return f"{second}.{fraction[:3]:0<3}Z"


def _who(document: Document) -> Iterator[str]:
    if document.container is not None:
        yield f"{document.container.namespace}/{shortened(document.container.name)}"
    elif document.id is not None:
        yield document.id


def _details(document: Document) -> Iterator[str]:
    if document.exit is not None:
        yield "status unknown" if document.exit.status is None else f"status {document.exit.status}"
        if document.exit.oom:
            yield "out of memory"
    if document.container is not None:
        yield from _details_of(document.container, row=document.type == "present")
    if document.snapshot is not None:
        yield _snapshot(document.snapshot, completed=document.type == "snapshot_completed")
    if document.lost is not None:
        count = document.lost.last - document.lost.first + 1
        yield f"{count} {'record' if count == 1 else 'records'}: {document.lost.reason}"
    if document.origin == "inferred":
        yield "inferred"


def _details_of(container: Container, *, row: bool) -> Iterator[str]:
    if row and container.paused:
        yield "paused"
    if container.project:
        yield f"project {container.project}"
    if container.pod is not None:
        yield f"pod {container.pod.namespace}/{container.pod.name}"
        if container.pod.container:
            yield container.pod.container


def _snapshot(snapshot: Snapshot, *, completed: bool) -> str:
    if not completed:
        missed = f", since {_time(snapshot.since)}" if snapshot.since else ""
        return f"begins: {snapshot.reason}{missed}"
    told = f"complete: {snapshot.containers} {'container' if snapshot.containers == 1 else 'containers'}"
    if snapshot.failed:
        told += f", not listed: {', '.join(snapshot.failed)}"
    return told + (", partial" if snapshot.partial else "")
