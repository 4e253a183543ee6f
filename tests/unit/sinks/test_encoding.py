from __future__ import annotations

import msgspec
import pytest

from bridge.core.records import RecordType
from sinks.encoding import encode_whalewatcher
from tests.sample_records import TIME, control_record, loss_record, record


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
