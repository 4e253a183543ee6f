"""The JSON documents: readiness, and the portfolio. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from bridge.core.encode import container, rfc3339
from bridge.core.lives import Transition
from bridge.telemetry.counters import SnapshotNote
from bridge.telemetry.status import Status, judge

AT_ONCE = 200  # containers; making them takes about a millisecond, for which the event loop stands still


def readiness(status: Status) -> dict[str, Any]:
    """Tell whether the bridge is ready, and why not."""
    verdict = judge(status)
    return {
        "ready": verdict.ready,
        "degraded": bool(verdict.complaints),
        "reasons": verdict.reasons + verdict.complaints,
        "stream": {"live": status.live, "proof_age_seconds": _rounded(status.proof_age)},
        "last_snapshot": _snapshot(status.tally.last[-1]) if status.tally.last else None,
        "outbox": {"writable": status.trouble is None, "trouble": status.trouble},
        "sinks": [
            {
                "name": sink.name,
                "state": sink.state,
                "failure": sink.failure,
                "records": sink.lag.records,
                "bytes": sink.lag.size,
                "oldest_age_seconds": _rounded(sink.lag.age),
            }
            for sink in status.sinks
        ],
    }


def portfolio(status: Status, rows: Sequence[Transition]) -> Iterator[bytes]:
    """Write down what lives, by project, piece by piece."""
    head = {
        "host": status.host,
        "engine": status.engine,
        "live": status.live,
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
    """Sort containers by their composer project, "" where they have none."""
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
