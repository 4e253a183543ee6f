"""From containerd's messages to the model: pure, and total, for whatever bytes arrive.

An event that cannot be read becomes ``Undecodable``, one that nobody asked for ``Ignored``; nothing here raises. What
the fields mean, and which of them cannot be trusted, is told in containerd's ``api/`` folder and was measured on
containerd 1.6 and 2.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from bridge.containerd.protos import containers_pb2, payloads_pb2, process_pb2
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.core.identity import Scope, describe, everything
from bridge.core.labels import LabelRules
from bridge.core.model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    Event,
    Ignored,
    Labels,
    Mark,
    Metadata,
    Task,
    TaskCreated,
    TaskDeleted,
    TaskExited,
    TaskOOM,
    TaskPaused,
    TaskResumed,
    TaskStarted,
    TaskStatus,
    Undecodable,
)

MARK_TOPIC = "/whalebridge/marker/"
UNINTERESTING_TOPICS = frozenset(
    {
        "/tasks/checkpointed",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/namespaces/create",
        "/namespaces/update",
        "/namespaces/delete",
    }
)

_SECOND = 1_000_000_000
_LAST_SECOND = 253_402_300_799  # of the year 9999, where RFC 3339 ends
_MARK_DIGITS = 18

_Payload = TypeVar("_Payload", bound=Message)


class _Label(Protocol):
    key: bytes
    value: bytes


class _Ended(Protocol):
    """What TaskExit and TaskDelete have in common."""

    container_id: str
    id: str
    pid: int
    exit_status: int

    @property
    def exited_at(self) -> Timestamp: ...


# --- values ---


def text(value: bytes) -> str:
    """Return readable text: containerd 1.x lets any bytes into labels and image names, and JSON has room for UTF-8."""
    return value.decode("utf-8", "replace")


def nanoseconds(stamp: Timestamp) -> int | None:
    """Return nanoseconds since the epoch; None for no time, for Go's zero time, and for what is no time at all."""
    seconds, nanos = stamp.seconds, stamp.nanos
    if not 0 <= seconds <= _LAST_SECOND or not 0 <= nanos < _SECOND:
        return None
    return seconds * _SECOND + nanos or None


def _labels(labels: Iterable[_Label]) -> Labels:
    return {text(label.key): text(label.value) for label in labels}


# --- answers ---


def metadata(
    namespace: str, record: containers_pb2.Container, rules: LabelRules, scope: Scope = everything
) -> Metadata:
    """Return what a container's record tells; its raw labels end here."""
    return describe(
        ContainerKey(namespace, record.id),
        _labels(record.labels),
        rules,
        scope,
        image=text(record.image),
        runtime=text(record.runtime.name),
        created_at=nanoseconds(record.created_at),
        updated_at=nanoseconds(record.updated_at),
    )


def task(namespace: str, process: process_pb2.Process) -> Task:
    """Return a task; containerd fills ``id`` in, and ``container_id`` not always. A status it invents is UNKNOWN."""
    status = _STATUSES.get(process.status, TaskStatus.UNKNOWN)
    stopped = status is TaskStatus.STOPPED
    return Task(
        key=ContainerKey(namespace, process.container_id or process.id),
        pid=process.pid,
        status=status,
        exit_status=process.exit_status if stopped else None,
        exited_at=nanoseconds(process.exited_at) if stopped else None,
    )


_STATUSES: dict[int, TaskStatus] = {status.value: status for status in TaskStatus}


# --- events ---


def event(raw: bytes) -> Event:
    """Return the event that an envelope holds."""
    try:
        envelope = Envelope.FromString(raw)
    except DecodeError:
        return Undecodable("", "the envelope is no protobuf message")
    reader = _READERS.get(envelope.topic)
    return reader.read(envelope) if reader else _mark_or_ignored(envelope.topic)


def _mark_or_ignored(topic: str) -> Event:
    nonce, slash, number = topic.removeprefix(MARK_TOPIC).partition("/")
    if topic.startswith(MARK_TOPIC) and nonce and slash and _is_number(number):
        return Mark(nonce, int(number))
    return Ignored(topic, known=topic in UNINTERESTING_TOPICS)


