"""Published records (transitions, snapshot records, additional events, control records) and their JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import cleandoc
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta, Struct

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


def _about(description: str) -> Meta:
    return Meta(description=description)


Timestamp: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""RFC 3339, in UTC."""


class Pod(Struct, frozen=True):
    """A Kubernetes pod, from CRI's labels."""

    name: Annotated[str, _about("Name of the pod.")]
    namespace: Annotated[str, _about("Kubernetes namespace of the pod.")]
    uid: Annotated[str, _about("UID of the pod.")]
    container: Annotated[str, _about("Name of the container in the pod's spec; empty for the pause container.")]
    labels: Annotated[Labels | None, _about("The pod's own labels; null if they are unknown.")]


class Container(Struct, frozen=True):
    """A container as known when the record was made."""

    id: Annotated[str, _about("containerd's id.")]
    namespace: Annotated[str, _about("containerd's namespace.")]
    name: Annotated[str, _about("nerdctl name, otherwise the id. Not unique: never use it as a key.")]
    project: Annotated[str, _about("Compose project; empty for none.")]
    service: Annotated[str, _about("Compose service; empty for none.")]
    pid: Annotated[int, _about("Process id of the initial process on the host; 0 if there is none, or if unknown.")]
    incarnation: Annotated[str, _about("Identifies one run of the container; empty if there is none. Do not parse it.")]
    paused: Annotated[bool, _about("Whether the container is paused after this record.")]
    kind: Annotated[Kind, _about("The kind of container.")]
    image: Annotated[str, _about("Name of the image in containerd's metadata; empty if unknown.")]
    runtime: Annotated[str, _about("Name of the runtime; empty if unknown.")]
    created_at: Annotated[Timestamp | None, _about("When the container was created; null if unknown.")]
    labels: Annotated[Labels | None, _about("Labels after the label rules; null if unknown or dropped.")]
    labels_dropped: Annotated[bool, _about("Whether labels were dropped because the record would be too large.")]
    pod: Annotated[Pod | None, _about("The Kubernetes pod; null outside of Kubernetes.")]
    image_digest: Annotated[
        str | None, _about("Digest that the image's name pointed to when the container was created; null if unknown.")
    ] = None


class Start(Struct, frozen=True):
    """When a container started."""

    at: Annotated[Timestamp | None, _about("When the initial process was started; null if unknown.")]


class Exit(Struct, frozen=True):
    """How a container exited; unknown values are null."""

    status: Annotated[int | None, _about("Exit status; 137 after SIGKILL.")]
    at: Annotated[Timestamp | None, _about("When the initial process ended.")]
    oom: Annotated[bool | None, _about("Whether containerd reported an OOM kill during this run.")]


class SourcePosition(Struct, frozen=True):
    """The last epoch and sequence of this source before this epoch."""

    epoch: Annotated[int, _about("Epoch of the last record before this epoch.")]
    sequence: Annotated[int, _about("Sequence of the last record before this epoch.")]


class Snapshot(Struct, frozen=True):
    """Scope of a snapshot."""

    id: Annotated[str, _about("EPOCH-NUMBER, the same in the first and the last record of the snapshot.")]
    reason: Annotated[SnapshotReason, _about("Why the snapshot was made.")]
    since: Annotated[Timestamp | None, _about("From here on, events may have been missed; null if unknown.")]
    until: Annotated[Timestamp | None, _about("Up to here, events may have been missed; null if unknown.")]
    namespaces: Annotated[list[str], _about("The containerd namespaces that were listed.")]
    failed: Annotated[list[str], _about("Those among them whose listing failed.")]
    partial: Annotated[bool, _about("Whether the state of some container could not be confirmed.")]
    containers: Annotated[int, _about("Number of records of type present in the snapshot.")]
    previous: Annotated[
        SourcePosition | None, _about("In the first record of an epoch: the last position before it; null if unknown.")
    ]


class Lost(Struct, frozen=True):
    """The range of sequences that a ``lost`` record replaces."""

    epoch: Annotated[int, _about("Epoch of the lost records.")]
    first: Annotated[int, _about("Sequence of the first lost record.")]
    last: Annotated[int, _about("Sequence of the last lost record, and of this record.")]
    reason: Annotated[LossReason, _about("Why the records were lost.")]


class Heartbeat(Struct, frozen=True):
    """When readers can expect the next heartbeat."""

    interval: Annotated[float, _about("Seconds until the next heartbeat.")]


class Retired(Struct, frozen=True):
    """The end of a source for good."""

    reason: Annotated[str, _about("Why the source has ended.")]
    by: Annotated[str, _about("The person or program that retired it.")]


class EngineInfo(Struct, frozen=True):
    """The containerd that a record comes from."""

    id: Annotated[str, _about("UUID of the containerd; empty if it has none.")]
    type: Annotated[str, _about("Always containerd.io.")]
    version: Annotated[str, _about("Version of the containerd.")]
    api: Annotated[str, _about("Path of the socket.")]
    pid: Annotated[int, _about("Process id of the containerd; 0 if unknown.")]


