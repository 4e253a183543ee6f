"""From what happened to the bytes that consumers get: sequence numbers, frames, JSON.

A ledger speaks for one source (one containerd on one host) in one epoch. A record gets its sequence and its bytes
once; both never change.
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
from bridge.core.time import SECOND

MAX_BYTES = 512 * 1024
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(EventRecord)
_LAST = 253_402_300_800 * SECOND - 1  # of the year 9999, the last that RFC 3339 can write


@overload
def rfc3339(at: int) -> str: ...
@overload
def rfc3339(at: int | None) -> str | None: ...
def rfc3339(at: int | None) -> str | None:
    """Write nanoseconds since the Unix epoch as RFC 3339 in UTC, all nine digits unless the second is whole."""
    if at is None:
        return None
    if not 0 <= at <= _LAST:
        at = min(max(at, 0), _LAST)
    seconds, nanoseconds = divmod(at, SECOND)
    stem = _to_the_second(seconds)
    return f"{stem}.{nanoseconds:09}Z" if nanoseconds else f"{stem}Z"


@lru_cache(maxsize=64)  # many records of the same second
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=4096)  # each record of a container has it
def _created(at: int | None) -> str | None:
    return rfc3339(at)


class Gap(Struct, frozen=True):
    """Why a snapshot is taken, and the interval (wall clock) in which something may have been missed."""

    reason: Reason
    since: int | None
    until: int | None


class Coverage(Struct, frozen=True):
    """Which namespaces a snapshot lists, which of them failed, and whether some task's state is unconfirmed."""

    namespaces: list[str]
    failed: list[str]
    partial: bool


class Ledger:
    """Numbers and encodes the records of one source in one epoch.

    Args:
        host: The node's name.
        engine: The containerd that the records speak of.
        epoch: Greater than any epoch of this source before; normally the start's Unix milliseconds.
        previous: The source's last epoch and sequence before this epoch, where known.
        max_bytes: A record larger than that loses its labels, and says so.
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
        """The last epoch and sequence that a record has: an earlier epoch's, as long as this one has no record."""
        return Previous(self.epoch, self.sequence) if self.sequence else self._previous

    @property
    def snapshot_id(self) -> str:
        """The id of the last snapshot."""
        return f"{self.epoch}-{self._snapshots}"

    def set_engine(self, engine: Engine) -> None:
        """The same source, restarted: its version and pid may be others now."""
        self._engine = EngineInfo(engine.id, engine.type, engine.version, engine.api, engine.pid)

    def transition(self, transition: Transition) -> Record:
        """Record a transition, or a row of a snapshot."""
        record = self._about_container(transition, transition.metadata, transition.pod_labels)
        if len(record.data) > self._max_bytes:
            record = self._about_container(transition, _without_labels(transition.metadata), None, dropped=True)
        self.sequence += 1
        return record

    def snapshot(
        self, gap: Gap, coverage: Coverage, transitions: list[Transition], rows: list[Transition], now: int
    ) -> list[Record]:
        """Record a whole snapshot: its frames, what was missed, and a row for each living container."""
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
    """Return what a record would say of a container."""
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
    """What of a document routes it."""

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
    """Make a record of its stored bytes; the same that it was made of.

    Raises:
        ValueError: These are not a record's.
    """
    head = _HEADS.decode(data)
    return Record(
        head.epoch,
        head.sequence,
        head.type,
        head.timestamp,
        head.host,
        head.engine.id,
        head.container.namespace if head.container is not None else "",
        head.id or "",
        head.project or "",
        data,
    )


def lost_record(last: Record, first: int, reason: events.LossReason, now: int) -> Record:
    """Make the record that stands for the sequences from ``first`` to that of ``last``, the last one lost.

    It has the last one's sequence and takes none of its own.
    """
    lost = events.Lost(last.epoch, first, last.sequence, reason)
    return _record(_frame_at(last, "lost", now, lost))


def heartbeat(last: Record, proven_at: int, number: int) -> Record:
    """Make a heartbeat for readers whose last record is ``last``, whose position it has.

    ``proven_at`` is its timestamp; ``number``, from 1, tells it from others that have the same position.
    """
    return replace(_record(_frame_at(last, "heartbeat", proven_at)), beat=number)


def _frame_at(last: Record, type_: events.FrameType, at: int, lost: events.Lost | None = None) -> EventRecord:
    """Return a document at the position of a record, and of its source, that has nothing else of it."""
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
