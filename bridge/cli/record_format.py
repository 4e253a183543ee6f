"""Formats a record as a line for humans."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from bridge.consumer.record_decoder import Container, DecodedRecord, Snapshot
from bridge.telemetry.safe_text import printable, shorten_ids

_COLORS = {
    "started": {"fg": "green"},
    "exited": {"fg": "red"},
    "paused": {"fg": "yellow"},
    "unpaused": {"fg": "green"},
    "lost": {"fg": "magenta", "bold": True},
    "present": {"dim": True},
    "snapshot": {"dim": True},
    "heartbeat": {"dim": True},
    "source_retired": {"fg": "magenta", "bold": True},
}
_TYPE_WIDTH = 9  # of the common types


def format_record(record: DecodedRecord, *, colored: bool, with_host: bool = True) -> str:
    """Return one line: time, (host,) type, container and details.

    The line contains no control characters except those of the colors.
    """
    kind = "snapshot" if record.type.startswith("snapshot_") else record.type
    before = [_format_time(record.timestamp)]
    if with_host:
        before.append(record.host)
    type_ = printable(kind).ljust(_TYPE_WIDTH)
    after = [*_format_subject(record), *_format_details(record)]
    front, back = "  ".join(map(printable, before)), "  ".join(map(printable, after))
    if colored and kind in _COLORS:
        type_ = typer.style(type_, **_COLORS[kind])  # type: ignore[arg-type]
    return f"{front}  {type_}  {back}".rstrip()


def _format_time(timestamp: str) -> str:
    """Truncate a timestamp to milliseconds."""
    second, _, fraction = timestamp.rstrip("Z").partition(".")
    return f"{second}.{fraction[:3]:0<3}Z"


def _format_subject(record: DecodedRecord) -> Iterator[str]:
    if record.container is not None:
        yield f"{record.container.namespace}/{shorten_ids(record.container.name)}"
    elif record.id is not None:
        yield record.id


def _format_details(record: DecodedRecord) -> Iterator[str]:
    if record.exit is not None:
        yield "status unknown" if record.exit.status is None else f"status {record.exit.status}"
        if record.exit.oom:
            yield "out of memory"
    if record.container is not None:
        yield from _format_container(record.container, is_present=record.type == "present")
    if record.snapshot is not None:
        yield _format_snapshot(record.snapshot, completed=record.type == "snapshot_completed")
    if record.lost is not None:
        count = record.lost.last - record.lost.first + 1
        yield f"{count} {'record' if count == 1 else 'records'}: {record.lost.reason}"
    if record.retired is not None:
        yield f"{record.retired.reason} (by {record.retired.by})"
    if record.origin == "inferred":
        yield "inferred"


def _format_container(container: Container, *, is_present: bool) -> Iterator[str]:
    if is_present and container.paused:
        yield "paused"
    if container.project:
        yield f"project {container.project}"
    if container.pod is not None:
        yield f"pod {container.pod.namespace}/{container.pod.name}"
        if container.pod.container:
            yield container.pod.container


def _format_snapshot(snapshot: Snapshot, *, completed: bool) -> str:
    if not completed:
        since = f", since {_format_time(snapshot.since)}" if snapshot.since else ""
        return f"started: {snapshot.reason}{since}"
    text = f"completed: {snapshot.containers} {'container' if snapshot.containers == 1 else 'containers'}"
    if snapshot.failed:
        text += f", not listed: {', '.join(snapshot.failed)}"
    return text + (", partial" if snapshot.partial else "")
