"""Topics of `whalebridge conformance`: all readers agree with the expected state, and an audit has no findings."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from bridge.cli import execute
from bridge.consumer import State
from bridge.consumer.audit import Audit
from bridge.consumer.conformance import ConformanceTopic, generate
from bridge.consumer.record_decoder import decode
from tests.conformance.test_vectors import read_with, source_documents, states
from tests.scale import scaled

SEEDS = range(scaled(reduced=3, full=100))


def lines(topic: ConformanceTopic) -> list[bytes]:
    return [record.data for batch in topic.batches for record in batch]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_generated_topic_has_expected_state(seed: int, ordered: bool) -> None:
    topic = generate(seed, ordered=ordered)
    state, audit = State(), Audit()
    for line in lines(topic):
        record, data = decode(line)
        state.apply(record, data)
        audit.add(record, data, ordered=ordered)
    now = datetime.fromisoformat(topic.expected["now"])
    assert [each | {"findings": []} for each in source_documents(state, now)] == topic.expected["sources"]
    report = audit.report()
    assert (report.findings, report.holds) == ([], True)


def test_generated_topics_cover_every_rule() -> None:
    topics = [generate(seed) for seed in range(3)]
    types = {record.type for topic in topics for batch in topic.batches for record in batch}
    assert types == {
        *("started", "exited", "paused", "unpaused", "present", "created", "deleted", "oom", "renamed", "sparkled"),
        *("snapshot_started", "snapshot_completed", "lost", "heartbeat", "source_retired"),
    }
    sources = [source for topic in topics for source in topic.expected["sources"]]
    for field, values in {"complete": {True, False}, "stale": {True, False, None}, "retired": {True, False}}.items():
        assert {source[field] for source in sources} == values
    documents = [json.loads(line) for line in lines(topics[0])]
    assert len({(each["host"], each["epoch"]) for each in documents}) > len(topics[0].expected["sources"])
    snapshots = [each["snapshot"] for each in documents if each["type"] == "snapshot_completed"]
    assert any(each["failed"] for each in snapshots)
    assert generate(0) == topics[0] != topics[1]


def test_readers_in_other_languages_agree_on_generated_topic(example_reader: list[str]) -> None:
    for seed in SEEDS:
        topic = generate(seed)
        printed = read_with(example_reader, b"".join(line + b"\n" for line in lines(topic)))
        assert printed == {"invalid": 0, "sources": states(topic.expected)}


@pytest.mark.real_time
def test_conformance_writes_topic_and_prints_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, ordered in (((), True), (("--unordered",), False)):
        path = tmp_path / f"{ordered}.jsonl"
        assert execute(["conformance", "--sink", f"file:{path}", "--seed", "5", *options]) == 0
        topic = generate(5, ordered=ordered)
        assert json.loads(capsys.readouterr().out) == topic.expected
        assert path.read_bytes().splitlines() == lines(topic)
