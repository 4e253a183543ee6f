"""Bridges that are as a test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from bridge.core.encode import Coverage, Gap
from bridge.core.lives import Transition
from bridge.core.model import ContainerKey, Engine, Metadata
from bridge.core.ports import Lag
from bridge.telemetry.counters import Histogram, SnapshotNote, Tally
from bridge.telemetry.status import SinkStatus, Status


def note(number: int = 1, *, inferred: int = 0, **gap: Any) -> SnapshotNote:
    stretch = Gap(**{"reason": "start", "since": None, "until": 2_000_000_000, **gap})
    return SnapshotNote(f"7-{number}", 3_000_000_000, stretch, Coverage(["default"], [], False), 2, inferred)


def sink(name: str = "main", **changed: Any) -> SinkStatus:
    whole = SinkStatus(name, "ok", None, Lag(0, 0, 0.0, 0), 5, 0, 0, Histogram())
    return msgspec.structs.replace(whole, **changed)


def status(**changed: Any) -> Status:
    """A bridge that is well."""
    whole = Status(
        host="node-1",
        engine=Engine("engine-1", "2.4", "/c.sock", 1),
        include=("*",),
        exclude=(),
        live=True,
        failure=None,
        proof_age=1.5,
        proof_limit=20.0,
        trouble=None,
        max_bytes=1000,
        sinks=[sink()],
        running=1,
        paused=1,
        tally=Tally(),
        ignored=Counter(),
    )
    return msgspec.structs.replace(whole, **changed)


def row(id_: str = "c1", *, name: str = "", project: str = "", paused: bool = False, **labels: str) -> Transition:
    key = ContainerKey("shop", id_)
    metadata = Metadata(key, name or id_, project, "web", "busybox", "runc", 1, 1, labels)
    return Transition("present", "snapshot", 0, key, metadata, None, 42, "boot-42", paused)


class FakeBridge:
    """Tells what it was given; ``snapshot`` waits for ``taken``."""

    def __init__(self, how: Status | None = None, rows: Sequence[Transition] = ()) -> None:
        self.how = how or status()
        self.rows = rows
        self.taken: asyncio.Future[SnapshotNote] = asyncio.get_running_loop().create_future()

    def status(self) -> Status:
        return self.how

    def portfolio(self) -> Sequence[Transition]:
        return self.rows

    async def snapshot(self) -> SnapshotNote:
        return await asyncio.shield(self.taken)
