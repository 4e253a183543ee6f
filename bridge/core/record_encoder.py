"""Encode transitions as published records: sequence numbers, control records, JSON.

A ``RecordEncoder`` serves one source (one containerd on one host) in one epoch. A record gets its sequence and its
bytes once; neither ever changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import overload

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bridge.core import records
from bridge.core.container_metadata import display_id
from bridge.core.container_state import ExitInfo, Transition
from bridge.core.containerd_model import Engine, Labels, Metadata
from bridge.core.records import EngineInfo, EventRecord, Record, SnapshotReason, SourcePosition
from bridge.core.time import SECOND

MAX_BYTES = 512 * 1024
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(EventRecord)
_MAX_TIMESTAMP_NS = 253_402_300_800 * SECOND - 1  # of the year 9999, the last that RFC 3339 can write


@overload
def rfc3339(at: int) -> str: ...
@overload
def rfc3339(at: int | None) -> str | None: ...
def rfc3339(at: int | None) -> str | None:
    """Format nanoseconds since the Unix epoch as RFC 3339 in UTC, with nine decimals unless the second is whole."""
    if at is None:
        return None
    if not 0 <= at <= _MAX_TIMESTAMP_NS:
        at = min(max(at, 0), _MAX_TIMESTAMP_NS)
    seconds, nanoseconds = divmod(at, SECOND)
    stem = _format_seconds(seconds)
    return f"{stem}.{nanoseconds:09}Z" if nanoseconds else f"{stem}Z"


def parse_rfc3339(text: str) -> int:
    """Return the nanoseconds since the Unix epoch of a time that ``rfc3339`` has formatted."""
    seconds, _, nanoseconds = text.removesuffix("Z").partition(".")
    return _parse_seconds(seconds) * SECOND + int(nanoseconds or 0)


@lru_cache(maxsize=64)  # many records share a second
def _parse_seconds(stem: str) -> int:
    return int(datetime.fromisoformat(f"{stem}Z").timestamp())


@lru_cache(maxsize=64)
def _format_seconds(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=4096)  # in every record of a container
def _format_created_at(at: int | None) -> str | None:
    return rfc3339(at)


class Gap(Struct, frozen=True):
    """The reason for a snapshot, and the interval (wall clock) in which events may have been missed."""

    reason: SnapshotReason
    since: int | None
    until: int | None


class SnapshotCoverage(Struct, frozen=True):
    """The namespaces of a snapshot, those that could not be listed, and whether any task's state is unconfirmed."""

    namespaces: list[str]
    failed: list[str]
    partial: bool


