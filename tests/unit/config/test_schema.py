"""The JSON Schema of the configuration file accepts what is right, and what an editor should mark it refuses."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from config.schema import json_schema
from config.settings import Settings, load
from config.sinks import BUILT_IN

SCHEMA = json_schema()
EXAMPLES = sorted((Path(__file__).parents[3] / "config" / "examples").glob("*.yaml"))
FULL: dict[str, Any] = {
    "host": "node-1",
    "containerd": {"address": "/c.sock"},
    "namespaces": {"include": ["*"], "exclude": []},
    "containers": {
        "kinds": ["container", "sandbox"],
        "names": {"exclude": ["x"]},
        "projects": {"include": ["x"]},
        "labels": {"include": ["a=b"]},
        "extras": ["oom"],
    },
    "labels": {"redact": []},
    "snapshot": {"interval": "90s"},
    "state_dir": "/var/lib/whalebridge",
    "outbox": {"max_age": "1d"},
    "heartbeat": {"interval": "off"},
    "http": {"listen": "off"},
    "log": {"level": "debug"},
    "sinks": [
        "stdout:",
        {"type": "stdout", "name": "again"},
        {"type": "file", "path": "/x", "keep": 3},
        {
            "type": "kafka",
            "servers": ["h"],
            "topic": "t",
            "heartbeats": False,
            "tls": {"enabled": True},
            "sasl": {"username": "u", "password": "p"},
        },
        {
            "type": "nats",
            "servers": ["h"],
            "subject": "s",
            "stream": {"max_age": None},
            "bucket": {"name": "b"},
            "login": {"creds_file": "/c"},
        },
    ],
}


class Yaml12(yaml.SafeLoader):
    """Reads YAML as editors do, by version 1.2: only true and false are truth values, and nothing is a date."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (it is pyyaml's)
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
    """Return each group within a document."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from groups(inner)


def test_it_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["properties"]) == set(Settings.model_fields)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_accepts_the_examples(path: Path) -> None:
    jsonschema.validate(yaml.load(path.read_text(), Yaml12), SCHEMA)  # noqa: S506 (a safe loader)


def test_it_accepts_what_the_program_accepts(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(FULL))
    assert len(load(path=str(path)).sinks) == len(FULL["sinks"])
    jsonschema.validate(FULL, SCHEMA)


def test_it_refuses_a_name_that_is_misspelt_at_any_level() -> None:
    count = len(list(groups(FULL)))
    assert count > 20
    for number in range(count):
        document = copy.deepcopy(FULL)
        group = list(groups(document))[number]
        group["typo"] = group.pop(next(iter(group)))
        assert not accepts(document), group


@pytest.mark.parametrize(
    "document",
    [
        {"snapshot": {"interval": "6"}},
        {"heartbeat": {"interval": "never"}},
        {"containers": {"kinds": ["pod"]}},
        {"containers": {"extras": ["started"]}},
        {"log": {"level": "loud"}},
        {"log": "debug"},
        {"outbox": {"max_records": 1}},
        {"sinks": "stdout:"},
        {"sinks": [{"type": "kafak"}]},
        {"sinks": [{}]},
        {"sinks": [{"servers": ["h"], "topic": "t"}]},
        {"sinks": [{"type": "kafka", "servers": ["h"]}]},
        {"sinks": [{"type": "kafka", "servers": ["h"], "topic": "t", "subject": "s"}]},
        {"sinks": ["stdout"]},
        [],
    ],
)
def test_it_refuses_what_is_wrong(document: object) -> None:
    assert not accepts(document)


def test_editors_are_told_what_each_setting_is_with_unit_and_reason() -> None:
    fields = [field for group in (SCHEMA, *SCHEMA["$defs"].values()) for field in group["properties"].values()]
    plain = [field for field in fields if "$ref" not in field]
    assert len(plain) > 60
    for field in plain:
        assert f"\n\nWhy: {field['reason']}" in field["description"]
        assert "unit" not in field or f"\n\nUnit: {field['unit']}." in field["description"]
    kafka = SCHEMA["$defs"]["KafkaSettings"]["properties"]
    assert kafka["timeout"]["default"] == "30s"
    assert set(BUILT_IN) == {"stdout", "file", "kafka", "nats"}
