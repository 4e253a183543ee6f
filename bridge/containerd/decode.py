"""Decoding of containerd's messages into the model. Pure.

Invariant: no input raises an error. An event that cannot be decoded becomes ``Undecodable``, an event of another topic
``Ignored``. The meaning of the fields is documented in containerd's ``api/`` directory; which of them are reliable was
measured on containerd 1.6 and 2.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from bridge.containerd.protos import containers_pb2, cri_pb2, images_pb2, payloads_pb2, process_pb2
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.core.container_metadata import KUBERNETES_NAMESPACE, POD_UID_LABEL, build_metadata, intern, own_pod_labels
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    Event,
    Ignored,
    Image,
    Labels,
    Marker,
    Metadata,
    RecordedExit,
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
from bridge.core.filters import ContainerPredicate, match_all
from bridge.core.label_rules import LabelRules
from bridge.core.time import SECOND

MARKER_TOPIC_PREFIX = "/whalebridge/marker/"
IGNORED_TOPICS = frozenset(
    {
        "/tasks/checkpointed",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/namespaces/create",
        "/namespaces/update",
        "/namespaces/delete",
    }
)

_MAX_SECONDS = (1 << 63) // SECOND - 1  # of the year 2262: the checkpoint holds 64-bit nanoseconds, as Go does
_MAX_MARKER_DIGITS = 18

_Payload = TypeVar("_Payload", bound=Message)


class _Label(Protocol):
    key: bytes
    value: bytes


class _ExitPayload(Protocol):
    """The fields that TaskExit and TaskDelete have in common."""

    container_id: str
    id: str
    pid: int
    exit_status: int

    @property
    def exited_at(self) -> Timestamp: ...


# --- values ---


def text(value: bytes) -> str:
    """Return valid UTF-8 text, as JSON needs: containerd 1.x accepts any bytes in labels and image names."""
    return value.decode("utf-8", "replace")


def nanoseconds(stamp: Timestamp) -> int | None:
    """Return nanoseconds since the epoch; None for a missing or invalid time and for Go's zero time."""
    seconds, nanos = stamp.seconds, stamp.nanos
    if not 0 <= seconds <= _MAX_SECONDS or not 0 <= nanos < SECOND:
        return None
    return seconds * SECOND + nanos or None


def _labels(labels: Iterable[_Label]) -> Labels:
    """Return labels; equal strings are shared, because most of them occur in many containers."""
    return {intern(text(label.key)): intern(text(label.value)) for label in labels}


# --- responses ---


def metadata(
    namespace: str,
    container: containers_pb2.Container,
    rules: LabelRules,
    container_filter: ContainerPredicate = match_all,
) -> Metadata:
    """Return a container's metadata, with the label rules applied to its raw labels."""
    return build_metadata(
        ContainerKey(namespace, container.id),
        _labels(container.labels),
        rules,
        container_filter,
        image=text(container.image),
        runtime=text(container.runtime.name),
        created_at=nanoseconds(container.created_at),
        updated_at=nanoseconds(container.updated_at),
    )


def image(message: images_pb2.Image) -> Image:
    """Return what the name of an image points to."""
    return Image(text(message.target.digest), nanoseconds(message.updated_at))


def task(namespace: str, process: process_pb2.Process) -> Task:
    """Return a task; an unknown status becomes UNKNOWN. containerd always sets ``id``, but not ``container_id``."""
    status = _STATUSES.get(process.status, TaskStatus.UNKNOWN)
    stopped = status is TaskStatus.STOPPED
    return Task(
        key=ContainerKey(namespace, process.container_id or process.id),
        pid=process.pid,
        status=status,
        exit_status=process.exit_status if stopped else None,
        exited_at=nanoseconds(process.exited_at) if stopped else None,
    )


def exited_containers(response: cri_pb2.ListContainersResponse) -> list[ContainerKey]:
    """Return the containers that have exited, in the order of their creation."""
    exited = [each for each in response.containers if each.id and each.state == cri_pb2.CONTAINER_EXITED]
    return [ContainerKey(KUBERNETES_NAMESPACE, each.id) for each in sorted(exited, key=attrgetter("created_at"))]


def pod_labels(response: cri_pb2.ListPodSandboxResponse, rules: LabelRules) -> dict[str, Labels]:
    """Return the own labels of pods by uid, after the label rules. Of several sandboxes of a pod, the newest counts."""
    pods = [_labels(each.labels) for each in sorted(response.items, key=attrgetter("created_at"))]
    return {each[POD_UID_LABEL]: rules.apply(own_pod_labels(each)) for each in pods if POD_UID_LABEL in each}


def recorded_exit(key: ContainerKey, status: cri_pb2.ContainerStatus) -> RecordedExit | None:
    """Return CRI's record of an exit; None if the container has not exited.

    If CRI has found a container without a task, it has made up exit status and time; the reason says so, unless an OOM
    event has replaced it.
    """
    if status.state != cri_pb2.CONTAINER_EXITED:
        return None
    started_at, oom = _cri_time(status.started_at), status.reason == _CRI_OOM_REASON
    if status.reason == _CRI_UNKNOWN_REASON or (oom and status.exit_code == _CRI_UNKNOWN_STATUS):
        return RecordedExit(key, started_at, oom=oom)
    return RecordedExit(key, started_at, status.exit_code & 0xFFFF_FFFF, _cri_time(status.finished_at), oom)


def _cri_time(at: int) -> int | None:
    return at if at > 0 else None