class RecordEncoder:
    """Number and encode the records of one source in one epoch.

    Args:
        host: The name of the node.
        engine: The containerd that the records describe.
        epoch: Greater than any earlier epoch of this source; normally the start time in Unix milliseconds.
        previous: The source's last epoch and sequence before this epoch, if known.
        attributes: Attributes of every record.
        max_bytes: Larger records are published without labels and with ``labels_dropped`` set.
    """

    def __init__(
        self,
        host: str,
        engine: Engine,
        epoch: int,
        *,
        previous: SourcePosition | None = None,
        attributes: Mapping[str, str] | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.epoch = epoch
        self.sequence = 0
        self._host = host
        self._engine = EngineInfo(engine.id, engine.type, engine.version, engine.api, engine.pid)
        self._previous = previous
        self._attributes = dict(attributes) if attributes else None
        self._max_bytes = max_bytes
        self._snapshot_count = 0

    @property
    def position(self) -> SourcePosition | None:
        """Return the position of the last record; while this epoch has none, that of the previous epoch."""
        return SourcePosition(self.epoch, self.sequence) if self.sequence else self._previous

    @property
    def snapshot_id(self) -> str:
        """Return the id of the last snapshot."""
        return f"{self.epoch}-{self._snapshot_count}"

    def set_engine(self, engine: Engine) -> None:
        """Update the engine after a restart of the same source; its version and pid may have changed."""
        self._engine = EngineInfo(engine.id, engine.type, engine.version, engine.api, engine.pid)

    def encode_transition(self, transition: Transition) -> Record:
        """Encode a transition or a snapshot record."""
        record = self._container_record(transition, transition.metadata, transition.pod_labels)
        if len(record.data) > self._max_bytes:
            record = self._container_record(transition, _without_labels(transition.metadata), None, labels_dropped=True)
        self.sequence += 1
        return record

    def encode_snapshot(
        self,
        gap: Gap,
        coverage: SnapshotCoverage,
        transitions: list[Transition],
        snapshot_records: list[Transition],
        now: int,
    ) -> list[Record]:
        """Encode a snapshot: its control records, the missed transitions, and a record for each running container."""
        self._snapshot_count += 1
        body = records.Snapshot(
            id=self.snapshot_id,
            reason=gap.reason,
            since=rfc3339(gap.since),
            until=rfc3339(gap.until),
            namespaces=coverage.namespaces,
            failed=coverage.failed,
            partial=coverage.partial,
            containers=len(snapshot_records),
            previous=self._previous,
        )
        self._previous = None
        started = self._control_record("snapshot_started", now, body)
        between = [self.encode_transition(each) for each in (*transitions, *snapshot_records)]
        completed = self._control_record("snapshot_completed", now, replace(body, previous=None))
        return [started, *between, completed]

    def _control_record(self, type_: records.ControlRecordType, now: int, snapshot: records.Snapshot) -> Record:
        self.sequence += 1
        return _record(
            EventRecord(
                records.VERSION,
                type_,
                rfc3339(now),
                None,
                None,
                "snapshot",
                None,
                None,
                snapshot,
                None,
                self._engine,
                self._host,
                self.epoch,
                self.sequence,
                attributes=self._attributes,
            )
        )

    def _container_record(
        self,
        transition: Transition,
        metadata: Metadata | None,
        pod_labels: Labels | None,
        *,
        labels_dropped: bool = False,
    ) -> Record:
        container = _build_container(transition, metadata, pod_labels, labels_dropped=labels_dropped)
        document = EventRecord(
            records.VERSION,
            transition.type,
            rfc3339(transition.at),
            display_id(transition.key),
            container.project,
            transition.origin,
            container,
            _build_exit(transition.exit_info),
            None,
            None,
            self._engine,
            self._host,
            self.epoch,
            self.sequence + 1,
            records.Start(rfc3339(transition.started_at)) if transition.type == "started" else None,
            None,
            None,
            self._attributes,
        )
        return _record(document, namespace=transition.key.namespace)


def _record(document: EventRecord, *, namespace: str = "") -> Record:
    return Record(
        document.epoch,
        document.sequence,
        document.type,
        document.timestamp,
        document.host,
        document.engine.id,
        namespace,
        document.id or "",
        document.project or "",
        _ENCODER.encode(document),
        0,
        tuple(document.attributes.items()) if document.attributes else (),
    )


def build_container(transition: Transition) -> records.Container:
    """Return the container as a record describes it."""
    return _build_container(transition, transition.metadata, transition.pod_labels, labels_dropped=False)


def _build_container(
    transition: Transition, metadata: Metadata | None, pod_labels: Labels | None, *, labels_dropped: bool
) -> records.Container:
    key = transition.key
    if metadata is None:
        metadata = Metadata(key, key.id, "", "", "", "", None, None, None)
    pod = metadata.pod
    return records.Container(
        key.id,
        key.namespace,
        metadata.name,
        metadata.project,
        metadata.service,
        transition.pid,
        transition.incarnation,
        transition.paused,
        metadata.kind,
        metadata.image,
        metadata.runtime,
        _format_created_at(metadata.created_at),
        metadata.labels,
        labels_dropped,
        None if pod is None else records.Pod(pod.name, pod.namespace, pod.uid, pod.container, pod_labels),
        metadata.image_digest,
    )


def _build_exit(exit_info: ExitInfo | None) -> records.Exit | None:
    return None if exit_info is None else records.Exit(exit_info.status, rfc3339(exit_info.exited_at), exit_info.oom)


def _without_labels(metadata: Metadata | None) -> Metadata | None:
    return None if metadata is None else replace(metadata, labels=None)


class _Engine(Struct, frozen=True):
    id: str


class _Container(Struct, frozen=True):
    namespace: str


class _RoutingFields(Struct, frozen=True):
    """The fields of an encoded record that route it."""

    epoch: int
    sequence: int
    type: records.RecordType
    timestamp: str
    id: str | None
    project: str | None
    host: str
    engine: _Engine
    container: _Container | None
    attributes: dict[str, str] | None = None


_ROUTING_DECODER = msgspec.json.Decoder(_RoutingFields)


def parse_record(data: bytes) -> Record:
    """Restore a record from its stored bytes.

    Raises:
        ValueError: The bytes are not a record.
    """
    try:
        fields = _ROUTING_DECODER.decode(data)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return Record(
        fields.epoch,
        fields.sequence,
        fields.type,
        fields.timestamp,
        fields.host,
        fields.engine.id,
        fields.container.namespace if fields.container is not None else "",
        fields.id or "",
        fields.project or "",
        data,
        0,
        tuple(fields.attributes.items()) if fields.attributes else (),
    )


def lost_record(last: Record, first: int, reason: records.LossReason, now: int) -> Record:
    """Return the ``lost`` record for the sequences from ``first`` to that of ``last``, the last record lost.

    The ``lost`` record has the sequence of ``last`` and takes none of its own.
    """
    lost = records.Lost(last.epoch, first, last.sequence, reason)
    return _record(_control_record_at(last, "lost", now, lost))


def heartbeat_record(last: Record, watermark_at: int, number: int, interval: float) -> Record:
    """Return a heartbeat for consumers whose last record is ``last``; the heartbeat has the position of ``last``.

    ``watermark_at`` becomes the timestamp; ``number``, from 1, distinguishes heartbeats with the same position;
    ``interval`` is the number of seconds until the next one.
    """
    heartbeat = records.Heartbeat(interval)
    document = replace(_control_record_at(last, "heartbeat", watermark_at), heartbeat=heartbeat)
    return replace(_record(document), heartbeat_number=number)


def retirement_record(last: Record, reason: str, by: str, now: int) -> Record:
    """Return the record that ends a source whose last record is ``last``; it has the position of ``last``."""
    return _record(replace(_control_record_at(last, "source_retired", now), retired=records.Retired(reason, by)))


def _control_record_at(
    last: Record, type_: records.ControlRecordType, at: int, lost: records.Lost | None = None
) -> EventRecord:
    """Return a control record with the position and the source of ``last``, and none of its content."""
    return replace(
        _DECODER.decode(last.data),
        type=type_,
        timestamp=rfc3339(at),
        id=None,
        project=None,
        origin="live",
        container=None,
        exit=None,
        snapshot=None,
        lost=lost,
        start=None,
        heartbeat=None,
        retired=None,
    )
