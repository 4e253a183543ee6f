"""examples/records.sql and the queries of docs/consumers.md, in DuckDB."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bridge.consumer.conformance import BEGIN, SampleBridge, edit, generate
from bridge.core.time import SECOND
from tests.conformance.test_vectors import ORDERED, read
from tests.conformance.vectors import DIRECTORY, flat
from tests.documentation import ROOT, code_blocks
from tests.testbed.process import run

DUCKDB = Path(sys.executable).with_name("duckdb")
STATE = """SELECT host, engine.id AS engine, id, container.incarnation AS incarnation, container.paused AS paused
FROM running"""
Document = dict[str, Any]


def query(topic: bytes, sql: str, database: str = ":memory:") -> list[Document]:
    """Return the rows of a query after all records of a topic."""
    command = [str(DUCKDB), database, "-init", str(ROOT / "examples" / "records.sql"), "-json", "-c", sql]
    rows: list[Document] = json.loads(run(command, text=topic.decode()).stdout or "[]")
    return rows


def documented_queries() -> list[str]:
    return code_blocks((ROOT / "docs" / "consumers.md").read_text(), "sql")


def state_rows(expected: Document) -> list[Document]:
    return [
        {"host": source["host"], "engine": source["engine"], "id": id_} | container
        for source in expected["sources"]
        for id_, container in source["state"].items()
    ]


def by_id(rows: list[Document]) -> list[Document]:
    return sorted(rows, key=lambda row: (row["host"], row["engine"], row["id"]))


@pytest.mark.parametrize("name", ORDERED)
def test_sql_conforms(name: str) -> None:
    topic = (DIRECTORY / f"{name}.jsonl").read_bytes()
    assert by_id(query(topic, STATE)) == by_id(state_rows(read(name)[2]))


def test_sql_agrees_on_generated_topic() -> None:
    for seed in range(3):
        topic = generate(seed)
        lines = [record.data for batch in topic.batches for record in batch]
        assert by_id(query(b"\n".join(lines), STATE)) == by_id(state_rows(topic.expected))


def test_sql_tables_are_replaced_in_database(tmp_path: Path) -> None:
    database = str(tmp_path / "fleet.db")
    for name, containers in (("transitions", 2), ("several_sources", 2), ("restart", 1)):
        query((DIRECTORY / f"{name}.jsonl").read_bytes(), STATE, database)
        output = run([str(DUCKDB), database, "-json", "-c", STATE]).stdout
        assert len(json.loads(output)) == containers


def test_documented_queries_have_expected_results() -> None:
    hours = [0]
    node = SampleBridge(clock=lambda: BEGIN + hours[-1] * 3600 * SECOND)
    killed = {"status": 137, "at": "2026-11-25T19:46:40.123456789Z", "oom": True}
    records = [*node.snapshot(("a", 101)), node.exit("a", 101)]
    records += [node.start("a", 102), edit(node.exit("a", 102), exit=killed)]
    hours.append(1)
    late = edit(node.start("a", 103), start={"at": "2026-11-25T19:59:59Z"})  # noticed in the next hour
    records += [late, node.start("b", 104)]
    in_pod = [node.start("p", 105), node.exit("p", 105), node.start("q", 106), node.exit("q", 106)]
    pod = {"namespace": "shop", "name": "web-0", "uid": "u", "container": "nginx"}
    for record in in_pod:  # the restart of a container in a pod has another id
        container = json.loads(record.data)["container"]
        records.append(edit(record, container=container | {"image": "nginx", "pod": pod}))
    topic = b"\n".join(flat(records, records[3:]))  # partly repeated
    running, exits, restarts = (query(topic, each) for each in documented_queries())
    assert running == [{"image": "busybox", "containers": 2, "hosts": 1}]
    assert exits == [
        {"image": "busybox", "status": 0, "exits": 1, "oom": 0},
        {"image": "busybox", "status": 137, "exits": 1, "oom": 1},
        {"image": "nginx", "status": 0, "exits": 2, "oom": 0},
    ]
    assert [(row["hour"], row["namespace"], row["name"], row["restarts"]) for row in restarts] == [
        ("2026-11-25 19:00:00", "default", "a", 2),
        ("2026-11-25 20:00:00", "shop", "web-0/nginx", 1),
    ]
