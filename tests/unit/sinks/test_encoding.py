from __future__ import annotations

import subprocess
import sys
from typing import get_args

import msgspec
import pytest

from bridge.core.records import RecordType
from sinks.encoding import EncodingName, encode_whalewatcher, get_encoding
from tests.sample_records import TIME, control_record, loss_record, record


@pytest.mark.real_time
@pytest.mark.parametrize(("name", "imported"), [("json", False), ("whalewatcher", False), ("otlp", True)])
def test_protobuf_is_imported_for_otlp_only(name: str, imported: bool) -> None:
    code = "import sys; from sinks.encoding import get_encoding; get_encoding(sys.argv[1]); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True).stdout
    assert ("google.protobuf" in modules.split()) == imported


def test_encodings_have_schema_and_content_type() -> None:
    assert {name: get_encoding(name)[1:] for name in get_args(EncodingName)} == {
        "json": ("urn:whalebridge:event:1", "application/json"),
        "whalewatcher": ("urn:whalebridge:whalewatcher:1", "application/json"),
        "otlp": ("urn:whalebridge:otlp:1", "application/x-protobuf"),
    }


def test_whalewatcher_encoding_has_event_and_container_fields() -> None:
    encoded = encode_whalewatcher(record(1, "paused", id_="abc", name="web", labels={"a": "b"}))
    assert encoded
    assert msgspec.json.decode(encoded) == {
        "Timestamp": TIME,
        "Type": 2,
        "ID": "shop/abc",
        "Project": "web-shop",
        "Container": {
            "ID": "shop/abc",
            "Name": "shop/web",
            "Labels": {"a": "b"},
            "PID": 4711,
            "Project": "web-shop",
            "Paused": True,
        },
    }


def test_whalewatcher_names_are_bare_in_default_namespace() -> None:
    encoded = encode_whalewatcher(record(1, namespace="default", id_="abc", name="web"))
    assert encoded
    container = msgspec.json.decode(encoded)["Container"]
    assert (container["ID"], container["Name"]) == ("abc", "web")


@pytest.mark.parametrize(
    ("type_", "number"), [("started", 0), ("present", 0), ("exited", 1), ("paused", 2), ("unpaused", 3)]
)
def test_whalewatcher_event_type_maps_record_type(type_: RecordType, number: int) -> None:
    encoded = encode_whalewatcher(record(1, type_))
    assert encoded
    assert msgspec.json.decode(encoded)["Type"] == number


def test_whalewatcher_encoding_omits_unsupported_types() -> None:
    for type_ in ("created", "deleted", "oom", "renamed"):
        assert encode_whalewatcher(record(1, type_)) is None
    assert encode_whalewatcher(control_record(1, "snapshot_started")) is None
    assert encode_whalewatcher(loss_record(record(2), 1)) is None


def test_whalewatcher_labels_are_empty_when_unknown() -> None:
    unknown = record(1)
    unlabeled = msgspec.structs.replace(
        unknown, data=unknown.data.replace(b'"labels":{"com.docker.compose.project":"web-shop"}', b'"labels":null')
    )
    assert b'"labels":null' in unlabeled.data
    encoded = encode_whalewatcher(unlabeled)
    assert encoded
    assert msgspec.json.decode(encoded)["Container"]["Labels"] == {}
