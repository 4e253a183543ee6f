"""Records as bytes: what is in them, their numbers, and that the schema fits whatever is told."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.encode import Coverage, Gap, Ledger, heartbeat, lost_record, rfc3339
from bridge.core.events import Previous, Record, json_schema
from bridge.core.lives import Ending, Transition
from bridge.core.model import ContainerKey, Engine, Labels, Metadata, PodReference
from tests.unit.core.made import SECOND, WEB

ENGINE = Engine("c79d280c", "2.4.2", "/run/containerd/containerd.sock", 812)
SCHEMA = jsonschema.Draft202012Validator(json_schema())
EPOCH = 1_795_447_267_123
AT = 1_795_447_268_256_344_486
KNOWN = Metadata(
    WEB, "web-1", "web-shop", "web", "busybox", "runc", AT - SECOND, AT, {"tier": "front"}, pod=None, pod_labels=None
)
GAP = Gap("reconnect", AT - SECOND, AT)
COVERAGE = Coverage(["default", "shop"], ["default"], partial=True)


def a_ledger(*, previous: Previous | None = None, max_bytes: int = 512 * 1024) -> Ledger:
    return Ledger("node-1", ENGINE, EPOCH, previous=previous, max_bytes=max_bytes)


def a_row(metadata: Metadata | None = KNOWN, pod_labels: Labels | None = None, key: ContainerKey = WEB) -> Transition:
    return Transition("present", "snapshot", AT, key, metadata, pod_labels, 5, "5f3c9a1e-5", paused=True)


def an_exit(ending: Ending, metadata: Metadata | None = KNOWN) -> Transition:
    return Transition("exited", "live", AT, WEB, metadata, None, 5, "5f3c9a1e-5", paused=False, ending=ending)


def read(record: Record) -> dict[str, Any]:
    """Decode a record as any consumer would; it fits the schema, and what routes it is what it says."""
    document: dict[str, Any] = json.loads(record.data)
    SCHEMA.validate(document)
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
def test_times_are_rfc_3339_with_all_their_nanoseconds(at: int | None, text: str | None) -> None:
    assert rfc3339(at) == text


@given(st.integers(0, 253_402_300_800 * SECOND - 1))
def test_times_say_the_moment_they_mean(at: int) -> None:
    stem, _, fraction = rfc3339(at).removesuffix("Z").partition(".")
    assert int(datetime.fromisoformat(stem).replace(tzinfo=UTC).timestamp()) * SECOND + int(fraction or 0) == at
    assert len(fraction) in (0, 9)


# --- containers ---


def test_a_row_says_who_the_container_is() -> None:
    document = read(a_ledger().transition(a_row()))
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


def test_the_display_id_in_namespace_default_is_the_bare_id() -> None:
    key = ContainerKey("default", "web")
    assert read(a_ledger().transition(a_row(msgspec.structs.replace(KNOWN, key=key), key=key)))["id"] == "web"


def test_a_container_without_a_record_is_named_by_its_id() -> None:
    container = read(a_ledger().transition(a_row(None)))["container"]
    assert (container["name"], container["project"], container["labels"]) == ("web", "", None)
    assert (container["created_at"], container["labels_dropped"], container["pod"]) == (None, False, None)


def test_a_pod_is_told_with_its_sandboxs_labels() -> None:
    metadata = msgspec.structs.replace(KNOWN, pod=PodReference("web-1", "prod", "1b2c", "app"))
    pod = {"name": "web-1", "namespace": "prod", "uid": "1b2c", "container": "app"}
    assert read(a_ledger().transition(a_row(metadata)))["container"]["pod"] == {**pod, "labels": None}
    labelled = read(a_ledger().transition(a_row(metadata, {"app": "web"})))
    assert labelled["container"]["pod"] == {**pod, "labels": {"app": "web"}}


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (Ending(137, AT, oom=True), {"status": 137, "at": "2026-11-23T15:21:08.256344486Z", "oom": True}),
        (Ending(0, None, oom=False), {"status": 0, "at": None, "oom": False}),
        (Ending(), {"status": None, "at": None, "oom": None}),
    ],
)
def test_an_exit_says_what_is_known_of_it(ending: Ending, expected: dict[str, Any]) -> None:
    document = read(a_ledger().transition(an_exit(ending)))
    assert (document["type"], document["origin"], document["exit"]) == ("exited", "live", expected)


def test_a_record_that_is_too_large_loses_its_labels_and_says_so() -> None:
    pod = PodReference("web-1", "prod", "1b2c", "app")
    metadata = msgspec.structs.replace(KNOWN, labels={"big": "x" * 2000}, pod=pod)
    ledger = a_ledger(max_bytes=1500)
    record = ledger.transition(a_row(metadata, {"app": "web"}))
    container = read(record)["container"]
    assert (container["labels"], container["labels_dropped"], container["pod"]["labels"]) == (None, True, None)
    assert (container["name"], container["project"]) == ("web-1", "web-shop")
    assert len(record.data) <= 1500
    assert (record.sequence, ledger.sequence) == (1, 1)
    assert read(a_ledger(max_bytes=10).transition(a_row(None)))["container"]["labels_dropped"]


def test_a_record_that_just_fits_keeps_its_labels() -> None:
    size = len(a_ledger().transition(a_row()).data)
    assert read(a_ledger(max_bytes=size).transition(a_row()))["container"]["labels"] == {"tier": "front"}
    assert read(a_ledger(max_bytes=size - 1).transition(a_row()))["container"]["labels"] is None


texts = st.text(st.characters(exclude_categories=["Cs"]))  # as protobuf lets through: any valid UTF-8


@given(labels=st.dictionaries(texts, texts), name=texts, project=texts, namespace=texts, ending=st.integers())
def test_whatever_labels_say_a_record_is_valid_and_keeps_it(
    labels: Labels, name: str, project: str, namespace: str, ending: int
) -> None:
    key = ContainerKey(namespace, "web")
    metadata = msgspec.structs.replace(KNOWN, key=key, name=name, project=project, labels=labels)
    record = a_ledger().transition(
        Transition("exited", "live", AT, key, metadata, labels, 5, "x-5", paused=False, ending=Ending(ending))
    )
    container = read(record)["container"]
    assert (container["labels"], container["name"], container["namespace"]) == (labels, name, namespace)
    assert b"\n" not in record.data


# --- numbers, frames ---


def test_sequences_are_gapless_from_1_and_start_with_a_snapshot() -> None:
    ledger = a_ledger(previous=Previous(7, 977))
    assert ledger.position == Previous(7, 977)  # no record of this epoch yet
    records = ledger.snapshot(GAP, COVERAGE, [an_exit(Ending())], [a_row(), a_row()], AT)
    records += [ledger.transition(an_exit(Ending())), *ledger.snapshot(GAP, COVERAGE, [], [], AT)]
    assert [record.sequence for record in records] == list(range(1, 9))
    assert {record.epoch for record in records} == {EPOCH}
    assert [read(record)["type"] for record in records] == [
        "snapshot_started",
        "exited",
        "present",
        "present",
        "snapshot_completed",
        "exited",
        "snapshot_started",
        "snapshot_completed",
    ]
    assert ledger.position == Previous(EPOCH, 8)


def test_frames_say_why_and_what_a_snapshot_covers() -> None:
    ledger = a_ledger(previous=Previous(7, 977))
    started, _row, completed = map(read, ledger.snapshot(GAP, COVERAGE, [], [a_row()], AT))
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
    for frame in (started, completed):
        assert (frame["origin"], frame["timestamp"]) == ("snapshot", "2026-11-23T15:21:08.256344486Z")
        assert [frame[key] for key in ("id", "project", "container", "exit", "lost")] == [None] * 5


def test_only_the_first_frame_of_an_epoch_names_the_epoch_before() -> None:
    ledger = a_ledger(previous=Previous(7, 977))
    ledger.snapshot(GAP, COVERAGE, [], [], AT)
    again, _completed = map(read, ledger.snapshot(Gap("start", None, None), COVERAGE, [], [], AT))
    assert (again["snapshot"]["previous"], again["snapshot"]["id"]) == (None, f"{EPOCH}-2")
    assert (again["snapshot"]["since"], again["snapshot"]["until"]) == (None, None)
    unknown, _completed = map(read, a_ledger().snapshot(GAP, COVERAGE, [], [], AT))
    assert unknown["snapshot"]["previous"] is None


def test_an_engine_that_was_restarted_is_the_same_source() -> None:
    ledger = a_ledger()
    ledger.set_engine(msgspec.structs.replace(ENGINE, version="2.5.0", pid=900))
    document = read(ledger.transition(a_row()))
    assert (document["engine"]["version"], document["engine"]["pid"], document["sequence"]) == ("2.5.0", 900, 1)


def test_the_same_history_gives_the_same_bytes() -> None:
    first, second = (
        a_ledger().snapshot(GAP, COVERAGE, [an_exit(Ending(1, AT, oom=False))], [a_row()], AT) for _ in range(2)
    )
    assert first == second


# --- losses ---


@pytest.mark.parametrize("frame", [True, False])
def test_a_lost_record_stands_for_those_up_to_the_last_one_lost(frame: bool) -> None:
    ledger = a_ledger(previous=Previous(7, 977))
    records = ledger.snapshot(GAP, COVERAGE, [], [a_row(), an_exit(Ending(1, AT, oom=False))], AT)
    last = records[0 if frame else 2]
    record = lost_record(last, 1, "overflow", AT + SECOND)
    document = read(record)
    assert document["lost"] == {"epoch": EPOCH, "first": 1, "last": last.sequence, "reason": "overflow"}
    assert (document["type"], document["origin"]) == ("lost", "live")
    assert document["timestamp"] == "2026-11-23T15:21:09.256344486Z"
    assert (record.epoch, record.sequence, record.id) == (EPOCH, last.sequence, f"{EPOCH}-{last.sequence}-lost")
    assert [document[key] for key in ("id", "project", "container", "exit", "snapshot")] == [None] * 5
    assert (document["engine"]["id"], document["host"]) == ("c79d280c", "node-1")
    assert ledger.sequence == len(records)


def test_a_lost_record_can_be_lost_itself() -> None:
    lost = lost_record(a_ledger().transition(a_row()), 1, "rejected", AT)
    assert read(lost_record(lost, 1, "overflow", AT))["lost"]["reason"] == "overflow"


def test_a_heartbeat_has_the_position_of_the_last_record_and_an_id_of_its_own() -> None:
    ledger = a_ledger()
    ledger.snapshot(GAP, COVERAGE, [], [], AT)
    last = ledger.transition(a_row())
    beats = [heartbeat(last, AT + SECOND, number) for number in (1, 2)]
    assert [each.id for each in beats] == [f"{EPOCH}-3-heartbeat-1", f"{EPOCH}-3-heartbeat-2"]
    document = read(beats[0])
    assert (document["type"], document["timestamp"]) == ("heartbeat", rfc3339(AT + SECOND))
    assert (document["epoch"], document["sequence"], ledger.sequence) == (EPOCH, 3, 3)
    assert document["engine"]["id"] == ENGINE.id
    assert [
        name for name in ("id", "project", "container", "exit", "snapshot", "lost") if document[name] is not None
    ] == []


@pytest.mark.parametrize("type_", ["created", "deleted", "oom", "renamed"])
def test_an_extra_without_a_life_names_none(type_: Any) -> None:
    document = read(a_ledger().transition(Transition(type_, "live", AT, WEB, None, None, 0, "", paused=False)))
    assert document["type"] == type_
    assert (document["container"]["pid"], document["container"]["incarnation"], document["exit"]) == (0, "", None)
    assert (document["container"]["labels"], document["container"]["name"]) == (None, WEB.id)
