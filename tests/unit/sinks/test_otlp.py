"""Test the encoding `otlp` against the messages of the package `opentelemetry-proto`."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs

from bridge.core import records
from bridge.core.record_encoder import heartbeat_record, parse_record, rfc3339
from bridge.core.records import RECORD_TYPES, EventRecord, Record, RecordType
from bridge.core.time import SECOND
from sinks.cloudevents import event_type
from sinks.otlp import decode_bodies, encode_otlp
from tests.sample_records import ENGINE, EPOCH, HOST, TIME, control_record, loss_record, record, retirement

AT = 1_795_447_268_256_344_486  # of TIME
EARLIER, EARLIER_AT = "2026-11-23T15:20:00Z", 1_795_447_200_000_000_000
DIGEST = "sha256:befabf33b909eec85b829639de10bd68e5702745ce82e232acc2ea752e1391fe"
POD = records.Pod("web-0", "shop", "0b6ffa3e-5a3c", "nginx", {"app": "web"})


def parse(message: bytes) -> list[ResourceLogs]:
    return list(ExportLogsServiceRequest.FromString(message).resource_logs)


def log_of(published: Record) -> LogRecord:
    """Encode a record; return its log record, the only one."""
    (resource_logs,) = parse(encode_otlp(published))
    (scope_logs,) = resource_logs.scope_logs
    (log,) = scope_logs.log_records
    return log


def plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return [plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind or "")


def attributes_of(attributes: Any) -> dict[str, Any]:
    """Return attributes by name; check that no name is there twice, as OpenTelemetry requires."""
    items: list[KeyValue] = list(attributes)
    result = {each.key: plain(each.value) for each in items}
    assert len(result) == len(items)
    return result


def change(published: Record, **fields: Any) -> Record:
    """Return a record with other fields; those of the container as a mapping."""
    document = msgspec.json.decode(published.data, type=EventRecord)
    if container := fields.pop("container", None):
        assert document.container
        document = msgspec.structs.replace(document, container=msgspec.structs.replace(document.container, **container))
    return parse_record(msgspec.json.encode(msgspec.structs.replace(document, **fields)))


# --- fields ---


def test_otlp_record_has_resource_scope_and_body() -> None:
    published = record(3, attributes={"cluster": "prod-1"})
    (resource_logs,) = parse(encode_otlp(published))
    assert attributes_of(resource_logs.resource.attributes) == {
        "service.name": "whalebridge",
        "host.name": HOST,
        "whalebridge.engine.id": ENGINE.id,
        "cluster": "prod-1",
    }
    (scope_logs,) = resource_logs.scope_logs
    assert scope_logs.scope.name == "whalebridge"
    assert resource_logs.schema_url == scope_logs.schema_url == "https://opentelemetry.io/schemas/1.44.0"
    assert scope_logs.log_records[0].body.string_value.encode() == published.data


def test_otlp_attributes_of_container_follow_conventions() -> None:
    published = change(record(3, id_="abc", name="web"), container={"image_digest": DIGEST})
    assert attributes_of(log_of(published).attributes) == {
        "log.record.uid": f"//{HOST}/containerd.io/{ENGINE.id}/{EPOCH}-3",
        "container.id": "abc",
        "container.name": "web",
        "container.image.name": "docker.io/library/busybox",
        "container.image.tags": ["latest"],
        "container.image.repo_digests": [f"docker.io/library/busybox@{DIGEST}"],
        "container.runtime.name": "containerd",
        "container.runtime.version": "2.4.2",
        "process.pid": 4711,
        "whalebridge.origin": "live",
        "whalebridge.epoch": EPOCH,
        "whalebridge.sequence": 3,
        "whalebridge.namespace": "shop",
        "whalebridge.incarnation": "5f3c9a1e-4711",
        "whalebridge.project": "web-shop",
        "whalebridge.service": "web",
    }


def test_otlp_attributes_name_pod_and_node() -> None:
    attributes = attributes_of(log_of(change(record(1), container={"pod": POD})).attributes)
    assert {key: value for key, value in attributes.items() if key.startswith("k8s.")} == {
        "k8s.namespace.name": "shop",
        "k8s.pod.name": "web-0",
        "k8s.pod.uid": "0b6ffa3e-5a3c",
        "k8s.container.name": "nginx",
        "k8s.node.name": HOST,
    }


def test_otlp_attributes_omit_unknown_values() -> None:
    unknown = {"image": "", "project": "", "service": "", "pid": 0, "incarnation": "", "pod": None}
    published = change(record(1, "exited"), container=unknown, exit=records.Exit(None, None, None))
    assert attributes_of(log_of(published).attributes).keys() == {
        "log.record.uid",
        "container.id",
        "container.name",
        "container.runtime.name",
        "container.runtime.version",
        "whalebridge.origin",
        "whalebridge.epoch",
        "whalebridge.sequence",
        "whalebridge.namespace",
    }


@pytest.mark.parametrize("status", [0, 137, 2**32 - 1])
@pytest.mark.parametrize("oom", [False, True])
def test_otlp_exit_has_code_and_oom(status: int, oom: bool) -> None:
    attributes = attributes_of(log_of(change(record(1, "exited"), exit=records.Exit(status, None, oom))).attributes)
    assert (attributes["process.exit.code"], attributes["whalebridge.exit.oom"]) == (status, oom)


def test_otlp_snapshot_has_reason() -> None:
    attributes = attributes_of(log_of(control_record(1, "snapshot_started")).attributes)
    assert attributes["whalebridge.snapshot.reason"] == "start"
    assert not [key for key in attributes if key.startswith(("container.", "k8s.", "process."))]


@pytest.mark.parametrize(
    ("image", "name", "tags", "digests"),
    [
        ("docker.io/library/busybox:1.36", "docker.io/library/busybox", ["1.36"], None),
        ("busybox", "busybox", None, None),
        ("registry:5000/shop/web", "registry:5000/shop/web", None, None),
        ("registry:5000/shop/web:v1", "registry:5000/shop/web", ["v1"], None),
        (f"ghcr.io/web@{DIGEST}", "ghcr.io/web", None, [f"ghcr.io/web@{DIGEST}"]),
        (f"ghcr.io/web:v1@{DIGEST}", "ghcr.io/web", ["v1"], [f"ghcr.io/web@{DIGEST}"]),
        (DIGEST, None, None, None),
        (":x", ":x", None, None),
    ],
)
def test_otlp_image_is_split(image: str, name: str | None, tags: object, digests: object) -> None:
    attributes = attributes_of(log_of(change(record(1), container={"image": image})).attributes)
    assert attributes.get("container.image.name") == name
    assert attributes.get("container.image.tags") == tags
    assert attributes.get("container.image.repo_digests") == digests
    assert attributes.get("container.image.id") == (DIGEST if image == DIGEST else None)


# --- event name, severity, time ---


@pytest.mark.parametrize(
    ("published", "severity"),
    [
        (record(1), logs_pb2.SEVERITY_NUMBER_INFO),
        (record(1, "exited"), logs_pb2.SEVERITY_NUMBER_INFO),
        (record(1, "oom"), logs_pb2.SEVERITY_NUMBER_WARN),
        (control_record(1, "snapshot_completed"), logs_pb2.SEVERITY_NUMBER_INFO),
        (loss_record(record(9), 3), logs_pb2.SEVERITY_NUMBER_WARN),
        (heartbeat_record(record(9), AT, 1, 60.0), logs_pb2.SEVERITY_NUMBER_DEBUG),
        (retirement(record(9)), logs_pb2.SEVERITY_NUMBER_INFO),
    ],
)
def test_otlp_event_name_and_severity_follow_type(published: Record, severity: int) -> None:
    log = log_of(published)
    assert (log.event_name, log.severity_number) == (event_type(published.type), severity)
    assert attributes_of(log.attributes)["log.record.uid"].endswith(f"/{published.id}")


@pytest.mark.parametrize(
    ("type_", "fields", "happened", "observed"),
    [
        ("paused", {}, AT, AT),
        ("started", {"start": records.Start(EARLIER)}, EARLIER_AT, AT),
        ("started", {"start": records.Start(None)}, AT, AT),
        ("exited", {"exit": records.Exit(0, EARLIER, None)}, EARLIER_AT, AT),
        ("exited", {"exit": records.Exit(None, None, None)}, AT, AT),
        ("paused", {"timestamp": rfc3339(10**30)}, 0, 0),
        ("paused", {"timestamp": rfc3339(2**64 - 1)}, 2**64 - 1, 2**64 - 1),
        ("paused", {"timestamp": rfc3339(2**64)}, 0, 0),
    ],
)
def test_otlp_times_are_of_event_and_observation(
    type_: RecordType, fields: dict[str, Any], happened: int, observed: int
) -> None:
    assert record(1).time == TIME
    log = log_of(change(record(1, type_), **fields))
    assert (log.time_unix_nano, log.observed_time_unix_nano) == (happened, observed)


# --- any record ---

TEXTS = st.text(max_size=20)
TIMES = st.integers(0, 2 * 2**64).map(rfc3339)
NUMBERS = st.integers(1, 2**63 - 1)
PODS = st.builds(records.Pod, name=TEXTS, namespace=TEXTS, uid=TEXTS, container=TEXTS, labels=st.none())
CONTAINERS = st.builds(
    records.Container,
    id=TEXTS,
    namespace=TEXTS,
    name=TEXTS,
    project=TEXTS,
    service=TEXTS,
    pid=st.integers(0, 2**32 - 1),
    incarnation=TEXTS,
    paused=st.booleans(),
    kind=st.sampled_from(["container", "sandbox"]),
    image=st.text("a:/@5", max_size=9) | TEXTS,
    runtime=TEXTS,
    created_at=TIMES | st.none(),
    labels=st.dictionaries(TEXTS, TEXTS) | st.none(),
    labels_dropped=st.booleans(),
    pod=PODS | st.none(),
    image_digest=TEXTS | st.none(),
)
DOCUMENTS = st.builds(
    EventRecord,
    version=st.just(1),
    type=st.sampled_from([*RECORD_TYPES]),
    timestamp=TIMES,
    id=TEXTS | st.none(),
    project=TEXTS | st.none(),
    origin=st.sampled_from(["live", "inferred", "snapshot"]),
    container=CONTAINERS | st.none(),
    exit=st.builds(
        records.Exit,
        status=st.integers(0, 2**32 - 1) | st.none(),
        at=TIMES | st.none(),
        oom=st.booleans() | st.none(),
    )
    | st.none(),
    snapshot=st.none(),
    lost=st.none(),
    engine=st.builds(
        records.EngineInfo, id=TEXTS, type=st.just("containerd.io"), version=TEXTS, api=TEXTS, pid=st.integers(0, 2**32)
    ),
    host=TEXTS,
    epoch=NUMBERS,
    sequence=NUMBERS,
    start=st.builds(records.Start, at=TIMES | st.none()) | st.none(),
    attributes=st.dictionaries(st.text("abc1", min_size=1), TEXTS, max_size=3) | st.none(),
)


@given(DOCUMENTS)
def test_otlp_encodes_any_record(document: EventRecord) -> None:
    published = parse_record(msgspec.json.encode(document))
    message = encode_otlp(published)
    assert encode_otlp(published) == message
    (resource_logs,) = parse(message)
    log = resource_logs.scope_logs[0].log_records[0]
    assert log.body.string_value.encode() == published.data
    assert decode_bodies(message) == [published.data]
    resource = attributes_of(resource_logs.resource.attributes)
    assert resource.get("host.name", "") == document.host
    assert {name: value for name, value in (document.attributes or {}).items() if value}.items() <= resource.items()
    attributes = attributes_of(log.attributes)
    assert (attributes["whalebridge.epoch"], attributes["whalebridge.sequence"]) == (document.epoch, document.sequence)
    assert attributes.get("process.exit.code") == (document.exit.status if document.exit else None)
    container = document.container
    assert attributes.get("container.id", "") == (container.id if container else "")
    assert attributes.get("k8s.pod.uid", "") == (container.pod.uid if container and container.pod else "")
    assert all(value != "" for value in (*attributes.values(), *resource.values()))


@given(st.lists(st.integers(1, 100), max_size=5))
def test_otlp_messages_can_be_joined(sequences: list[int]) -> None:
    batch = [record(sequence, host=f"node-{sequence % 3}") for sequence in sequences]
    joined = b"".join(map(encode_otlp, batch))
    assert decode_bodies(joined) == [each.data for each in batch]
    hosts = [attributes_of(each.resource.attributes)["host.name"] for each in parse(joined)]
    assert hosts == [each.host for each in batch]


# --- decoding ---


def test_otlp_batch_of_another_program_is_decoded() -> None:
    request = ExportLogsServiceRequest()
    scope_logs = request.resource_logs.add().scope_logs.add(schema_url="other")
    scope_logs.log_records.add(severity_text="INFO").body.string_value = "first"
    scope_logs.log_records.add(trace_id=bytes(16)).body.kvlist_value.values.add(key="a")
    assert decode_bodies(request.SerializeToString()) == [b"first", b""]


@pytest.mark.parametrize("message", [b"", b"\n", b'\n{"version":1}', b"\x0a\xff\xff\xff", SECOND.to_bytes(8), b"{}"])
def test_otlp_decoder_ignores_other_messages(message: bytes) -> None:
    assert decode_bodies(message) == []
