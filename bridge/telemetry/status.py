"""How the bridge is: what the HTTP endpoint tells, and the port through which it looks at the running bridge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct

from bridge.core.containerd_model import Engine
from bridge.core.ports import Lag
from bridge.core.state import Transition
from bridge.telemetry.counters import Counters, Histogram


class SinkStatus(Struct, frozen=True):
    """How a sink is; ``failure`` is what the last attempt failed for. The counts are records, but for ``retries``."""

    name: str
    state: Literal["starting", "ok", "failing"]
    last_error: str | None
    lag: Lag
    published: int
    failures: int
    rejected: int
    latency: Histogram


class Status(Struct, frozen=True, kw_only=True):
    """How the bridge is at this moment; ages in seconds.

    ``live``: the stream works, and the first snapshot of this connection is complete. ``proof_age`` is None before the
    stream has been proven for the first time. ``trouble``: why nothing can be written down. ``max_bytes`` is how much
    may wait for one sink. ``ignored`` counts what containerd sent and nobody was told, by what it was.
    """

    host: str
    engine: Engine | None
    include: Sequence[str]
    exclude: Sequence[str]
    synced: bool
    containerd_error: str | None
    watermark_age: float | None
    max_watermark_age: float
    outbox_error: str | None
    outbox_max_bytes: int
    sinks: Sequence[SinkStatus]
    running: int
    paused: int
    counters: Counters
    ignored_events: Counter[str]


class CompletedSnapshot(Protocol):
    """A snapshot that was taken."""

    @property
    def id(self) -> str:
        """Its id, as its frames have it."""

    @property
    def containers(self) -> int:
        """How many containers it names."""


class Bridge(Protocol):
    """The running bridge."""

    def status(self) -> Status:
        """Tell how it is."""

    def running_containers(self) -> Sequence[Transition]:
        """Return a row for every living container in scope."""

    async def snapshot(self) -> CompletedSnapshot:
        """Have a snapshot taken, and wait for it."""


class Readiness(Struct, frozen=True):
    """Whether the bridge does what it is there for.

    ``reasons`` are why it does not; ``complaints`` are of sinks that took nothing at the last attempt.
    """

    reasons: list[str]
    degraded_reasons: list[str]

    @property
    def ready(self) -> bool:
        """Whether it sees what happens and can write it down. What waits for a sink that is away is safe meanwhile."""
        return not self.reasons


def evaluate(status: Status) -> Readiness:
    """Decide on readiness."""
    reasons = []
    if not status.synced and status.containerd_error is not None:
        reasons.append(f"containerd is unavailable: {status.containerd_error}")
    elif not status.synced:
        reasons.append("the first snapshot of this connection is not complete")
    elif status.watermark_age is None or status.watermark_age > status.max_watermark_age:
        reasons.append(f"the event stream has stalled: not verified for more than {status.max_watermark_age:g} s")
    if status.outbox_error is not None:
        reasons.append(f"the outbox cannot be written: {status.outbox_error}")
    complaints = [
        f"sink {sink.name} is {sink.state}" + (f": {sink.last_error}" if sink.last_error else "")
        for sink in status.sinks
        if sink.state != "ok"
    ]
    return Readiness(reasons, complaints)
