"""Published records (transitions, snapshot records, additional events, control records) and their JSON Schema."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from bridge.core.containerd_model import Kind, Labels

VERSION: Literal[1] = 1
_ID_SUFFIXES = {"lost": "-lost", "source_retired": "-retired"}

TransitionType: TypeAlias = Literal["started", "exited", "paused", "unpaused"]
SnapshotRecordType: TypeAlias = Literal["present"]
AdditionalEventType: TypeAlias = Literal["created", "deleted", "oom", "renamed"]
ControlRecordType: TypeAlias = Literal["snapshot_started", "snapshot_completed", "lost", "heartbeat", "source_retired"]
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
    "source_retired",
]
Origin: TypeAlias = Literal["live", "inferred", "snapshot"]
LossReason: TypeAlias = Literal["overflow", "rejected"]
SnapshotReason: TypeAlias = Literal[
    "start",
    "reconnect",
    "overflow",
    "audit",
    "filters_changed",
    "on_demand",
    "interval",
    "outbox_reset",
    "second_bridge",
]


class Pod(Struct, frozen=True):
    """A Kubernetes pod, from CRI's labels; ``labels`` are those of its sandbox, null if the sandbox is unknown."""

    name: str
    namespace: str
    uid: str
    container: str
    labels: Labels | None


class Container(Struct, frozen=True):
    """A container as known when the record was made; ``pid`` is the host pid of its init process."""

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


class Start(Struct, frozen=True):
    """When a container started; null if unknown."""

    at: str | None


class Exit(Struct, frozen=True):
    """How a container exited; unknown values are null. ``oom``: an OOM event preceded the exit."""

    status: int | None
    at: str | None
    oom: bool | None


class SourcePosition(Struct, frozen=True):
    """The last epoch and sequence of this source before this epoch."""

    epoch: int
    sequence: int


class Snapshot(Struct, frozen=True):
    """Scope of a snapshot; events from ``since`` to ``until`` may have been missed (null: unknown)."""

    id: str
    reason: SnapshotReason
    since: str | None
    until: str | None
    namespaces: list[str]
    failed: list[str]
    partial: bool
    containers: int
    previous: SourcePosition | None


class Lost(Struct, frozen=True):
    """The range of sequences that a ``lost`` record replaces."""

    epoch: int
    first: int
    last: int
    reason: LossReason


class Heartbeat(Struct, frozen=True):
    """When readers can expect the next heartbeat: ``interval`` is in seconds."""

    interval: float


class Retired(Struct, frozen=True):
    """Why a source has ended for good, and who said so."""

    reason: str
    by: str


class EngineInfo(Struct, frozen=True):
    """The containerd that a record comes from; ``pid`` is 0 if unknown."""

    id: str
    type: str
    version: str
    api: str
    pid: int


class EventRecord(Struct, frozen=True, omit_defaults=True):
    """One JSON document, the same for every sink; every key without a default is always present.

    ``start``, ``heartbeat`` and ``retired`` are present only in records of types ``started``, ``heartbeat`` and
    ``source_retired``, ``attributes`` only if there are any.
    """

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
    start: Start | None = None
    heartbeat: Heartbeat | None = None
    retired: Retired | None = None
    attributes: dict[str, str] | None = None


class Watermark(NamedTuple):
    """All events that containerd sent before ``at`` (wall clock) are persisted in this epoch."""

    epoch: int
    at: int


class Record(Struct, frozen=True):
    """A record as stored and passed to sinks: its routing fields, and its bytes, which never change.

    ``subject`` is the container's display id; ``subject``, ``namespace`` and ``project`` are "" for control records.
    ``engine`` is the id of the containerd; ``host`` and ``engine`` identify the source. ``heartbeat_number`` counts
    heartbeats, which have the position of the preceding record. ``attributes`` are names and values.
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
    heartbeat_number: int = 0
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        """Return an id that is unique within the source, even for control records that repeat a position."""
        if self.heartbeat_number:
            return f"{self.epoch}-{self.sequence}-heartbeat-{self.heartbeat_number}"
        return f"{self.epoch}-{self.sequence}{_ID_SUFFIXES.get(self.type, '')}"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the records, generated from the types."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"whalebridge event, major version {VERSION}",
        **msgspec.json.schema(EventRecord),
    }
