"""Provide bridge statuses and a fake bridge for tests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from bridge.core.container_state import Transition
from bridge.core.containerd_model import ContainerKey, Engine, Metadata
from bridge.core.exit_counts import STATUSES, ExitNamespace, NamespaceExits
from bridge.core.ports import Lag
from bridge.core.record_encoder import Gap, SnapshotCoverage
from bridge.telemetry.counters import Counters, Histogram, SnapshotSummary
from bridge.telemetry.status import SinkStatus, Status


def snapshot_summary(number: int = 1, *, inferred: int = 0, **gap: Any) -> SnapshotSummary:
    interval = Gap(**{"reason": "start", "since": None, "until": 2_000_000_000, **gap})
    return SnapshotSummary(
        f"7-{number}", 3_000_000_000, interval, SnapshotCoverage(["default"], [], False), 2, inferred
    )


def sink_status(name: str = "main", **changed: Any) -> SinkStatus:
    defaults = SinkStatus(name, "ok", None, Lag(0, 0, 0.0, 0), 5, 0, 0, Histogram())
    return msgspec.structs.replace(defaults, **changed)


def bridge_status(**changed: Any) -> Status:
    """Return the status of a healthy bridge with the given changes."""
    counters = Counters()
    counters.exits.restore({ExitNamespace("k8s.io", "billing"): NamespaceExits((1,) * len(STATUSES), 1, 1)})
    defaults = Status(
        host="node-1",
        attributes={"cluster": "prod-1"},
        engine=Engine("engine-1", "2.4", "/c.sock", 1),
        include=("*",),
        exclude=(),
        synced=True,
        containerd_error=None,
        second_bridges=0,
        excluded_namespaces=(),
        watermark_age=1.5,
        max_watermark_age=20.0,
        outbox_error=None,
        outbox_max_bytes=1000,
        sinks=[sink_status()],
        running=1,
        paused=1,
        counters=counters,
        ignored_events=Counter(),
        proxy_denied_calls=13,
    )
    return msgspec.structs.replace(defaults, **changed)


def running_container(
    id_: str = "c1", *, name: str = "", project: str = "", paused: bool = False, **labels: str
) -> Transition:
    key = ContainerKey("shop", id_)
    metadata = Metadata(key, name or id_, project, "web", "busybox", "runc", 1, 1, labels)
    return Transition("present", "snapshot", 0, key, metadata, None, 42, "boot-42", paused)


class FakeBridge:
    """Serve the given status and containers; ``snapshot`` waits for ``snapshot_result``."""

    def __init__(self, initial: Status | None = None, containers: Sequence[Transition] = ()) -> None:
        self.current_status = initial or bridge_status()
        self.containers = containers
        self.snapshot_result: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()

    def status(self) -> Status:
        return self.current_status

    def running_containers(self) -> Sequence[Transition]:
        return self.containers

    async def snapshot(self) -> tuple[str, int]:
        return await asyncio.shield(self.snapshot_result)
