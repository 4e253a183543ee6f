"""Decoding: what each message means, and that no bytes whatever make it raise."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from bridge.containerd import decode
from bridge.containerd.protos import containers_pb2, payloads_pb2, process_pb2
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.core.labels import LabelRules
from bridge.core.model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    Event,
    Ignored,
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

KEY = ContainerKey("shop", "web")
AT = 1_795_447_268_256_344_486
RULES = LabelRules(("*",), (), ("*passw*",))
EXITED_AT = AT - 1000
GO_ZERO = {"seconds": -62_135_596_800}


def stamp(nanoseconds: int) -> dict[str, int]:
    return {"seconds": nanoseconds // 10**9, "nanos": nanoseconds % 10**9}


def envelope(topic: str, payload: Message, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "timestamp": stamp(AT),
        "namespace": "shop",
        "topic": topic,
        "event": {"type_url": payload.DESCRIPTOR.full_name, "value": payload.SerializeToString()},
    }
    return Envelope(**fields | changes).SerializeToString()


def exited(**fields: Any) -> bytes:
    told: dict[str, Any] = {
        "container_id": "web",
        "id": "web",
        "pid": 7,
        "exit_status": 137,
        "exited_at": stamp(EXITED_AT),
    }
    return envelope("/tasks/exit", payloads_pb2.TaskExit(**told | fields))


TOLD: list[tuple[str, Message, ContainerEvent]] = [
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
    @pytest.mark.parametrize(("topic", "payload", "event"), TOLD, ids=[topic for topic, *_ in TOLD])
    def test_each_topic_has_its_event(self, topic: str, payload: Message, event: ContainerEvent) -> None:
        assert decode.event(envelope(topic, payload)) == event

    def test_a_type_url_with_a_prefix_is_the_same(self) -> None:
        payload = payloads_pb2.TaskOOM(container_id="web")
        any_message = {
            "type_url": "type.googleapis.com/containerd.events.TaskOOM",
            "value": payload.SerializeToString(),
        }
        assert decode.event(envelope("/tasks/oom", payload, event=any_message)) == TaskOOM(KEY, AT)

    @pytest.mark.parametrize(("id_", "exec_id"), [("web", ""), ("", ""), ("e1", "e1")])
    def test_only_an_id_of_its_own_makes_an_exec(self, id_: str, exec_id: str) -> None:
        event = decode.event(exited(id=id_))
        assert isinstance(event, TaskExited)
        assert event.exec_id == exec_id

    @pytest.mark.parametrize("absent", [None, GO_ZERO, {"seconds": 1 << 50}, {"seconds": 1, "nanos": -1}])
    def test_an_absurd_time_of_exit_is_none(self, absent: dict[str, int] | None) -> None:
        event = decode.event(exited(exited_at=absent))
        assert isinstance(event, TaskExited)
        assert event.exited_at is None

    @pytest.mark.parametrize("absurd", [None, GO_ZERO, {"seconds": -1}, {"seconds": 253_402_300_800}])
    def test_an_event_without_a_time_is_undecodable(self, absurd: dict[str, int] | None) -> None:
        raw = envelope("/tasks/oom", payloads_pb2.TaskOOM(container_id="web"), timestamp=absurd)
        assert decode.event(raw) == Undecodable("/tasks/oom", "its timestamp is none")

    def test_an_event_of_no_container_is_undecodable(self) -> None:
        told = Undecodable("/tasks/oom", "it names no container")
        assert decode.event(envelope("/tasks/oom", payloads_pb2.TaskOOM())) == told
        assert decode.event(envelope("/tasks/oom", payloads_pb2.TaskOOM(container_id="web"), namespace="")) == told

    def test_another_payload_than_the_topics_is_undecodable(self) -> None:
        event = decode.event(envelope("/tasks/oom", payloads_pb2.TaskPaused(container_id="web")))
        reason = "the payload is 'containerd.events.TaskPaused', not containerd.events.TaskOOM"
        assert event == Undecodable("/tasks/oom", reason)

    def test_a_payload_that_is_no_message_is_undecodable(self) -> None:
        any_message = {"type_url": "containerd.events.TaskOOM", "value": b"\x0a\xff"}
        event = decode.event(envelope("/tasks/oom", payloads_pb2.TaskOOM(), event=any_message))
        assert event == Undecodable("/tasks/oom", "the payload is no containerd.events.TaskOOM")

    def test_an_envelope_that_is_no_message_is_undecodable(self) -> None:
        assert decode.event(b"\xff") == Undecodable("", "the envelope is no protobuf message")

    @pytest.mark.parametrize("topic", sorted(decode.UNINTERESTING_TOPICS))
    def test_uninteresting_topics_are_known(self, topic: str) -> None:
        assert decode.event(envelope(topic, payloads_pb2.TaskOOM())) == Ignored(topic, known=True)

    @pytest.mark.parametrize("topic", ["", "/tasks/levitated", "/whalebridge/other", "/images/create"])
    def test_other_topics_are_not(self, topic: str) -> None:
        assert decode.event(envelope(topic, payloads_pb2.TaskOOM())) == Ignored(topic, known=False)

    def test_labels_that_are_not_utf8_are_readable(self) -> None:
        payload = payloads_pb2.ContainerUpdate(id="web", labels=[{"key": b"k\xff", "value": b"\xfe"}])
        event = decode.event(envelope("/containers/update", payload))
        assert event == ContainerUpdated(KEY, AT, "", {"k\ufffd": "\ufffd"})


class TestMarks:
    def test_a_mark_has_nonce_and_number(self) -> None:
        assert decode.event(envelope("/whalebridge/marker/n0nce/17", payloads_pb2.TaskOOM())) == Mark("n0nce", 17)

    @pytest.mark.parametrize("rest", ["", "n", "n/", "/1", "n/x", "n/-1", "n/1/2", "n/٣", "n/" + "9" * 5000])
    def test_what_only_looks_like_one_is_ignored(self, rest: str) -> None:
        topic = f"/whalebridge/marker/{rest}"
        assert decode.event(envelope(topic, payloads_pb2.TaskOOM())) == Ignored(topic, known=False)


class TestRecords:
    def test_a_record_is_described(self) -> None:
        record = containers_pb2.Container(
            id="web",
            labels=[{"key": b"nerdctl/name", "value": b"shop-web"}, {"key": b"my-password", "value": b"hush"}],
            image=b"busybox",
            runtime={"name": b"runc"},
            created_at=stamp(AT),
            updated_at=stamp(AT + 1),
        )
        assert decode.metadata("shop", record, RULES) == Metadata(
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

    def test_an_empty_record_is_described(self) -> None:
        told = decode.metadata("shop", containers_pb2.Container(), RULES)
        assert (told.key, told.created_at, told.labels) == (ContainerKey("shop", ""), None, {})


class TestTasks:
    def test_a_stopped_task_has_an_end(self) -> None:
        process = process_pb2.Process(id="web", pid=7, status="STOPPED", exit_status=3, exited_at=stamp(EXITED_AT))
        assert decode.task("shop", process) == Task(KEY, 7, TaskStatus.STOPPED, 3, EXITED_AT)

    def test_a_running_task_has_none(self) -> None:
        process = process_pb2.Process(container_id="web", id="x", pid=7, status="RUNNING", exited_at=GO_ZERO)
        assert decode.task("shop", process) == Task(KEY, 7, TaskStatus.RUNNING)

    def test_a_status_from_the_future_is_unknown(self) -> None:
        process = process_pb2.Process.FromString(b"\x12\x03web\x20\x63")
        assert decode.task("shop", process) == Task(KEY, 0, TaskStatus.UNKNOWN)


# --- whatever comes ---

stamps = st.none() | st.fixed_dictionaries(
    {"seconds": st.integers(-(2**63), 2**63 - 1), "nanos": st.integers(-(2**31), 2**31 - 1)}
)
topics = st.sampled_from([topic for topic, *_ in TOLD]) | st.text().map(lambda rest: f"/whalebridge/marker/{rest}")
type_urls = st.sampled_from([payload.DESCRIPTOR.full_name for _, payload, _ in TOLD]) | st.text()
payloads = st.sampled_from([payload.SerializeToString() for _, payload, _ in TOLD]) | st.binary()
envelopes = st.builds(
    Envelope,
    timestamp=stamps,
    namespace=st.sampled_from(["", "shop"]),
    topic=topics | st.text(),
    event=st.fixed_dictionaries({"type_url": type_urls, "value": payloads}),
)


def check(event: Event) -> None:
    assert isinstance(event, get_args(Event))
    msgspec.json.encode(event)
    if isinstance(event, get_args(ContainerEvent)):
        assert event.key.namespace
        assert event.key.id
        assert 0 < event.at < 2**63


@given(st.binary())
def test_no_bytes_make_it_raise(raw: bytes) -> None:
    check(decode.event(raw))


@given(envelopes)
def test_no_envelope_makes_it_raise(told: Envelope) -> None:
    check(decode.event(told.SerializeToString()))


labels = st.lists(st.fixed_dictionaries({"key": st.binary(), "value": st.binary()}))


@given(st.builds(containers_pb2.Container, labels=labels, image=st.binary(), created_at=stamps, updated_at=stamps))
def test_no_record_makes_it_raise(record: containers_pb2.Container) -> None:
    msgspec.json.encode(decode.metadata("shop", record, LabelRules.keep_all()))


@given(st.binary())
def test_no_process_makes_it_raise(raw: bytes) -> None:
    try:
        process = process_pb2.Process.FromString(raw)
    except Exception:  # noqa: BLE001 - whether protobuf reads it is not the question
        return
    msgspec.json.encode(decode.task("shop", process))
