"""The JSON documents: readiness and the running containers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from bridge.core.encode import container, rfc3339
from bridge.core.lives import Transition
from bridge.telemetry.status import Status, judge
from bridge.telemetry.tally import SnapshotNote

AT_ONCE = 200  # containers per chunk; encoding a chunk blocks the event loop for about 1 ms


def readiness(status: Status) -> dict[str, Any]:
    """Return the document of /readyz."""
    verdict = judge(status)
    return {
        "ready": verdict.ready,
        "degraded": bool(verdict.complaints),
        "reasons": verdict.reasons + verdict.complaints,
        "stream": {"synced": status.live, "watermark_age_seconds": _rounded(status.proof_age)},
        "last_snapshot": _snapshot(status.tally.last[-1]) if status.tally.last else None,
        "outbox": {"writable": status.trouble is None, "error": status.trouble},
        "sinks": [
            {
                "id": sink.name,
                "state": sink.state,
                "last_error": sink.failure,
                "backlog_records": sink.lag.records,
                "backlog_bytes": sink.lag.size,
                "oldest_record_age_seconds": _rounded(sink.lag.age),
            }
            for sink in status.sinks
        ],
    }


def portfolio(status: Status, rows: Sequence[Transition]) -> Iterator[bytes]:
    """Encode the running containers by project, in chunks."""
    head = {
        "host": status.host,
        "engine": status.engine,
        "synced": status.live,
        "containers": len(rows),
    }
    yield msgspec.json.encode(head)[:-1] + b',"projects":{'
    comma = b""
    for project, members in sorted(by_project(rows).items()):
        yield comma + msgspec.json.encode(project) + b":["
        left, between = iter(members), b""
        while some := list(islice(left, AT_ONCE)):
            yield between + msgspec.json.encode([container(row) for row in some])[1:-1]
            between = b","
        yield b"]"
        comma = b","
    yield b"}}"


def by_project(rows: Sequence[Transition]) -> Mapping[str, list[Transition]]:
    """Group containers by compose project, "" for none."""
    projects: dict[str, list[Transition]] = {}
    for row in rows:
        projects.setdefault(row.metadata.project if row.metadata else "", []).append(row)
    return projects


def _snapshot(note: SnapshotNote) -> dict[str, Any]:
    return {
        "id": note.id,
        "at": rfc3339(note.at),
        "reason": note.gap.reason,
        "since": rfc3339(note.gap.since),
        "until": rfc3339(note.gap.until),
        "containers": note.containers,
        "failed": note.coverage.failed,
        "partial": note.coverage.partial,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
