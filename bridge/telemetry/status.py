"""How the bridge is: what the HTTP endpoint tells, and the port through which it looks at the running bridge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct

from bridge.core.lives import Transition
from bridge.core.model import Engine
from bridge.core.ports import Lag
from bridge.telemetry.histogram import Histogram
from bridge.telemetry.tally import Tally


class SinkStatus(Struct, frozen=True):
    """How a sink is; ``failure`` is what the last attempt failed for. The counts are records, but for ``retries``."""

    name: str
    state: Literal["starting", "ok", "failing"]
    failure: str | None
    lag: Lag
    published: int
    retries: int
    refused: int
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
    live: bool
    failure: str | None
    proof_age: float | None
    proof_limit: float
    trouble: str | None
    max_bytes: int
    sinks: Sequence[SinkStatus]
    running: int
    paused: int
    tally: Tally
    ignored: Counter[str]


class Taken(Protocol):
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

    def portfolio(self) -> Sequence[Transition]:
        """Return a row for every living container in scope."""

    async def snapshot(self) -> Taken:
        """Have a snapshot taken, and wait for it."""


class Verdict(Struct, frozen=True):
    """Whether the bridge does what it is there for.

    ``reasons`` are why it does not; ``complaints`` are of sinks that took nothing at the last attempt.
    """

    reasons: list[str]
    complaints: list[str]

    @property
    def ready(self) -> bool:
        """Whether it sees what happens and can write it down. What waits for a sink that is away is safe meanwhile."""
        return not self.reasons


def judge(status: Status) -> Verdict:
    """Decide on readiness."""
    reasons = []
    if not status.live and status.failure is not None:
        reasons.append(f"containerd is unavailable: {status.failure}")
    elif not status.live:
        reasons.append("the first snapshot of this connection is not complete")
    elif status.proof_age is None or status.proof_age > status.proof_limit:
        reasons.append(f"the event stream has stalled: not verified for more than {status.proof_limit:g} s")
    if status.trouble is not None:
        reasons.append(f"the outbox cannot be written: {status.trouble}")
    complaints = [
        f"sink {sink.name} is {sink.state}" + (f": {sink.failure}" if sink.failure else "")
        for sink in status.sinks
        if sink.state != "ok"
    ]
    return Verdict(reasons, complaints)