def _is_number(digits: str) -> bool:
    return digits.isascii() and digits.isdigit() and len(digits) <= _MARK_DIGITS


class _Reader(Generic[_Payload]):
    """How the events of one topic are read: the payload's type, where it names the container, what it becomes."""

    def __init__(
        self,
        payload: type[_Payload],
        container_id: Callable[[_Payload], str],
        build: Callable[[ContainerKey, int, _Payload], ContainerEvent],
    ) -> None:
        self._parse = payload.FromString
        self._name = payload.DESCRIPTOR.full_name
        self._container_id = container_id
        self._build = build

    def read(self, envelope: Envelope) -> Event:
        """Return the event, or why it cannot be one."""
        wrapped = envelope.event
        url = wrapped.type_url
        if url != self._name and (told := url.rpartition("/")[2]) != self._name:
            return Undecodable(envelope.topic, f"the payload is {told!r}, not {self._name}")
        try:
            payload = self._parse(wrapped.value)
        except DecodeError:
            return Undecodable(envelope.topic, f"the payload is no {self._name}")
        namespace, id_ = envelope.namespace, self._container_id(payload)
        if not namespace or not id_:
            return Undecodable(envelope.topic, "it names no container")
        at = nanoseconds(envelope.timestamp)
        if at is None:
            return Undecodable(envelope.topic, "its timestamp is none")
        return self._build(ContainerKey(namespace, id_), at, payload)


def _exec_id(payload: _Ended) -> str:
    """Return "" for the init process: containerd names it by the container's id, and older shims by nothing."""
    return "" if payload.id == payload.container_id else payload.id


def _created(key: ContainerKey, at: int, payload: payloads_pb2.ContainerCreate) -> ContainerEvent:
    return ContainerCreated(key, at, text(payload.image), text(payload.runtime.name))


def _updated(key: ContainerKey, at: int, payload: payloads_pb2.ContainerUpdate) -> ContainerEvent:
    return ContainerUpdated(key, at, text(payload.image), _labels(payload.labels))


def _exited(key: ContainerKey, at: int, payload: payloads_pb2.TaskExit) -> ContainerEvent:
    return TaskExited(key, at, _exec_id(payload), payload.pid, payload.exit_status, nanoseconds(payload.exited_at))


def _deleted(key: ContainerKey, at: int, payload: payloads_pb2.TaskDelete) -> ContainerEvent:
    return TaskDeleted(key, at, _exec_id(payload), payload.pid, payload.exit_status, nanoseconds(payload.exited_at))


_record_id: Callable[[Any], str] = attrgetter("id")
_task_id: Callable[[Any], str] = attrgetter("container_id")
_READERS: dict[str, _Reader[Any]] = {
    "/containers/create": _Reader(payloads_pb2.ContainerCreate, _record_id, _created),
    "/containers/update": _Reader(payloads_pb2.ContainerUpdate, _record_id, _updated),
    "/containers/delete": _Reader(
        payloads_pb2.ContainerDelete, _record_id, lambda key, at, _: ContainerDeleted(key, at)
    ),
    "/tasks/create": _Reader(
        payloads_pb2.TaskCreate, _task_id, lambda key, at, payload: TaskCreated(key, at, payload.pid)
    ),
    "/tasks/start": _Reader(
        payloads_pb2.TaskStart, _task_id, lambda key, at, payload: TaskStarted(key, at, payload.pid)
    ),
    "/tasks/exit": _Reader(payloads_pb2.TaskExit, _task_id, _exited),
    "/tasks/delete": _Reader(payloads_pb2.TaskDelete, _task_id, _deleted),
    "/tasks/paused": _Reader(payloads_pb2.TaskPaused, _task_id, lambda key, at, _: TaskPaused(key, at)),
    "/tasks/resumed": _Reader(payloads_pb2.TaskResumed, _task_id, lambda key, at, _: TaskResumed(key, at)),
    "/tasks/oom": _Reader(payloads_pb2.TaskOOM, _task_id, lambda key, at, _: TaskOOM(key, at)),
}