class EventRecord(Struct, frozen=True, omit_defaults=True):
    """One JSON document, the same for every sink; every key without a default is always present.

    ``start``, ``heartbeat`` and ``retired`` are present only in records of types ``started``, ``heartbeat`` and
    ``source_retired``, ``attributes`` only if there are any.
    """

    version: Annotated[Literal[1], _about("Major version of the contract.")]
    type: Annotated[RecordType, _about("What the record says. Ignore types that you do not know.")]
    timestamp: Annotated[Timestamp, _about("When it happened or was noticed. Order by epoch and sequence instead.")]
    id: Annotated[str | None, _about("NAMESPACE/ID, or ID in the namespace default; null in control records.")]
    project: Annotated[str | None, _about("Compose project; empty for none, null in control records.")]
    origin: Annotated[Origin, _about("live: from an event; inferred: from a comparison; snapshot: of a snapshot.")]
    container: Annotated[Container | None, _about("The container; null in control records.")]
    exit: Annotated[Exit | None, _about("How the container exited, in records of type exited; otherwise null.")]
    snapshot: Annotated[Snapshot | None, _about("In snapshot_started and snapshot_completed; otherwise null.")]
    lost: Annotated[Lost | None, _about("In records of type lost; otherwise null.")]
    engine: Annotated[EngineInfo, _about("The containerd; host and engine.id identify the source.")]
    host: Annotated[str, _about("Name of the node.")]
    epoch: Annotated[int, _about("Epoch of the source: grows with each start of whalebridge.")]
    sequence: Annotated[int, _about("Number of the record in its epoch, from 1 on, without holes.")]
    start: Annotated[Start | None, _about("Only in records of type started.")] = None
    heartbeat: Annotated[Heartbeat | None, _about("Only in records of type heartbeat.")] = None
    retired: Annotated[Retired | None, _about("Only in records of type source_retired.")] = None
    attributes: Annotated[dict[str, str] | None, _about("Attributes from the settings, such as the cluster.")] = None


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


SCHEMA_ID = f"urn:whalebridge:event:{VERSION}"
"""Names the JSON Schema of the records, and their major version."""

RECORD_TYPES: dict[RecordType, str] = {
    "started": "The container's initial process was started; a new incarnation begins.",
    "exited": "The container's initial process has exited.",
    "paused": "The container was paused.",
    "unpaused": "The container was resumed.",
    "present": "Part of a snapshot: the container is running, in this state.",
    "created": "The container's metadata was created (additional event).",
    "deleted": "The container's metadata was deleted (additional event).",
    "oom": "The kernel killed a process of the container because it was out of memory (additional event).",
    "renamed": "The container has another nerdctl name (additional event).",
    "snapshot_started": "A snapshot begins.",
    "snapshot_completed": "A snapshot is complete: containers of the source that it does not list are not running.",
    "lost": "Replaces records that this consumer does not receive.",
    "heartbeat": "whalebridge is running; all events up to the timestamp are processed.",
    "source_retired": "The source has ended for good: its node is gone.",
}
"""What each type of record says."""

_OPEN_ENUMERATIONS: dict[tuple[str, str], Mapping[Any, str]] = {
    ("EventRecord", "type"): RECORD_TYPES,
    ("Container", "kind"): {"container": "A container.", "sandbox": "The pause container of a pod."},
    ("Lost", "reason"): {
        "overflow": "The sink was too slow or down; a snapshot follows.",
        "rejected": "The broker rejected the record; no snapshot follows.",
    },
    ("Snapshot", "reason"): {
        "start": "whalebridge was started, or the source is a new one.",
        "reconnect": "The connection to containerd was lost, or the containerd was replaced.",
        "overflow": "More was received than could be stored, or records for a sink were dropped.",
        "audit": "A comparison with containerd found differences.",
        "filters_changed": "Other filters or label rules apply.",
        "on_demand": "The snapshot was requested.",
        "interval": "The interval of snapshots has passed.",
        "outbox_reset": "The outbox or its checkpoint could not be read, or is a copy.",
        "second_bridge": "Another whalebridge published for this source, and has ended.",
    },
}
"""Fields that may get new values within a major version, and what the known values mean."""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the records, generated from the types.

    It accepts what a later minor version may add: fields, and values of open enumerations.
    """
    reference, definitions = schema_components("#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": f"whalebridge event, major version {VERSION}",
        **reference,
        "$defs": definitions,
    }


def schema_components(ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a schema that refers to that of the records, and the schemas of all types by name.

    ``ref_template`` is a reference to a schema, with ``{name}`` for its name.
    """
    (reference,), definitions = msgspec.json.schema_components([EventRecord], ref_template=ref_template)
    for schema in definitions.values():
        schema["description"] = cleandoc(schema["description"]).replace("``", "")
    for (type_, field), known in _OPEN_ENUMERATIONS.items():
        schema = definitions[type_]["properties"][field]
        choices = [{"const": value, "description": known[value]} for value in schema.pop("enum")]
        schema["anyOf"] = [*choices, {"type": "string", "description": "Any other value, of a later version."}]
    return reference, definitions
