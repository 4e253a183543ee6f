"""The status of the bridge, its readiness, and the port through which the HTTP endpoint reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct, field

from bridge.core.container_state import Transition
from bridge.core.containerd_model import Engine
from bridge.core.ports import Lag
from bridge.telemetry.counters import Counters, Histogram

_MAX_NAMESPACES = 10  # in a reason


SinkState: TypeAlias = Literal["starting", "ok", "failing", "failed"]
"""``failing``: retried with backoff. ``failed``: an operator has to change something."""


class SinkStatus(Struct, frozen=True):
    """The status of a sink.

    ``last_error`` is the error of the last attempt, None if it succeeded. ``published`` and ``rejected`` count records,
    ``failures`` counts attempts.
    """

    name: str
    state: SinkState
    last_error: str | None
    lag: Lag
    published: int
    failures: int
    rejected: int
    latency: Histogram


class Status(Struct, frozen=True, kw_only=True):
    """The status of the bridge at one moment; ages are in seconds.

    Attributes:
        synced: Whether the event stream works and the first snapshot of this connection is complete.
        watermark_age: None before the event stream is verified for the first time.
        outbox_error: Why records cannot be persisted, for example because the outbox is not open yet; None if they can.
        outbox_max_bytes: Maximum size of the backlog of one sink.
        commits: Durations of the outbox's transactions.
        second_bridges: Number of second bridges, which publish for the same source.
        excluded_namespaces: If no namespace is watched, those that exist.
        ignored_events: Events from containerd that produced no record, counted by reason.
        proxy_denied_calls: Calls that the proxy has denied since its start; None without a proxy.
        settings_error: Why settings of the last reload are not in effect; None if all are.
    """

    host: str
    attributes: Mapping[str, str]
    engine: Engine | None
    include: Sequence[str]
    exclude: Sequence[str]
    synced: bool
    containerd_error: str | None
    second_bridges: int
    excluded_namespaces: Sequence[str]
    watermark_age: float | None
    max_watermark_age: float
    outbox_error: str | None
    outbox_max_bytes: int
    sinks: Sequence[SinkStatus]
    running: int
    paused: int
    counters: Counters
    ignored_events: Counter[str]
    proxy_denied_calls: int | None = None
    settings_error: str | None = None
    commits: Histogram = field(default_factory=Histogram)


class BridgeInspector(Protocol):
    """The running bridge."""

    def status(self) -> Status:
        """Return the current status."""

    def running_containers(self) -> Sequence[Transition]:
        """Return a snapshot record for each running container in scope."""

    async def snapshot(self) -> tuple[str, int]:
        """Request a snapshot and wait until it is complete; return its id and the number of its containers."""


class Readiness(Struct, frozen=True):
    """Whether the bridge is ready, and whether it is degraded.

    ``reasons`` are the reasons why it is not ready; ``degraded_reasons`` are the sinks whose last attempt failed,
    settings that are not in effect, and what makes the records wrong or missing for consumers although everything
    works.
    """

    reasons: list[str]
    degraded_reasons: list[str]

    @property
    def ready(self) -> bool:
        """Whether the bridge receives events and can persist records, which are safe while a sink is unavailable."""
        return not self.reasons


def evaluate(status: Status) -> Readiness:
    """Return the readiness for a status."""
    reasons = []
    if status.outbox_error is not None:
        reasons.append(f"the outbox cannot be written: {status.outbox_error}")
    if not status.synced and status.containerd_error is not None:
        reasons.append(f"containerd is unavailable: {status.containerd_error}")
    elif not status.synced:
        reasons.append("the first snapshot of this connection is not complete")
    elif status.watermark_age is None or status.watermark_age > status.max_watermark_age:
        reasons.append(f"the event stream has stalled: not verified for more than {status.max_watermark_age:g} s")
    degraded_reasons = [
        f"sink {sink.name} {'has' if sink.state == 'failed' else 'is'} {sink.state}"
        + (f": {sink.last_error}" if sink.last_error else "")
        for sink in status.sinks
        if sink.state != "ok"
    ]
    if status.second_bridges:
        degraded_reasons.append(
            f"another whalebridge publishes for host {status.host} on this containerd, and consumers follow the newest "
            "only: stop one of the two, or give them different host names (setting host)"
        )
    if status.excluded_namespaces:
        names = ", ".join(status.excluded_namespaces[:_MAX_NAMESPACES])
        degraded_reasons.append(f"no namespace matches namespaces.include and exclude; containerd has: {names}")
    if status.settings_error is not None:
        degraded_reasons.append(f"settings of the last reload are not in effect: {status.settings_error}")
    return Readiness(reasons, degraded_reasons)
