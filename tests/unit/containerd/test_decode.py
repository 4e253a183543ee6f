"""Test the decoding of each message type, and that decoding never raises for any bytes."""

from __future__ import annotations

import tracemalloc
from typing import Any, get_args

import msgspec
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from bridge.containerd import decode
from bridge.containerd.protos import containers_pb2, payloads_pb2, process_pb2
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    Event,
    Ignored,
    Marker,
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
from bridge.core.label_rules import LabelRules
from bridge.core.time import SECOND
from tests.golden import Golden

KEY = ContainerKey("shop", "web")
AT = 1_795_447_268_256_344_486
RULES = LabelRules(("*",), (), ("*passw*",))
EXITED_AT = AT - 1000
GO_ZERO = {"seconds": -62_135_596_800}


def stamp(nanoseconds: int) -> dict[str, int]:
    return {"seconds": nanoseconds // SECOND, "nanos": nanoseconds % SECOND}


def envelope(topic: str, payload: Message, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "timestamp": stamp(AT),
        "namespace": "shop",
        "topic": topic,
        "event": {"type_url": payload.DESCRIPTOR.full_name, "value": payload.SerializeToString()},
    }
    return Envelope(**fields | changes).SerializeToString()


def undecodable(raw: bytes, golden: Golden, case: str, *, topic: str = "/tasks/oom") -> str:
    """Check that the event is undecodable, and return the reason."""
    event = decode.event(raw)
    assert isinstance(event, Undecodable)
    assert event.topic == topic
    golden.entry("undecodable_events", case, event.reason)
    return event.reason


def exited(**fields: Any) -> bytes:
    defaults: dict[str, Any] = {
        "container_id": "web",
        "id": "web",
        "pid": 7,
        "exit_status": 137,
        "exited_at": stamp(EXITED_AT),
    }
    return envelope("/tasks/exit", payloads_pb2.TaskExit(**defaults | fields))


TOPIC_CASES: list[tuple[str, Message, ContainerEvent]] = [
    (
        "/containers/create",
        payloads_pb2.ContainerCreate(id="web", image=b"busybox", runtime={"name": b"runc"}),
        ContainerCreated(KEY, AT, "busybox", "runc"),
    ),
    (
        "/containers/update",
        payloads_pb2.ContainerUpdate(id="web", image=b"busybox", labels=[{"key": b"a", "value": b"b"}]),
        ContainerUpdated(KEY, AT, "busybox", {"a": "b"}),
    ),
    ("/containers/delete", payloads_pb2.ContainerDelete(id="web"), ContainerDeleted(KEY, AT)),
    ("/tasks/create", payloads_pb2.TaskCreate(container_id="web", pid=7), TaskCreated(KEY, AT, 7)),
    ("/tasks/start", payloads_pb2.TaskStart(container_id="web", pid=7), TaskStarted(KEY, AT, 7)),
    (
        "/tasks/exit",
        payloads_pb2.TaskExit(container_id="web", id="web", pid=7, exit_status=137, exited_at=stamp(EXITED_AT)),
        TaskExited(KEY, AT, "", 7, 137, EXITED_AT),
    ),
    (
        "/tasks/delete",
        payloads_pb2.TaskDelete(container_id="web", id="e1", pid=8, exit_status=1, exited_at=stamp(EXITED_AT)),
        TaskDeleted(KEY, AT, "e1", 8, 1, EXITED_AT),
    ),
    ("/tasks/paused", payloads_pb2.TaskPaused(container_id="web"), TaskPaused(KEY, AT)),
    ("/tasks/resumed", payloads_pb2.TaskResumed(container_id="web"), TaskResumed(KEY, AT)),
    ("/tasks/oom", payloads_pb2.TaskOOM(container_id="web"), TaskOOM(KEY, AT)),
]


class TestEvents:
    @pytest.mark.parametrize(("topic", "payload", "event"), TOPIC_CASES, ids=[topic for topic, *_ in TOPIC_CASES])
    def test_event_is_decoded_by_topic(self, topic: str, payload: Message, event: ContainerEvent) -> None:
        assert decode.event(envelope(topic, payload)) == event

    def test_event_is_decoded_when_type_url_has_prefix(self) -> None:
        payload = payloads_pb2.TaskOOM(container_id="web")
        any_message = {
            "type_url": "type.googleapis.com/containerd.events.TaskOOM",
            "value": payload.SerializeToString(),
        }
        assert decode.event(envelope("/tasks/oom", payload, event=any_message)) == TaskOOM(KEY, AT)

    @pytest.mark.parametrize(("id_", "exec_id"), [("web", ""), ("", ""), ("e1", "e1")])
    def test_exec_id_is_empty_unless_different_from_container_id(self, id_: str, exec_id: str) -> None:
        event = decode.event(exited(id=id_))
        assert isinstance(event, TaskExited)
        assert event.exec_id == exec_id

    @pytest.mark.parametrize(
        "invalid", [None, GO_ZERO, {"seconds": 1 << 50}, {"seconds": 1 << 34}, {"seconds": 1, "nanos": -1}]
    )
    def test_exit_time_is_none_when_invalid(self, invalid: dict[str, int] | None) -> None:
        event = decode.event(exited(exited_at=invalid))
        assert isinstance(event, TaskExited)
        assert event.exited_at is None

    def test_latest_timestamp_has_64_bits_of_nanoseconds(self) -> None:
        raw = envelope("/tasks/oom", payloads_pb2.TaskOOM(container_id="web"), timestamp={"seconds": 9_223_372_035})
        event = decode.event(raw)
        assert isinstance(event, TaskOOM)
        assert msgspec.msgpack.encode(event)  # as in the checkpoint

    @pytest.mark.parametrize("invalid", [None, GO_ZERO, {"seconds": -1}, {"seconds": 9_223_372_036}])
    def test_event_is_undecodable_when_timestamp_is_invalid(
        self, invalid: dict[str, int] | None, golden: Golden
    ) -> None:
        raw = envelope("/tasks/oom", payloads_pb2.TaskOOM(container_id="web"), timestamp=invalid)
        undecodable(raw, golden, "invalid timestamp")

    def test_event_is_undecodable_when_container_is_missing(self, golden: Golden) -> None:
        undecodable(envelope("/tasks/oom", payloads_pb2.TaskOOM()), golden, "no container")
        without_namespace = envelope("/tasks/oom", payloads_pb2.TaskOOM(container_id="web"), namespace="")
        undecodable(without_namespace, golden, "no container")

    @pytest.mark.parametrize("topic", ["/tasks/create", "/tasks/start"])
    def test_event_is_undecodable_when_pid_is_missing(self, topic: str, golden: Golden) -> None:
        payload = {"/tasks/create": payloads_pb2.TaskCreate, "/tasks/start": payloads_pb2.TaskStart}[topic]
        undecodable(envelope(topic, payload(container_id="web")), golden, "no pid", topic=topic)

    def test_event_is_undecodable_when_payload_type_is_wrong(self, golden: Golden) -> None:
        raw = envelope("/tasks/oom", payloads_pb2.TaskPaused(container_id="web"))
        reason = undecodable(raw, golden, "unexpected payload type")
        assert "containerd.events.TaskPaused" in reason
        assert "containerd.events.TaskOOM" in reason

    def test_event_is_undecodable_when_payload_is_invalid(self, golden: Golden) -> None:
        any_message = {"type_url": "containerd.events.TaskOOM", "value": b"\x0a\xff"}
        raw = envelope("/tasks/oom", payloads_pb2.TaskOOM(), event=any_message)
        assert "containerd.events.TaskOOM" in undecodable(raw, golden, "invalid payload")

    def test_event_is_undecodable_when_envelope_is_invalid(self, golden: Golden) -> None:
        undecodable(b"\xff", golden, "invalid envelope", topic="")

    @pytest.mark.parametrize("topic", sorted(decode.IGNORED_TOPICS))
    def test_ignored_topic_is_known(self, topic: str) -> None:
        assert decode.event(envelope(topic, payloads_pb2.TaskOOM())) == Ignored(topic, known=True)

    @pytest.mark.parametrize("topic", ["", "/tasks/levitated", "/whalebridge/other", "/images/create"])
    def test_unexpected_topic_is_unknown(self, topic: str) -> None:
        assert decode.event(envelope(topic, payloads_pb2.TaskOOM())) == Ignored(topic, known=False)

    def test_labels_are_decoded_when_not_utf8(self) -> None:
        payload = payloads_pb2.ContainerUpdate(id="web", labels=[{"key": b"k\xff", "value": b"\xfe"}])
        event = decode.event(envelope("/containers/update", payload))
        assert event == ContainerUpdated(KEY, AT, "", {"k\ufffd": "\ufffd"})


class TestMarkers:
    def test_marker_has_nonce_and_number(self) -> None:
        assert decode.event(envelope("/whalebridge/marker/n0nce/17", payloads_pb2.TaskOOM())) == Marker("n0nce", 17)

    @pytest.mark.parametrize("rest", ["", "n", "n/", "/1", "n/x", "n/-1", "n/1/2", "n/٣", "n/" + "9" * 5000])
    def test_marker_is_ignored_when_malformed(self, rest: str) -> None:
        topic = f"/whalebridge/marker/{rest}"
        assert decode.event(envelope(topic, payloads_pb2.TaskOOM())) == Ignored(topic, known=False)


class TestMetadata:
    def test_metadata_is_decoded_from_container(self) -> None:
        container = containers_pb2.Container(
            id="web",
            labels=[{"key": b"nerdctl/name", "value": b"shop-web"}, {"key": b"my-password", "value": b"hush"}],
            image=b"busybox",
            runtime={"name": b"runc"},
            created_at=stamp(AT),
            updated_at=stamp(AT + 1),
        )
        assert decode.metadata("shop", container, RULES) == Metadata(
            key=KEY,
            name="shop-web",
            project="",
            service="",
            image="busybox",
            runtime="runc",
            created_at=AT,
            updated_at=AT + 1,
            labels={"nerdctl/name": "shop-web", "my-password": "[redacted]"},
        )

    def test_metadata_is_decoded_from_empty_container(self) -> None:
        metadata = decode.metadata("shop", containers_pb2.Container(), RULES)
        assert (metadata.key, metadata.created_at, metadata.labels) == (ContainerKey("shop", ""), None, {})


class TestTasks:
    def test_stopped_task_has_exit_status(self) -> None:
        process = process_pb2.Process(id="web", pid=7, status="STOPPED", exit_status=3, exited_at=stamp(EXITED_AT))
        assert decode.task("shop", process) == Task(KEY, 7, TaskStatus.STOPPED, 3, EXITED_AT)

    def test_running_task_has_no_exit_status(self) -> None:
        process = process_pb2.Process(container_id="web", id="x", pid=7, status="RUNNING", exited_at=GO_ZERO)
        assert decode.task("shop", process) == Task(KEY, 7, TaskStatus.RUNNING)

    def test_task_status_is_unknown_when_not_defined(self) -> None:
        process = process_pb2.Process.FromString(b"\x12\x03web\x20\x63")
        assert decode.task("shop", process) == Task(KEY, 0, TaskStatus.UNKNOWN)


# --- arbitrary input ---

stamps = st.none() | st.fixed_dictionaries(
    {"seconds": st.integers(-(2**63), 2**63 - 1), "nanos": st.integers(-(2**31), 2**31 - 1)}
)
topics = st.sampled_from([topic for topic, *_ in TOPIC_CASES]) | st.text().map(
    lambda rest: f"/whalebridge/marker/{rest}"
)
type_urls = st.sampled_from([payload.DESCRIPTOR.full_name for _, payload, _ in TOPIC_CASES]) | st.text()
payloads = st.sampled_from([payload.SerializeToString() for _, payload, _ in TOPIC_CASES]) | st.binary()
envelopes = st.builds(
    Envelope,
    timestamp=stamps,
    namespace=st.sampled_from(["", "shop"]),
    topic=topics | st.text(),
    event=st.fixed_dictionaries({"type_url": type_urls, "value": payloads}),
)


def test_containers_share_equal_strings() -> None:
    labels = {
        "io.cri-containerd.kind": "container",
        "io.kubernetes.pod.name": "web-1",
        "io.kubernetes.pod.namespace": "shop",
        "io.kubernetes.pod.uid": "1b2c",
        "app": "web",
    }
    raw = container(labels, image="nginx").SerializeToString()

    def strings() -> list[str]:
        decoded = decode.metadata("".join("k8s.io"), containers_pb2.Container.FromString(raw), LabelRules.keep_all())
        assert decoded.labels is not None
        assert decoded.pod is not None
        names, values = decoded.labels.keys(), decoded.labels.values()
        return [decoded.key.namespace, decoded.image, decoded.runtime, decoded.pod.uid, *names, *values]

    first, second = strings(), strings()
    assert len(first) == 14
    assert all(one is other for one, other in zip(first, second, strict=True))


def test_strings_of_removed_containers_are_freed() -> None:
    """CPython 3.12.0 to 3.12.6 would keep interned ones."""
    size, count = 100_000, 100
    tracemalloc.start()
    try:
        for number in range(count):
            message = container({"note": f"{number:{size}}"}, image=f"{number:{size}}")
            decode.metadata("shop", message, LabelRules.keep_all())
        retained, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak > 2 * size
    assert retained < count * size / 2


def container(labels: dict[str, str], *, image: str) -> containers_pb2.Container:
    return containers_pb2.Container(
        id="5d2c",
        labels=[{"key": key.encode(), "value": value.encode()} for key, value in labels.items()],
        image=image.encode(),
        runtime={"name": b"io.containerd.runc.v2"},
    )


def check(event: Event) -> None:
    assert isinstance(event, get_args(Event))
    msgspec.json.encode(event)
    if isinstance(event, get_args(ContainerEvent)):
        assert event.key.namespace
        assert event.key.id
        assert 0 < event.at < 2**63


@given(st.binary())
def test_event_decoding_never_raises_for_any_bytes(raw: bytes) -> None:
    check(decode.event(raw))


@given(envelopes)
def test_event_decoding_never_raises_for_any_envelope(envelope: Envelope) -> None:
    check(decode.event(envelope.SerializeToString()))


labels = st.lists(st.fixed_dictionaries({"key": st.binary(), "value": st.binary()}))


@given(st.builds(containers_pb2.Container, labels=labels, image=st.binary(), created_at=stamps, updated_at=stamps))
def test_metadata_decoding_never_raises(container: containers_pb2.Container) -> None:
    msgspec.json.encode(decode.metadata("shop", container, LabelRules.keep_all()))


@given(st.binary())
def test_task_decoding_never_raises(raw: bytes) -> None:
    try:
        process = process_pb2.Process.FromString(raw)
    except Exception:  # noqa: BLE001 - bytes that protobuf rejects are not of interest
        return
    msgspec.json.encode(decode.task("shop", process))
