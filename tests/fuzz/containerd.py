"""Fuzz targets for what containerd sends: events, containers and tasks."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from google.protobuf.message import DecodeError, Message

from bridge.consumer import record_decoder
from bridge.containerd import decode, envelope_batches
from bridge.containerd.protos import containers_pb2, payloads_pb2, process_pb2, tasks_pb2
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.core.container_state import Transition
from bridge.core.containerd_model import ContainerKey, Event, Ignored, Marker, Metadata, TaskStatus, Undecodable
from bridge.core.label_rules import REDACTED, LabelRules
from bridge.core.record_encoder import RecordEncoder, rfc3339
from tests.fuzz.engine import Target
from tests.fuzz.mutation import mutate_protobuf
from tests.records import ENGINE

_STAMP = {"seconds": 1_795_447_268, "nanos": 256_344_486}
_PAYLOADS: dict[str, Message] = {
    "/containers/create": payloads_pb2.ContainerCreate(
        id="web", image=b"busybox", runtime={"name": b"io.containerd.runc.v2"}
    ),
    "/containers/update": payloads_pb2.ContainerUpdate(
        id="web", image=b"busybox", labels=[{"key": b"nerdctl/name", "value": b"\xff"}]
    ),
    "/containers/delete": payloads_pb2.ContainerDelete(id="web"),
    "/tasks/create": payloads_pb2.TaskCreate(container_id="web", pid=4711),
    "/tasks/start": payloads_pb2.TaskStart(container_id="web", pid=4711),
    "/tasks/exit": payloads_pb2.TaskExit(container_id="web", id="web", pid=4711, exit_status=137, exited_at=_STAMP),
    "/tasks/delete": payloads_pb2.TaskDelete(container_id="web", id="exec", pid=4711, exited_at=_STAMP),
    "/tasks/paused": payloads_pb2.TaskPaused(container_id="web"),
    "/tasks/resumed": payloads_pb2.TaskResumed(container_id="web"),
    "/tasks/oom": payloads_pb2.TaskOOM(container_id="web"),
    "/tasks/exec-added": payloads_pb2.TaskPaused(container_id="web"),
    f"{decode.MARKER_TOPIC_PREFIX}n0nce/17": payloads_pb2.TaskPaused(),
}
_TOKENS = (
    *(topic.encode() for topic in _PAYLOADS),
    *(payload.DESCRIPTOR.full_name.encode() for payload in _PAYLOADS.values()),
    b"/whalebridge/marker/",
    b"/1",
    b"/\xd9\xa1",  # a digit that is not ASCII
    b"k8s.io",
    b"io.cri-containerd.kind",
    b"sandbox",
    b"io.kubernetes.pod.uid",
    b"nerdctl/name",
    b"com.docker.compose.project",
    b"\xed\xa0\x80",  # a surrogate
    b"\x00",
)


# --- events ---


def _event_samples() -> Sequence[bytes]:
    return [
        Envelope(
            timestamp=_STAMP,
            namespace="default",
            topic=topic,
            event={"type_url": payload.DESCRIPTOR.full_name, "value": payload.SerializeToString()},
        ).SerializeToString()
        for topic, payload in _PAYLOADS.items()
    ]


def _decode_event(data: bytes) -> None:
    event = decode.event(data)
    _check_event(event)
    try:
        envelope = Envelope.FromString(data)
    except DecodeError:
        assert isinstance(event, Undecodable)
        return
    envelope.DiscardUnknownFields()
    assert decode.event(envelope.SerializeToString()) == event, "unknown fields changed the event"


def _check_event(event: Event) -> None:
    assert msgspec.msgpack.encode(event)  # fails for text that is not UTF-8
    match event:
        case Undecodable():
            assert event.reason
        case Ignored():
            assert event.known == (event.topic in decode.IGNORED_TOPICS)
        case Marker():
            assert event.nonce
            assert event.number >= 0
        case _:
            assert event.key.namespace
            assert event.key.id
            assert rfc3339(event.at).endswith("Z")
            exited_at = getattr(event, "exited_at", None)
            assert exited_at is None or rfc3339(exited_at) > "1970"


# --- batches of events ---


def _batch_samples() -> Sequence[bytes]:
    events = _event_samples()
    return list(envelope_batches.batch(events)) + list(envelope_batches.batch(events[:2])) + [b""]


def _split_batch(data: bytes) -> None:
    try:
        envelopes = envelope_batches.unbatch(data)
    except DecodeError:
        return
    messages = list(envelope_batches.batch(envelopes))
    assert [each for message in messages for each in envelope_batches.unbatch(message)] == list(envelopes)
    for envelope in envelopes:
        _check_event(decode.event(envelope))


# --- containers ---

_LABELS = {
    b"io.cri-containerd.kind": b"sandbox",
    b"io.kubernetes.pod.name": b"web",
    b"io.kubernetes.pod.namespace": b"shop",
    b"io.kubernetes.pod.uid": b"7d1",
    b"io.kubernetes.container.name": b"nginx",
    b"nerdctl/name": b"web-1",
    b"com.docker.compose.project": b"shop",
    b"com.docker.compose.service": b"\xff\xfe",
    b"secret": b"hidden",
}
_RULES = LabelRules(include=("*",), exclude=("internal.*",), redact=("*secret*",))


def _container_samples() -> Sequence[bytes]:
    container = containers_pb2.Container(
        id="web",
        labels=[{"key": key, "value": value} for key, value in _LABELS.items()],
        image=b"busybox",
        runtime={"name": b"io.containerd.runc.v2"},
        created_at=_STAMP,
        updated_at={"seconds": -62_135_596_800},
    )
    return [
        containers_pb2.ListContainersResponse(containers=[container] * count).SerializeToString() for count in (1, 2)
    ]


def _decode_containers(data: bytes) -> None:
    try:
        containers = containers_pb2.ListContainersResponse.FromString(data).containers
    except DecodeError:
        return
    for container in containers:
        metadata = decode.metadata("k8s.io", container, _RULES)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(metadata), type=Metadata) == metadata
        labels = metadata.labels or {}
        assert all("secret" not in key.lower() or value == REDACTED for key, value in labels.items())
        _check_record(metadata)


def _check_record(metadata: Metadata) -> None:
    """Check that a consumer reads what the bridge knows about a container."""
    transition = Transition(
        "started", "live", 1, metadata.key, metadata, metadata.pod_labels, 1, "5f3c9a1e-1", paused=False
    )
    record = RecordEncoder("node-1", ENGINE, 1).encode_transition(transition)
    assert b"\n" not in record.data
    decoded, document = record_decoder.decode(record.data)
    assert document is record.data
    container = decoded.container
    assert container is not None
    assert (container.id, container.name, container.labels) == (metadata.key.id, metadata.name, metadata.labels)
    assert (container.image, container.created_at) == (metadata.image, rfc3339(metadata.created_at))


# --- tasks ---


def _task_samples() -> Sequence[bytes]:
    tasks = [
        process_pb2.Process(id=f"c{status}", pid=4711, status=status, exit_status=1, exited_at=_STAMP)  # type: ignore[arg-type] # protobuf accepts numbers
        for status in range(7)
    ]
    return [tasks_pb2.ListTasksResponse(tasks=tasks[:count]).SerializeToString() for count in (3, 7)]


def _decode_tasks(data: bytes) -> None:
    try:
        processes = tasks_pb2.ListTasksResponse.FromString(data).tasks
    except DecodeError:
        return
    for process in processes:
        task = decode.task("default", process)
        assert task.key == ContainerKey("default", process.container_id or process.id)
        assert task.status in TaskStatus
        assert (task.exit_status is not None) == (task.status is TaskStatus.STOPPED)
        assert task.exited_at is None or (task.status is TaskStatus.STOPPED and rfc3339(task.exited_at) > "1970")
        assert msgspec.msgpack.encode(task)


TARGETS = {
    "events": Target(_decode_event, _event_samples, _TOKENS, mutate_protobuf),
    "event-batches": Target(_split_batch, _batch_samples, _TOKENS, mutate_protobuf),
    "containers": Target(_decode_containers, _container_samples, _TOKENS, mutate_protobuf),
    "tasks": Target(_decode_tasks, _task_samples, _TOKENS, mutate_protobuf),
}
