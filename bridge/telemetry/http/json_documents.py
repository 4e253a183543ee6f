"""The JSON documents of /readyz and /containers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from bridge.core.container_state import Transition
from bridge.core.record_encoder import build_container, rfc3339
from bridge.telemetry.counters import SnapshotSummary
from bridge.telemetry.status import Status, evaluate

CONTAINERS_PER_CHUNK = 200  # containers per chunk; encoding a chunk blocks the event loop for about 1 ms


def readiness(status: Status) -> dict[str, Any]:
    """Return the document of /readyz."""
    evaluated = evaluate(status)
    return {
        "ready": evaluated.ready,
        "degraded": bool(evaluated.degraded_reasons),
        "reasons": evaluated.reasons + evaluated.degraded_reasons,
        "second_bridges": status.second_bridges,
        "stream": {"synced": status.synced, "watermark_age_seconds": _round(status.watermark_age)},
        "last_snapshot": _snapshot_summary(status.counters.recent_snapshots[-1])
        if status.counters.recent_snapshots
        else None,
        "outbox": {"writable": status.outbox_error is None, "error": status.outbox_error},
        "sinks": [
            {
                "id": sink.name,
                "state": sink.state,
                "last_error": sink.last_error,
                "backlog_records": sink.lag.records,
                "backlog_bytes": sink.lag.size,
                "oldest_record_age_seconds": _round(sink.lag.oldest_age),
            }
            for sink in status.sinks
        ],
    }


def containers_document(status: Status, containers: Sequence[Transition]) -> Iterator[bytes]:
    """Encode the running containers by project, in chunks."""
    head = {
        "host": status.host,
        "engine": status.engine,
        "synced": status.synced,
        "containers": len(containers),
    }
    yield msgspec.json.encode(head)[:-1] + b',"projects":{'
    project_separator = b""
    for project, members in sorted(group_by_project(containers).items()):
        yield project_separator + msgspec.json.encode(project) + b":["
        remaining, separator = iter(members), b""
        while chunk := list(islice(remaining, CONTAINERS_PER_CHUNK)):
            yield separator + msgspec.json.encode([build_container(container) for container in chunk])[1:-1]
            separator = b","
        yield b"]"
        project_separator = b","
    yield b"}}"


def group_by_project(containers: Sequence[Transition]) -> Mapping[str, list[Transition]]:
    """Group containers by compose project; "" for those without a project."""
    projects: dict[str, list[Transition]] = {}
    for container in containers:
        projects.setdefault(container.metadata.project if container.metadata else "", []).append(container)
    return projects


def _snapshot_summary(summary: SnapshotSummary) -> dict[str, Any]:
    return {
        "id": summary.id,
        "at": rfc3339(summary.at),
        "reason": summary.gap.reason,
        "since": rfc3339(summary.gap.since),
        "until": rfc3339(summary.gap.until),
        "containers": summary.containers,
        "failed": summary.coverage.failed,
        "partial": summary.coverage.partial,
    }


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
