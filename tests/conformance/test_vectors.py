"""The folds of this project, run against the conformance vectors as they are in `topics`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jsonschema
import msgspec
import pytest

from bridge.consumer import State
from bridge.consumer.audit import Audit
from bridge.consumer.record_decoder import REPEATING_TYPES, DecodedRecord, InvalidMessageError, decode
from bridge.core.record_encoder import parse_record
from bridge.core.records import json_schema
from sinks.state_table import StateKey, TableState, apply_records
from tests.conformance.vectors import DIRECTORY, files
from tests.documentation import ROOT, documented_fold
from tests.testbed import kafka

NAMES = sorted(path.stem for path in DIRECTORY.glob("*.jsonl"))
ORDERED = [name for name in NAMES if json.loads((DIRECTORY / f"{name}.json").read_text())["ordered"]]
Document = dict[str, Any]


def read(name: str) -> tuple[list[tuple[DecodedRecord, bytes]], int, Document]:
    """Return the records of a vector, the number of other lines, and what is expected."""
    records, invalid = [], 0
    for line in (DIRECTORY / f"{name}.jsonl").read_bytes().splitlines():
        try:
            records.append(decode(line))
        except InvalidMessageError:
            invalid += 1
    return records, invalid, json.loads((DIRECTORY / f"{name}.json").read_text())


def test_vectors_are_current() -> None:
    assert {path.name: path.read_bytes() for path in DIRECTORY.glob("*.json*")} == files()
    assert len(NAMES) > 30


@pytest.mark.parametrize("name", NAMES)
def test_schema_accepts_records_of_vectors(name: str) -> None:
    validator = jsonschema.Draft202012Validator(json_schema(), format_checker=jsonschema.FormatChecker())
    for _, data in read(name)[0]:
        document = json.loads(data)
        validator.validate(document.get("data", document))


@pytest.mark.parametrize("name", NAMES)
def test_consumer_library_conforms(name: str) -> None:
    records, invalid, expected = read(name)
    state = State()
    for record, data in records:
        state.apply(record, data)
    actual = source_documents(state, datetime.fromisoformat(expected["now"]))
    assert actual == [{key: each[key] for key in each if key != "findings"} for each in expected["sources"]]
    assert invalid == expected["invalid"]


def source_documents(state: State, now: datetime) -> list[Document]:
    """Return what is known of each source, as in the files of the vectors."""
    return [
        {
            "host": each.source.host,
            "engine": each.source.engine,
            "position": list(each.position),
            "state": {
                running.id: {"incarnation": running.container.incarnation, "paused": running.container.paused}
                for running in state.containers(now=now)
                if running.source == each.source
            },
            "complete": each.complete,
            "stale": each.stale,
            "retired": each.retired is not None,
            "missing": [list(missing) for missing in each.missing],
            "altered": [list(position) for position in each.altered],
        }
        for each in state.sources(now=now)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_audit_conforms(name: str) -> None:
    records, _, expected = read(name)
    audit = Audit()
    for record, data in records:
        audit.add(record, data, ordered=expected["ordered"])
    findings = [
        (each.host, each.engine, each.kind, each.epoch, each.first, each.last) for each in audit.report().findings
    ]
    assert findings == [
        (source["host"], source["engine"], *each) for source in expected["sources"] for each in source["findings"]
    ]


@pytest.mark.parametrize("name", ORDERED)
def test_documented_fold_conforms(name: str) -> None:
    records, _, expected = read(name)
    folded = documented_fold()([msgspec.json.decode(data) for _, data in records])
    actual = {
        source: {id_: (each["incarnation"], each["paused"]) for id_, each in containers.items()}
        for source, containers in folded.items()
    }
    assert actual == {
        (each["host"], each["engine"]): {
            id_: (container["incarnation"], container["paused"]) for id_, container in each["state"].items()
        }
        for each in expected["sources"]
        if not each["retired"]
    }


@pytest.mark.parametrize("name", ORDERED)
def test_state_table_conforms(name: str) -> None:
    """A sink gets each record once, in order, and none of another bridge; unknown types are not its own."""
    records, _, expected = read(name)
    states: dict[tuple[str, str], TableState] = {}
    entries: dict[StateKey, Document] = {}
    positions: dict[tuple[str, str], tuple[int, int]] = {}
    for record, data in records:
        newest = positions.get(record.source, (0, 0))
        is_new = record.position > newest or (record.type in REPEATING_TYPES and record.position == newest)
        if not is_new or record.type == "sparkled":
            continue
        positions[record.source] = record.position
        state, changes = apply_records(states.get(record.source, TableState()), [parse_record(data)])
        states[record.source] = state
        for change in changes:
            entries.pop(change.key, None)
            if change.value is not None:
                entries[change.key] = msgspec.json.decode(change.value)
    for each in expected["sources"]:
        table = {
            entry["id"]: {name: entry["container"][name] for name in ("incarnation", "paused")}
            for key, entry in entries.items()
            if key[:2] == (each["host"], each["engine"]) and key.id
        }
        assert table == each["state"]
        if each["retired"]:
            assert not any(key[:2] == (each["host"], each["engine"]) for key in entries)


def test_reader_in_other_language_conforms(example_reader: list[str]) -> None:
    for name in ORDERED:
        _, invalid, expected = read(name)
        printed = read_with(example_reader, (DIRECTORY / f"{name}.jsonl").read_bytes())
        assert printed["invalid"] == invalid, name
        assert printed["sources"] == states(expected), name


def test_java_reader_runs_without_compilation(require: Callable[..., None]) -> None:
    require(*kafka.COMPONENTS)
    _, invalid, expected = read("foreign_messages")
    reader = ["java", "-cp", kafka.jars(), str(ROOT / "examples" / "State.java")]
    printed = read_with(reader, (DIRECTORY / "foreign_messages.jsonl").read_bytes())
    assert printed == {"invalid": invalid, "sources": states(expected)}


def read_with(reader: list[str], topic: bytes) -> Document:
    """Return what a reader in examples/ prints for a topic, with what vectors have of each container."""
    process = subprocess.run(reader, input=topic, capture_output=True, check=True)
    printed: Document = json.loads(process.stdout)
    for source in printed["sources"]:
        source["state"] = {
            id_: {key: container[key] for key in ("incarnation", "paused")}
            for id_, container in source.pop("containers").items()
        }
    return printed


def states(expected: Document) -> list[Document]:
    """Return what readers in examples/ must know of each source."""
    return [
        {key: each[key] for key in ("host", "engine", "position", "retired", "state")} for each in expected["sources"]
    ]
