"""Test that the JSON Schema accepts valid configuration files and rejects invalid files."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from config.json_schema import json_schema
from config.settings import Settings, load
from config.sinks import BUILT_IN

SCHEMA = json_schema()
EXAMPLES = sorted((Path(__file__).parents[3] / "config" / "examples").glob("*.yaml"))
FULL: dict[str, Any] = {
    "host": "node-1",
    "attributes": {"cluster": "prod-1", "zone2": "é"},
    "containerd": {"address": "/c.sock"},
    "namespaces": {"include": ["*"], "exclude": []},
    "containers": {
        "kinds": ["container", "sandbox"],
        "names": {"exclude": ["x"]},
        "projects": {"include": ["x"]},
        "labels": {"include": ["a=b"]},
        "additional_events": ["oom"],
    },
    "labels": {"redact": []},
    "snapshot": {"interval": "90s"},
    "state_dir": "/var/lib/whalebridge",
    "outbox": {"max_age": "1d"},
    "heartbeat": {"interval": "off"},
    "http": {"listen": "off"},
    "log": {"level": "debug"},
    "sinks": {
        "url": "stdout:",
        "stdout": {"type": "stdout"},
        "file-1": {"type": "file", "path": "/x", "max_files": 3},
        "kafka_main": {
            "type": "kafka",
            "bootstrap_servers": ["h"],
            "topic": "t",
            "heartbeats": False,
            "tls": {"enabled": True},
            "auth": {"username": "u", "password": "p"},
        },
        "nats": {
            "type": "nats",
            "servers": ["h"],
            "subject_prefix": "s",
            "stream": {"max_age": None},
            "kv_bucket": {"name": "b"},
            "tls": {"enabled": True, "handshake_first": True},
            "auth": {"creds_file": "/c"},
        },
    },
}


class Yaml12(yaml.SafeLoader):
    """Read YAML 1.2 as editors do: only true and false are booleans, and dates are text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (pyyaml defines the attribute)
        first: [
            (tag, re.compile("true|false") if tag.endswith("bool") else pattern)
            for tag, pattern in resolvers
            if not tag.endswith("timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def accepts(document: object) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(document)


def groups(value: object) -> Iterator[dict[str, Any]]:
    """Yield each mapping within a document."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from groups(inner)


def test_settings_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["properties"]) == set(Settings.model_fields)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_settings_schema_accepts_examples(path: Path) -> None:
    jsonschema.validate(yaml.load(path.read_text(), Yaml12), SCHEMA)  # noqa: S506 (a safe loader)


def test_settings_schema_accepts_all_loadable_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(FULL))
    assert len(load(path=str(path)).sinks) == len(FULL["sinks"])
    jsonschema.validate(FULL, SCHEMA)


def test_settings_schema_rejects_misspelled_name_at_any_level() -> None:
    count = len(list(groups(FULL)))
    assert count > 20
    for number in range(count):
        document = copy.deepcopy(FULL)
        group = list(groups(document))[number]
        group["Typo"] = group.pop(next(iter(group)))
        assert not accepts(document), group


@pytest.mark.parametrize(
    "document",
    [
        {"snapshot": {"interval": "6"}},
        {"heartbeat": {"interval": "never"}},
        {"containers": {"kinds": ["pod"]}},
        {"containers": {"additional_events": ["started"]}},
        {"log": {"level": "loud"}},
        {"log": "debug"},
        {"outbox": {"max_records": 1}},
        {"attributes": {"my-rack": "a"}},
        {"attributes": {"source": "a"}},
        {"attributes": {"cluster": ""}},
        {"attributes": {"cluster": "x" * 129}},
        {"attributes": {f"a{number}": "x" for number in range(17)}},
        {"sinks": "stdout:"},
        {"sinks": ["stdout:"]},
        {"sinks": {}},
        {"sinks": {"Main": "stdout:"}},
        {"sinks": {"a__b": "stdout:"}},
        {"sinks": {"main": {"type": "kafak"}}},
        {"sinks": {"main": {}}},
        {"sinks": {"main": {"bootstrap_servers": ["h"], "topic": "t"}}},
        {"sinks": {"main": {"type": "kafka", "bootstrap_servers": ["h"]}}},
        {"sinks": {"main": {"type": "kafka", "bootstrap_servers": ["h"], "topic": "t", "subject_prefix": "s"}}},
        {"sinks": {"main": "stdout"}},
        [],
    ],
)
def test_settings_schema_rejects_invalid_document(document: object) -> None:
    assert not accepts(document)


def test_schema_descriptions_contain_unit_and_reason() -> None:
    fields = [field for group in (SCHEMA, *SCHEMA["$defs"].values()) for field in group["properties"].values()]
    plain = [field for field in fields if "$ref" not in field]
    assert len(plain) > 60
    for field in plain:
        assert "reason" not in field or f"\n\nReason: {field['reason']}" in field["description"]
        assert "unit" not in field or f"\n\nUnit: {field['unit']}." in field["description"]
    kafka = SCHEMA["$defs"]["KafkaSettings"]["properties"]
    assert kafka["request_timeout"]["default"] == "30s"
    assert set(BUILT_IN) == {"stdout", "file", "kafka", "nats", "http"}
