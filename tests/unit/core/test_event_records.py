"""The JSON Schema of the records: what it accepts and rejects."""

from __future__ import annotations

import copy
from typing import Any, get_args

import jsonschema
import msgspec
import pytest

from bridge.core import records
from bridge.core.containerd_model import Kind
from bridge.core.records import EventRecord, Record, RecordType, json_schema
from sinks.cloudevents import SCHEMA

DOCUMENT: dict[str, Any] = {
    "version": 1,
    "type": "exited",
    "timestamp": "2026-11-23T15:21:08.256344486Z",
    "id": "shop/919f59b77021",
    "project": "web-shop",
    "origin": "live",
    "container": {
        "id": "919f59b77021",
        "namespace": "shop",
        "name": "web-shop-web-1",
        "project": "web-shop",
        "service": "web",
        "pid": 20786,
        "incarnation": "5f3c9a1e-20786",
        "paused": False,
        "kind": "container",
        "image": "docker.io/library/busybox:latest",
        "runtime": "io.containerd.runc.v2",
        "created_at": "2026-11-23T15:21:07.525245796Z",
        "labels": {"nerdctl/name": "web-shop-web-1"},
        "labels_dropped": False,
        "pod": {"name": "web-1", "namespace": "prod", "uid": "1b2c", "container": "app", "labels": None},
        "image_digest": "sha256:" + "1f" * 32,
    },
    "exit": {"status": 137, "at": "2026-11-23T15:21:08.253053355Z", "oom": False},
    "snapshot": None,
    "lost": None,
    "engine": {"id": "c79d280c", "type": "containerd.io", "version": "2.4.2", "api": "/run/c.sock", "pid": 812},
    "host": "node-1",
    "epoch": 1795447267123,
    "sequence": 42,
}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())


def test_schema_accepts_documented_example(validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(DOCUMENT)
    assert msgspec.to_builtins(msgspec.convert(DOCUMENT, EventRecord)) == DOCUMENT


@pytest.mark.parametrize("path", [(), ("container",), ("container", "pod"), ("exit",), ("engine",)])
def test_schema_requires_every_key(path: tuple[str, ...], validator: jsonschema.Draft202012Validator) -> None:
    for key in _at(DOCUMENT, path):
        document = copy.deepcopy(DOCUMENT)
        del _at(document, path)[key]
        assert validator.is_valid(document) == (key == "image_digest"), key  # which earlier records do not have


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 2),
        ("type", 5),
        ("origin", "guessed"),
        ("sequence", "42"),
        ("timestamp", None),
        ("timestamp", "yesterday"),
        ("timestamp", "2026-11-23"),
        ("exit", {"status": 0, "at": "now", "oom": None}),
        ("host", None),
        ("attributes", {"cluster": 1}),
    ],
)
def test_schema_rejects_invalid_values(key: str, value: object, validator: jsonschema.Draft202012Validator) -> None:
    assert not validator.is_valid({**DOCUMENT, key: value})


def test_schema_accepts_what_later_minor_versions_may_add(validator: jsonschema.Draft202012Validator) -> None:
    validator.validate({**DOCUMENT, "added": 1, "type": "checkpointed"})
    validator.validate({**DOCUMENT, "container": {**DOCUMENT["container"], "kind": "vm", "added": {}}})
    validator.validate({**DOCUMENT, "lost": {"epoch": 1, "first": 1, "last": 2, "reason": "expired"}})
    snapshot: dict[str, Any] = {
        "since": None,
        "until": None,
        "namespaces": [],
        "failed": [],
        "partial": False,
        "previous": None,
    }
    validator.validate({**DOCUMENT, "snapshot": {**snapshot, "id": "1-1", "reason": "drill", "containers": 0}})


@pytest.mark.parametrize(
    ("type_", "field", "values"),
    [
        ("EventRecord", "type", RecordType),
        ("Snapshot", "reason", records.SnapshotReason),
        ("Lost", "reason", records.LossReason),
        ("Container", "kind", Kind),
    ],
)
def test_schema_describes_known_values_of_open_enumerations(type_: str, field: str, values: object) -> None:
    *known, other = json_schema()["$defs"][type_]["properties"][field]["anyOf"]
    assert {each["const"] for each in known} == set(get_args(values))
    assert all(each["description"] for each in (*known, other))
    assert other["type"] == "string"


def test_schema_has_id_title_and_descriptions() -> None:
    schema = json_schema()
    assert schema["$id"] == SCHEMA == "urn:whalebridge:event:1"
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "major version 1" in schema["title"]
    for each in schema["$defs"].values():
        assert "`" not in each["description"]
        assert [name for name, field in each["properties"].items() if not field.get("description")] == []


def test_every_time_in_schema_is_a_date_time() -> None:
    times = {"timestamp", "created_at", "at", "since", "until"}
    found = set()
    for each in json_schema()["$defs"].values():
        for name, field in each["properties"].items():
            formats = {choice.get("format") for choice in field.get("anyOf", [field])}
            assert ("date-time" in formats) == (name in times), name
            found.add(name)
    assert found >= times


def test_record_types_are_complete() -> None:
    named = {
        value
        for each in (records.TransitionType, records.SnapshotRecordType, records.ControlRecordType)
        for value in get_args(each)
    }
    assert set(get_args(RecordType)) == named | {"created", "deleted", "oom", "renamed"}


def test_record_id_is_position_and_loss_record_has_suffix() -> None:
    record = Record(7, 42, "started", "", "node-1", "c79d", "shop", "shop/web", "", b"{}")
    assert record.id == "7-42"
    assert msgspec.structs.replace(record, type="lost").id == "7-42-lost"


def _at(document: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path:
        document = document[key]
    return document