_CRI_OOM_REASON, _CRI_UNKNOWN_REASON, _CRI_UNKNOWN_STATUS = b"OOMKilled", b"Unknown", 255
_STATUSES: dict[int, TaskStatus] = {status.value: status for status in TaskStatus}


# --- events ---


def event(raw: bytes) -> Event:
    """Return the event that an envelope holds."""
    try:
        envelope = Envelope.FromString(raw)
    except DecodeError:
        return Undecodable("", "the envelope is not a protobuf message")
    reader = _EVENT_DECODERS.get(envelope.topic)
    return reader.decode(envelope) if reader else _marker_or_ignored(envelope.topic)


def _marker_or_ignored(topic: str) -> Event:
    nonce, slash, number = topic.removeprefix(MARKER_TOPIC_PREFIX).partition("/")
    if topic.startswith(MARKER_TOPIC_PREFIX) and nonce and slash and _is_number(number):
        return Marker(nonce, int(number))
    return Ignored(topic, known=topic in IGNORED_TOPICS)


def _is_number(digits: str) -> bool:
    return digits.isascii() and digits.isdigit() and len(digits) <= _MAX_MARKER_DIGITS


class _EventDecoder(Generic[_Payload]):
    """Decodes the events of one topic: type of the payload, its container id, and the event to build from it."""

    def __init__(
        self,
        payload: type[_Payload],
        container_id: Callable[[_Payload], str],
        build: Callable[[ContainerKey, int, _Payload], ContainerEvent | Undecodable],
    ) -> None:
        self._parse = payload.FromString
        self._name = payload.DESCRIPTOR.full_name
        self._container_id = container_id
        self._build = build

    def decode(self, envelope: Envelope) -> Event:
        """Return the event, or ``Undecodable`` with the reason."""
        wrapped = envelope.event
        url = wrapped.type_url
        if url != self._name and (name := url.rpartition("/")[2]) != self._name:
            return Undecodable(envelope.topic, f"the payload is {name!r}, not {self._name}")
        try:
            payload = self._parse(wrapped.value)
        except DecodeError:
            return Undecodable(envelope.topic, f"the payload is not a {self._name}")
        namespace, id_ = envelope.namespace, self._container_id(payload)
        if not namespace or not id_:
            return Undecodable(envelope.topic, "the namespace or the container id is missing")
        at = nanoseconds(envelope.timestamp)
        if at is None:
            return Undecodable(envelope.topic, "the timestamp is missing or invalid")
        return self._build(ContainerKey(namespace, id_), at, payload)


def _exec_id(payload: _ExitPayload) -> str:
    """Return "" for the init process, whose id is the container's id in containerd, and "" in older shims."""
    return "" if payload.id == payload.container_id else payload.id


def _container_created(key: ContainerKey, at: int, payload: payloads_pb2.ContainerCreate) -> ContainerEvent:
    return ContainerCreated(key, at, text(payload.image), text(payload.runtime.name))


def _container_updated(key: ContainerKey, at: int, payload: payloads_pb2.ContainerUpdate) -> ContainerEvent:
    return ContainerUpdated(key, at, text(payload.image), _labels(payload.labels))


def _task_exited(key: ContainerKey, at: int, payload: payloads_pb2.TaskExit) -> ContainerEvent:
    return TaskExited(key, at, _exec_id(payload), payload.pid, payload.exit_status, nanoseconds(payload.exited_at))


def _task_deleted(key: ContainerKey, at: int, payload: payloads_pb2.TaskDelete) -> ContainerEvent:
    return TaskDeleted(key, at, _exec_id(payload), payload.pid, payload.exit_status, nanoseconds(payload.exited_at))


def _without_pid(topic: str) -> Undecodable:
    return Undecodable(topic, "the pid is missing")


_container_payload_id: Callable[[Any], str] = attrgetter("id")
_task_payload_id: Callable[[Any], str] = attrgetter("container_id")
_EVENT_DECODERS: dict[str, _EventDecoder[Any]] = {
    "/containers/create": _EventDecoder(payloads_pb2.ContainerCreate, _container_payload_id, _container_created),
    "/containers/update": _EventDecoder(payloads_pb2.ContainerUpdate, _container_payload_id, _container_updated),
    "/containers/delete": _EventDecoder(
        payloads_pb2.ContainerDelete, _container_payload_id, lambda key, at, _: ContainerDeleted(key, at)
    ),
    "/tasks/create": _EventDecoder(
        payloads_pb2.TaskCreate,
        _task_payload_id,
        lambda key, at, payload: TaskCreated(key, at, payload.pid) if payload.pid else _without_pid("/tasks/create"),
    ),
    "/tasks/start": _EventDecoder(
        payloads_pb2.TaskStart,
        _task_payload_id,
        lambda key, at, payload: TaskStarted(key, at, payload.pid) if payload.pid else _without_pid("/tasks/start"),
    ),
    "/tasks/exit": _EventDecoder(payloads_pb2.TaskExit, _task_payload_id, _task_exited),
    "/tasks/delete": _EventDecoder(payloads_pb2.TaskDelete, _task_payload_id, _task_deleted),
    "/tasks/paused": _EventDecoder(payloads_pb2.TaskPaused, _task_payload_id, lambda key, at, _: TaskPaused(key, at)),
    "/tasks/resumed": _EventDecoder(
        payloads_pb2.TaskResumed, _task_payload_id, lambda key, at, _: TaskResumed(key, at)
    ),
    "/tasks/oom": _EventDecoder(payloads_pb2.TaskOOM, _task_payload_id, lambda key, at, _: TaskOOM(key, at)),
}
