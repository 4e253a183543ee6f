"""Formats a record as a line for humans."""

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
_WIDTH = 9  # of the common types


def line(document: Document, *, coloured: bool, host: bool = True) -> str:
    """Return one line: time, (host,) type, container and details.

    The line contains no control characters except those of the colors.
    """
    kind = "snapshot" if document.type.startswith("snapshot_") else document.type
    before = [_time(document.timestamp)]
    if host:
        before.append(document.host)
    type_ = printable(kind).ljust(_WIDTH)
    after = [*_who(document), *_details(document)]
    front, back = "  ".join(map(printable, before)), "  ".join(map(printable, after))
    if coloured and kind in _COLOURS:
        type_ = typer.style(type_, **_COLOURS[kind])  # type: ignore[arg-type]
    return f"{front}  {type_}  {back}".rstrip()


def _time(timestamp: str) -> str:
    """Truncate a timestamp to milliseconds."""
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
        since = f", since {_time(snapshot.since)}" if snapshot.since else ""
        return f"begins: {snapshot.reason}{since}"
    text = f"complete: {snapshot.containers} {'container' if snapshot.containers == 1 else 'containers'}"
    if snapshot.failed:
        text += f", not listed: {', '.join(snapshot.failed)}"
    return text + (", partial" if snapshot.partial else "")
