"""Encode transitions as published records: sequence numbers, control records, JSON.

A ``RecordEncoder`` serves one source (one containerd on one host) in one epoch. A record gets its sequence and its
bytes once; neither ever changes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import overload

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bridge.core import events
from bridge.core.events import EngineInfo, EventRecord, Previous, Reason, Record
from bridge.core.identity import display_id
from bridge.core.lives import Ending, Transition
from bridge.core.model import Engine, Labels, Metadata

MAX_BYTES = 512 * 1024
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(EventRecord)
_SECOND = 1_000_000_000
_LAST = 253_402_300_800 * _SECOND - 1  # of the year 9999, the last that RFC 3339 can write


@overload
def rfc3339(at: int) -> str: ...
@overload
def rfc3339(at: int | None) -> str | None: ...
def rfc3339(at: int | None) -> str | None:
    """Format nanoseconds since the Unix epoch as RFC 3339 in UTC, with nine decimals unless the second is whole."""
    if at is None:
        return None
    if not 0 <= at <= _LAST:
        at = min(max(at, 0), _LAST)
    seconds, nanoseconds = divmod(at, _SECOND)
    stem = _to_the_second(seconds)
    return f"{stem}.{nanoseconds:09}Z" if nanoseconds else f"{stem}Z"


@lru_cache(maxsize=64)  # many records share a second
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=4096)  # in every record of a container
def _created(at: int | None) -> str | None:
    return rfc3339(at)


class Gap(Struct, frozen=True):
    """The reason for a snapshot, and the interval (wall clock) in which events may have been missed."""

    reason: Reason
    since: int | None
    until: int | None


class Coverage(Struct, frozen=True):
    """The namespaces of a snapshot, those that could not be listed, and whether any task's state is unconfirmed."""

    namespaces: list[str]
    failed: list[str]
    partial: bool


class Ledger:
    """Number and encode the records of one source in one epoch.

    Args:
        host: The name of the node.
        engine: The containerd that the records describe.
        epoch: Greater than any earlier epoch of this source; normally the start time in Unix milliseconds.
        previous: The source's last epoch and sequence before this epoch, if known.
        max_bytes: Larger records are published without labels and with ``labels_dropped`` set.
    """

    def __init__(
        self, host: str, engine: Engine, epoch: int, *, previous: Previous | None = None, max_bytes: int = MAX_BYTES
    ) -> None:
        self.epoch = epoch
        self.sequence = 0
        self._host = host
        self._engine = EngineInfo(engine.id, engine.type, engine.version, engine.api, engine.pid)
        self._previous = previous
        self._max_bytes = max_bytes
        self._snapshots = 0

    @property
    def position(self) -> Previous | None:
        """Return the position of the last record; while this epoch has none, that of the previous epoch."""
        return Previous(self.epoch, self.sequence) if self.sequence else self._previous

    @property
    def snapshot_id(self) -> str:
        """Return the id of the last snapshot."""
        return f"{self.epoch}-{self._snapshots}"

    def set_engine(self, engine: Engine) -> None:
        """Update the engine after a restart of the same source; its version and pid may have changed."""
        self._engine = EngineInfo(engine.id, engine.type, engine.version, engine.api, engine.pid)

    def transition(self, transition: Transition) -> Record:
        """Encode a transition or a snapshot record."""
        record = self._about_container(transition, transition.metadata, transition.pod_labels)
        if len(record.data) > self._max_bytes:
            record = self._about_container(transition, _without_labels(transition.metadata), None, dropped=True)
        self.sequence += 1
        return record

    def snapshot(
        self, gap: Gap, coverage: Coverage, transitions: list[Transition], rows: list[Transition], now: int
    ) -> list[Record]:
        """Encode a snapshot: its control records, the missed transitions, and a record for each running container."""
        self._snapshots += 1
        body = events.Snapshot(
            id=self.snapshot_id,
            reason=gap.reason,
            since=rfc3339(gap.since),
            until=rfc3339(gap.until),
            namespaces=coverage.namespaces,
            failed=coverage.failed,
            partial=coverage.partial,
            containers=len(rows),
            previous=self._previous,
        )
        self._previous = None
        started = self._frame("snapshot_started", now, body)
        between = [self.transition(each) for each in (*transitions, *rows)]
        completed = self._frame("snapshot_completed", now, replace(body, previous=None))
        return [started, *between, completed]

    def _frame(self, type_: events.FrameType, now: int, snapshot: events.Snapshot) -> Record:
        self.sequence += 1
        return _record(
            EventRecord(
                events.VERSION,
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
            )
        )

    def _about_container(
        self, told: Transition, metadata: Metadata | None, pod_labels: Labels | None, *, dropped: bool = False
    ) -> Record:
        container = _container(told, metadata, pod_labels, dropped=dropped)
        document = EventRecord(
            events.VERSION,
            told.type,
            rfc3339(told.at),
            display_id(told.key),
            container.project,
            told.origin,
            container,
            _exit(told.ending),
            None,
            None,
            self._engine,
            self._host,
            self.epoch,
            self.sequence + 1,
        )
        return _record(document, namespace=told.key.namespace)


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
    )


