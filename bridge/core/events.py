"""The records and frames that consumers get, and their JSON Schema (DESIGN: "What a consumer gets")."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from bridge.core.model import Kind, Labels

VERSION: Literal[1] = 1

TransitionType: TypeAlias = Literal["started", "exited", "paused", "unpaused"]
RowType: TypeAlias = Literal["present"]
ExtraType: TypeAlias = Literal["created", "deleted", "oom", "renamed"]
FrameType: TypeAlias = Literal["snapshot_started", "snapshot_completed", "lost", "heartbeat"]
RecordType: TypeAlias = Literal[
    "started",
    "exited",
    "paused",
    "unpaused",
    "present",
    "created",
    "deleted",
    "oom",
    "renamed",
    "snapshot_started",
    "snapshot_completed",
    "lost",
    "heartbeat",
]
Origin: TypeAlias = Literal["live", "inferred", "snapshot"]
LossReason: TypeAlias = Literal["overflow", "rejected"]
Reason: TypeAlias = Literal[
    "start", "reconnect", "overflow", "audit", "filters_changed", "on_demand", "interval", "outbox_reset"
]


class Pod(Struct, frozen=True):
    """A Kubernetes pod, as CRI's labels tell it; ``labels`` are its sandbox's, null where there is none."""

    name: str
    namespace: str
    uid: str
    container: str
    labels: Labels | None


class Container(Struct, frozen=True):
    """A container as it was known when the record was made; ``pid`` is its init process's on the host."""

    id: str
    namespace: str
    name: str
    project: str
    service: str
    pid: int
    incarnation: str
    paused: bool
    kind: Kind
    image: str
    runtime: str
    created_at: str | None
    labels: Labels | None
    labels_dropped: bool
    pod: Pod | None


class Exit(Struct, frozen=True):
    """How a life ended; null is what is not known. ``oom``: an OOM event was seen before the exit was told."""

    status: int | None
    at: str | None
    oom: bool | None


class Previous(Struct, frozen=True):
    """The last epoch and sequence of this source before this epoch."""

    epoch: int
    sequence: int


class Snapshot(Struct, frozen=True):
    """What a snapshot covers; in ``since`` to ``until`` something may have been missed (null: nothing known)."""

    id: str
    reason: Reason
    since: str | None
    until: str | None
    namespaces: list[str]
    failed: list[str]
    partial: bool
    containers: int
    previous: Previous | None


class Lost(Struct, frozen=True):
    """The sequences that a ``lost`` record stands for."""

    epoch: int
    first: int
    last: int
    reason: LossReason


class EngineInfo(Struct, frozen=True):
    """The containerd that a record comes from; ``pid`` is 0 where unknown."""

    id: str
    type: str
    version: str
    api: str
    pid: int


class EventRecord(Struct, frozen=True):
    """One JSON document, the same for every sink; every key is always present."""

    version: Literal[1]
    type: RecordType
    timestamp: str
    id: str | None
    project: str | None
    origin: Origin
    container: Container | None
    exit: Exit | None
    snapshot: Snapshot | None
    lost: Lost | None
    engine: EngineInfo
    host: str
    epoch: int
    sequence: int


class Proof(NamedTuple):
    """In this epoch, all that containerd had told before a moment (wall clock) is written down."""

    epoch: int
    at: int


class Record(Struct, frozen=True):
    """A record as it is stored and handed to sinks: what routes it, and its bytes, which never change.

    ``subject`` is the container's display id; it, ``namespace`` and ``project`` are "" for frames. ``engine`` is the
    containerd's id; with ``host`` it names the source. ``beat`` numbers heartbeats, which have the position of the
    record before them.
    """

    epoch: int
    sequence: int
    type: RecordType
    time: str
    host: str
    engine: str
    namespace: str
    subject: str
    project: str
    data: bytes
    beat: int = 0

    @property
    def id(self) -> str:
        """What names it within its source; what repeats a position, ``lost`` and heartbeats, has an id of its own."""
        if self.beat:
            return f"{self.epoch}-{self.sequence}-heartbeat-{self.beat}"
        return f"{self.epoch}-{self.sequence}-lost" if self.type == "lost" else f"{self.epoch}-{self.sequence}"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the records, generated from the types."""
    schema = msgspec.json.schema(EventRecord)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"whalebridge event, major version {VERSION}",
        **schema,
    }
