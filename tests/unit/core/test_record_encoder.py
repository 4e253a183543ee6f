"""Encoded records: their content and sequence numbers, and that all of them are valid under the schema."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.container_state import ExitInfo, Transition
from bridge.core.containerd_model import ContainerKey, Engine, Labels, Metadata, PodReference
from bridge.core.record_encoder import (
    Gap,
    RecordEncoder,
    SnapshotCoverage,
    build_container,
    heartbeat_record,
    lost_record,
    parse_record,
    parse_rfc3339,
    retirement_record,
    rfc3339,
)
from bridge.core.records import EventRecord, Record, SourcePosition, json_schema
from bridge.core.time import SECOND
from tests.unit.core.factories import WEB

ENGINE = Engine("c79d280c", "2.4.2", "/run/containerd/containerd.sock", 812)
SCHEMA = jsonschema.Draft202012Validator(json_schema(), format_checker=jsonschema.FormatChecker())
EPOCH = 1_795_447_267_123
AT = 1_795_447_268_256_344_486
KNOWN = Metadata(
    WEB, "web-1", "web-shop", "web", "busybox", "runc", AT - SECOND, AT, {"tier": "front"}, image_digest="sha256:1f"
)
GAP = Gap("reconnect", AT - SECOND, AT)
COVERAGE = SnapshotCoverage(["default", "shop"], ["default"], partial=True)


def make_encoder(*, previous: SourcePosition | None = None, max_bytes: int = 512 * 1024) -> RecordEncoder:
    return RecordEncoder("node-1", ENGINE, EPOCH, previous=previous, max_bytes=max_bytes)


def present_transition(
    metadata: Metadata | None = KNOWN, pod_labels: Labels | None = None, key: ContainerKey = WEB
) -> Transition:
    return Transition("present", "snapshot", AT, key, metadata, pod_labels, 5, "5f3c9a1e-5", paused=True)


def exited_transition(exit_info: ExitInfo, metadata: Metadata | None = KNOWN) -> Transition:
    return Transition("exited", "live", AT, WEB, metadata, None, 5, "5f3c9a1e-5", paused=False, exit_info=exit_info)


def decode_valid(record: Record) -> dict[str, Any]:
    """Decode a record; check that it is valid under the schema, and that its routing fields match its content."""
    document: dict[str, Any] = json.loads(record.data)
    SCHEMA.validate(document)
    msgspec.json.decode(record.data, type=EventRecord)  # the schema accepts unknown values of open enumerations
    container = document["container"] or {"namespace": "", "project": ""}
    assert (record.epoch, record.sequence, record.type) == (document["epoch"], document["sequence"], document["type"])
    assert (record.time, record.host, record.engine) == (
        document["timestamp"],
        document["host"],
        document["engine"]["id"],
    )
    assert (record.namespace, record.project) == (container["namespace"], container["project"])
    assert record.subject == (document["id"] or "")
    assert document["project"] == (document["container"] and document["container"]["project"])
    return document


# --- times ---


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (AT, "2026-11-23T15:21:08.256344486Z"),
        (AT - AT % SECOND, "2026-11-23T15:21:08Z"),
        (100_000_000, "1970-01-01T00:00:00.100000000Z"),
        (-1, "1970-01-01T00:00:00Z"),
        (10**30, "9999-12-31T23:59:59.999999999Z"),
        (None, None),
    ],
)
def test_timestamps_are_rfc3339_with_nanoseconds(at: int | None, text: str | None) -> None:
    assert rfc3339(at) == text


@given(st.integers(0, 253_402_300_800 * SECOND - 1))
def test_timestamp_text_equals_instant(at: int) -> None:
    stem, _, fraction = rfc3339(at).removesuffix("Z").partition(".")
    assert int(datetime.fromisoformat(stem).replace(tzinfo=UTC).timestamp()) * SECOND + int(fraction or 0) == at
    assert len(fraction) in (0, 9)
    assert parse_rfc3339(rfc3339(at)) == at


# --- containers ---


def test_snapshot_record_contains_container_fields() -> None:
    document = decode_valid(make_encoder().encode_transition(present_transition()))
    assert document == {
        "version": 1,
        "type": "present",
        "timestamp": "2026-11-23T15:21:08.256344486Z",
        "id": "shop/web",
        "project": "web-shop",
        "origin": "snapshot",
        "container": {
            "id": "web",
            "namespace": "shop",
            "name": "web-1",
            "project": "web-shop",
            "service": "web",
            "pid": 5,
            "incarnation": "5f3c9a1e-5",
            "paused": True,
            "kind": "container",
            "image": "busybox",
            "runtime": "runc",
            "created_at": "2026-11-23T15:21:07.256344486Z",
            "labels": {"tier": "front"},
            "labels_dropped": False,
            "pod": None,
            "image_digest": "sha256:1f",
        },
        "exit": None,
        "snapshot": None,
        "lost": None,
        "engine": {
            "id": "c79d280c",
            "type": "containerd.io",
            "version": "2.4.2",
            "api": "/run/containerd/containerd.sock",
            "pid": 812,
        },
        "host": "node-1",
        "epoch": EPOCH,
        "sequence": 1,
    }


def test_record_without_image_digest_of_earlier_version_is_decoded() -> None:
    document = decode_valid(make_encoder().encode_transition(present_transition()))
    del document["container"]["image_digest"]
    last = parse_record(json.dumps(document).encode())
    SCHEMA.validate(document)
    assert decode_valid(heartbeat_record(last, AT, 1, 10.0))["sequence"] == last.sequence


@pytest.mark.parametrize(("started_at", "at"), [(AT, "2026-11-23T15:21:08.256344486Z"), (None, None)])
def test_started_record_contains_time_of_start_if_known(started_at: int | None, at: str | None) -> None:
    transition = msgspec.structs.replace(present_transition(), type="started", started_at=started_at)
    assert decode_valid(make_encoder().encode_transition(transition))["start"] == {"at": at}


def test_display_id_is_bare_in_default_namespace() -> None:
    key = ContainerKey("default", "web")
    assert (
        decode_valid(
            make_encoder().encode_transition(present_transition(msgspec.structs.replace(KNOWN, key=key), key=key))
        )["id"]
        == "web"
    )


def test_container_without_metadata_is_named_by_id() -> None:
    container = decode_valid(make_encoder().encode_transition(present_transition(None)))["container"]
    assert (container["name"], container["project"], container["labels"]) == ("web", "", None)
    assert (container["created_at"], container["labels_dropped"], container["pod"]) == (None, False, None)


def test_pod_is_encoded_with_sandbox_labels() -> None:
    metadata = msgspec.structs.replace(KNOWN, pod=PodReference("web-1", "prod", "1b2c", "app"))
    pod = {"name": "web-1", "namespace": "prod", "uid": "1b2c", "container": "app"}
    assert decode_valid(make_encoder().encode_transition(present_transition(metadata)))["container"]["pod"] == {
        **pod,
        "labels": None,
    }
    labelled = decode_valid(make_encoder().encode_transition(present_transition(metadata, {"app": "web"})))
    assert labelled["container"]["pod"] == {**pod, "labels": {"app": "web"}}


@pytest.mark.parametrize(
    ("exit_info", "expected"),
    [
        (ExitInfo(137, AT, oom=True), {"status": 137, "at": "2026-11-23T15:21:08.256344486Z", "oom": True}),
        (ExitInfo(0, None, oom=False), {"status": 0, "at": None, "oom": False}),
        (ExitInfo(), {"status": None, "at": None, "oom": None}),
    ],
)
def test_exited_record_contains_known_exit_fields(exit_info: ExitInfo, expected: dict[str, Any]) -> None:
    document = decode_valid(make_encoder().encode_transition(exited_transition(exit_info)))
    assert (document["type"], document["origin"], document["exit"]) == ("exited", "live", expected)


def test_fault_29_record_is_too_large() -> None:
    pod = PodReference("web-1", "prod", "1b2c", "app")
    metadata = msgspec.structs.replace(KNOWN, labels={"big": "x" * 2000}, pod=pod)
    encoder = make_encoder(max_bytes=1500)
    record = encoder.encode_transition(present_transition(metadata, {"app": "web"}))
    container = decode_valid(record)["container"]
    assert (container["labels"], container["labels_dropped"], container["pod"]["labels"]) == (None, True, None)
    assert (container["name"], container["project"]) == ("web-1", "web-shop")
    assert len(record.data) <= 1500
    assert (record.sequence, encoder.sequence) == (1, 1)
    assert decode_valid(make_encoder(max_bytes=10).encode_transition(present_transition(None)))["container"][
        "labels_dropped"
    ]


def test_record_of_exactly_max_bytes_keeps_labels() -> None:
    size = len(make_encoder().encode_transition(present_transition()).data)
    assert decode_valid(make_encoder(max_bytes=size).encode_transition(present_transition()))["container"][
        "labels"
    ] == {"tier": "front"}
    assert (
        decode_valid(make_encoder(max_bytes=size - 1).encode_transition(present_transition()))["container"]["labels"]
        is None
    )


texts = st.text(st.characters(exclude_categories=["Cs"]))  # any valid UTF-8, as in protobuf strings


@given(labels=st.dictionaries(texts, texts), name=texts, project=texts, namespace=texts, status=st.integers())
def test_record_is_valid_for_any_labels(labels: Labels, name: str, project: str, namespace: str, status: int) -> None:
    key = ContainerKey(namespace, "web")
    metadata = msgspec.structs.replace(KNOWN, key=key, name=name, project=project, labels=labels)
    record = make_encoder().encode_transition(
        Transition("exited", "live", AT, key, metadata, labels, 5, "x-5", paused=False, exit_info=ExitInfo(status))
    )
    container = decode_valid(record)["container"]
    assert (container["labels"], container["name"], container["namespace"]) == (labels, name, namespace)
    assert b"\n" not in record.data


# --- sequences and control records ---


def test_sequences_are_gapless_and_start_with_snapshot() -> None:
    encoder = make_encoder(previous=SourcePosition(7, 977))
    assert encoder.position == SourcePosition(7, 977)  # no record of this epoch yet
    records = encoder.encode_snapshot(
        GAP, COVERAGE, [exited_transition(ExitInfo())], [present_transition(), present_transition()], AT
    )
    records += [
        encoder.encode_transition(exited_transition(ExitInfo())),
        *encoder.encode_snapshot(GAP, COVERAGE, [], [], AT),
    ]
    assert [record.sequence for record in records] == list(range(1, 9))
    assert {record.epoch for record in records} == {EPOCH}
    assert [decode_valid(record)["type"] for record in records] == [
        "snapshot_started",
        "exited",
        "present",
        "present",
        "snapshot_completed",
        "exited",
        "snapshot_started",
        "snapshot_completed",
    ]
    assert encoder.position == SourcePosition(EPOCH, 8)


def test_control_records_contain_reason_and_coverage() -> None:
    encoder = make_encoder(previous=SourcePosition(7, 977))
    started, _present, completed = map(
        decode_valid, encoder.encode_snapshot(GAP, COVERAGE, [], [present_transition()], AT)
    )
    assert started["snapshot"] == {
        "id": f"{EPOCH}-1",
        "reason": "reconnect",
        "since": "2026-11-23T15:21:07.256344486Z",
        "until": "2026-11-23T15:21:08.256344486Z",
        "namespaces": ["default", "shop"],
        "failed": ["default"],
        "partial": True,
        "containers": 1,
        "previous": {"epoch": 7, "sequence": 977},
    }
    assert completed["snapshot"] == {**started["snapshot"], "previous": None}
    for control_record in (started, completed):
        assert (control_record["origin"], control_record["timestamp"]) == ("snapshot", "2026-11-23T15:21:08.256344486Z")
        assert [control_record[key] for key in ("id", "project", "container", "exit", "lost")] == [None] * 5


def test_first_control_record_of_epoch_has_previous_position() -> None:
    encoder = make_encoder(previous=SourcePosition(7, 977))
    encoder.encode_snapshot(GAP, COVERAGE, [], [], AT)
    second, _completed = map(decode_valid, encoder.encode_snapshot(Gap("start", None, None), COVERAGE, [], [], AT))
    assert (second["snapshot"]["previous"], second["snapshot"]["id"]) == (None, f"{EPOCH}-2")
    assert (second["snapshot"]["since"], second["snapshot"]["until"]) == (None, None)
    unknown, _completed = map(decode_valid, make_encoder().encode_snapshot(GAP, COVERAGE, [], [], AT))
    assert unknown["snapshot"]["previous"] is None


def test_engine_restart_keeps_source_and_sequence() -> None:
    encoder = make_encoder()
    encoder.set_engine(msgspec.structs.replace(ENGINE, version="2.5.0", pid=900))
    document = decode_valid(encoder.encode_transition(present_transition()))
    assert (document["engine"]["version"], document["engine"]["pid"], document["sequence"]) == ("2.5.0", 900, 1)


def test_same_history_is_encoded_to_same_bytes() -> None:
    first, second = (
        make_encoder().encode_snapshot(
            GAP, COVERAGE, [exited_transition(ExitInfo(1, AT, oom=False))], [present_transition()], AT
        )
        for _ in range(2)
    )
    assert first == second


# --- losses ---


@pytest.mark.parametrize("control_record", [True, False])
def test_loss_record_covers_range_up_to_last_lost_record(control_record: bool) -> None:
    encoder = make_encoder(previous=SourcePosition(7, 977))
    records = encoder.encode_snapshot(
        GAP, COVERAGE, [], [present_transition(), exited_transition(ExitInfo(1, AT, oom=False))], AT
    )
    last = records[0 if control_record else 2]
    record = lost_record(last, 1, "overflow", AT + SECOND)
    document = decode_valid(record)
    assert document["lost"] == {"epoch": EPOCH, "first": 1, "last": last.sequence, "reason": "overflow"}
    assert (document["type"], document["origin"]) == ("lost", "live")
    assert document["timestamp"] == "2026-11-23T15:21:09.256344486Z"
    assert (record.epoch, record.sequence, record.id) == (EPOCH, last.sequence, f"{EPOCH}-{last.sequence}-lost")
    assert [document[key] for key in ("id", "project", "container", "exit", "snapshot")] == [None] * 5
    assert (document["engine"]["id"], document["host"]) == ("c79d280c", "node-1")
    assert encoder.sequence == len(records)


def test_loss_record_can_replace_another_loss_record() -> None:
    lost = lost_record(make_encoder().encode_transition(present_transition()), 1, "rejected", AT)
    assert decode_valid(lost_record(lost, 1, "overflow", AT))["lost"]["reason"] == "overflow"


def test_heartbeat_has_position_of_last_record_and_unique_id() -> None:
    encoder = make_encoder()
    encoder.encode_snapshot(GAP, COVERAGE, [], [], AT)
    last = encoder.encode_transition(present_transition())
    heartbeats = [heartbeat_record(last, AT + SECOND, number, 60.0) for number in (1, 2)]
    assert [each.id for each in heartbeats] == [f"{EPOCH}-3-heartbeat-1", f"{EPOCH}-3-heartbeat-2"]
    document = decode_valid(heartbeats[0])
    assert (document["type"], document["timestamp"]) == ("heartbeat", rfc3339(AT + SECOND))
    assert (document["epoch"], document["sequence"], encoder.sequence) == (EPOCH, 3, 3)
    assert document["engine"]["id"] == ENGINE.id
    assert [
        name for name in ("id", "project", "container", "exit", "snapshot", "lost") if document[name] is not None
    ] == []
    assert document["heartbeat"] == {"interval": 60.0}


def test_retirement_has_position_of_last_record_and_unique_id() -> None:
    encoder = make_encoder()
    last = encoder.encode_transition(present_transition())
    retired = retirement_record(heartbeat_record(last, AT, 1, 60.0), "node deleted", "ops@bastion", AT + SECOND)
    assert (retired.id, retired.subject, retired.heartbeat_number) == (f"{EPOCH}-1-retired", "", 0)
    document = decode_valid(retired)
    assert (document["type"], document["timestamp"]) == ("source_retired", rfc3339(AT + SECOND))
    assert (document["epoch"], document["sequence"], document["engine"]["id"]) == (EPOCH, 1, ENGINE.id)
    assert document["retired"] == {"reason": "node deleted", "by": "ops@bastion"}
    assert "heartbeat" not in document


def test_other_records_lack_keys_of_heartbeats_and_retirements() -> None:
    encoder = make_encoder()
    records = [*encoder.encode_snapshot(GAP, COVERAGE, [], [present_transition()], AT)]
    records.append(lost_record(records[-1], 1, "overflow", AT))
    keys = [set(decode_valid(each)) for each in records]
    assert all({"snapshot", "lost"} <= each and not {"heartbeat", "retired"} & each for each in keys)


def test_all_records_have_attributes_if_there_are_any() -> None:
    attributes = {"cluster": "prod-1", "region": "é"}
    records = {}
    for configured in (attributes, {}, None):
        encoder = RecordEncoder("node-1", ENGINE, EPOCH, attributes=configured)
        encoded = encoder.encode_snapshot(GAP, COVERAGE, [exited_transition(ExitInfo())], [present_transition()], AT)
        last = encoded[1]
        encoded += [lost_record(last, 1, "overflow", AT), heartbeat_record(last, AT, 1, 60.0)]
        records[str(configured)] = [*encoded, retirement_record(last, "gone", "ops", AT)]
    with_attributes, *without = records.values()
    assert without[0] == without[1]
    for one, other in zip(with_attributes, without[0], strict=True):
        assert decode_valid(one) == decode_valid(other) | {"attributes": attributes}
        assert (dict(one.attributes), other.attributes) == (attributes, ())
        assert parse_record(one.data).attributes == one.attributes
    assert not any(b"attributes" in each.data for each in without[0])


@pytest.mark.parametrize("type_", ["created", "deleted", "oom", "renamed"])
def test_additional_event_without_task_has_no_pid_or_incarnation(type_: Any) -> None:
    document = decode_valid(
        make_encoder().encode_transition(Transition(type_, "live", AT, WEB, None, None, 0, "", paused=False))
    )
    assert document["type"] == type_
    assert (document["container"]["pid"], document["container"]["incarnation"], document["exit"]) == (0, "", None)
    assert (document["container"]["labels"], document["container"]["name"]) == (None, WEB.id)


def test_parsed_records_equal_encoded_records() -> None:
    records = make_encoder().encode_snapshot(GAP, COVERAGE, [], [present_transition()], AT)
    assert [parse_record(each.data) for each in records] == records


def test_container_of_transition_is_that_of_its_record() -> None:
    transition = present_transition(pod_labels={"app": "shop"})
    document = decode_valid(make_encoder().encode_transition(transition))
    assert msgspec.to_builtins(build_container(transition)) == document["container"]


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"x":' + b"[" * 100_000])
def test_parse_record_raises_when_bytes_are_not_a_record(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (msgspec chooses the messages)
        parse_record(data)