def container(row: Transition) -> events.Container:
    """Return the container as a record describes it."""
    return _container(row, row.metadata, row.pod_labels, dropped=False)


def _container(
    told: Transition, metadata: Metadata | None, pod_labels: Labels | None, *, dropped: bool
) -> events.Container:
    key = told.key
    if metadata is None:
        metadata = Metadata(key, key.id, "", "", "", "", None, None, None)
    pod = metadata.pod
    return events.Container(
        key.id,
        key.namespace,
        metadata.name,
        metadata.project,
        metadata.service,
        told.pid,
        told.incarnation,
        told.paused,
        metadata.kind,
        metadata.image,
        metadata.runtime,
        _created(metadata.created_at),
        metadata.labels,
        dropped,
        None if pod is None else events.Pod(pod.name, pod.namespace, pod.uid, pod.container, pod_labels),
    )


def _exit(ending: Ending | None) -> events.Exit | None:
    return None if ending is None else events.Exit(ending.status, rfc3339(ending.exited_at), ending.oom)


def _without_labels(metadata: Metadata | None) -> Metadata | None:
    return None if metadata is None else replace(metadata, labels=None)


class _Engine(Struct, frozen=True):
    id: str


class _Container(Struct, frozen=True):
    namespace: str


class _Head(Struct, frozen=True):
    """The fields of an encoded record that route it."""

    epoch: int
    sequence: int
    type: events.RecordType
    timestamp: str
    id: str | None
    project: str | None
    host: str
    engine: _Engine
    container: _Container | None


_HEADS = msgspec.json.Decoder(_Head)


def parse(data: bytes) -> Record:
    """Restore a record from its stored bytes.

    Raises:
        ValueError: The bytes are not a record.
    """
    fields = _HEADS.decode(data)
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
    )


def lost_record(last: Record, first: int, reason: events.LossReason, now: int) -> Record:
    """Return the ``lost`` record for the sequences from ``first`` to that of ``last``, the last record lost.

    The ``lost`` record has the sequence of ``last`` and takes none of its own.
    """
    lost = events.Lost(last.epoch, first, last.sequence, reason)
    return _record(_frame_at(last, "lost", now, lost))


def heartbeat(last: Record, proven_at: int, number: int) -> Record:
    """Return a heartbeat for consumers whose last record is ``last``; the heartbeat has the position of ``last``.

    ``watermark_at`` becomes the timestamp; ``number``, from 1, distinguishes heartbeats with the same position.
    """
    return replace(_record(_frame_at(last, "heartbeat", proven_at)), beat=number)


def _frame_at(last: Record, type_: events.FrameType, at: int, lost: events.Lost | None = None) -> EventRecord:
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
    )
