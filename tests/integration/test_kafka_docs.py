"""What docs/kafka.md tells people is so."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest

from sinks.kafka.sink import KafkaSink
from tests.integration.kafka_sinks import FreshKafka, data, kcat, sink
from tests.sample_records import frame, records
from tests.testbed.kafka import USERS
from tests.testbed.kafka_admin import Operation

PAGE = (Path(__file__).parents[2] / "docs" / "kafka.md").read_text()
SOURCE = "".join(path.read_text() for path in (Path(__file__).parents[2] / "sinks" / "kafka").glob("*.py"))


def command(program: str) -> list[str]:
    """A command of the page."""
    (found,) = re.findall(rf"^{program} .*$", PAGE, re.MULTILINE)
    return shlex.split(found)


def values(words: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(words) if name == option]


def snake(operation: str) -> Operation:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower()
    return next(each for each in get_args(Operation) if each == name)


@pytest.mark.parametrize("state", [False, True])
async def test_the_permissions_are_enough(fresh_kafka: FreshKafka, state: bool) -> None:
    kafka = fresh_kafka(listeners=("sasl_plaintext",), acls=True)
    words = command("kafka-acls.sh")
    topics: dict[str, list[str]] = {values(words, "--topic")[0]: values(words, "--operation")}
    if state:
        (line,) = [line for line in PAGE.splitlines() if line.startswith("| topic `containers.state`")]
        assert "| Write, Read, and the two above |" in line
        topics["containers.state"] = ["Write", "Read", "Create", "DescribeConfigs"]
    for topic, operations in topics.items():
        for operation in operations:
            kafka.admin.allow(values(words, "--allow-principal")[0], snake(operation), "topic", topic)
    login = {"mechanism": "scram-sha-512", "username": "bridge", "password": USERS["bridge"]}
    options: dict[str, Any] = {"auth": login} | ({"state_topic": "containers.state"} if state else {})
    whole = [frame(1, "snapshot_started"), *records(3, first=2), frame(5, "snapshot_completed")]
    async with sink(kafka.bootstrap_of("sasl_plaintext"), "containers", **options) as made:
        await made.publish(whole)
    assert [each.value for each in kafka.admin.records("containers")] == data(whole)
    assert not state or len(kafka.admin.records("containers.state")) == 4


async def test_kcat_shows_it_as_the_page_says(fresh_kafka: FreshKafka) -> None:
    kafka = fresh_kafka()
    async with sink(kafka, "containers") as made:
        await made.publish(records(2))
    _, *words = command("kcat")
    words[words.index("-b") + 1] = kafka.bootstrap
    shown = kcat(*words, "-e", "-q")
    assert shown.startswith("node-1/c79d280c-f53d-4d5e content-type=application/json,ce_specversion=1.0,")
    assert shown.splitlines()[1::2] == [each.decode() for each in data(records(2))]


def test_the_texts_of_the_table_are_those_of_the_program() -> None:
    table = PAGE[PAGE.index("| text | what it means |") :]
    texts = [text for row in table.splitlines()[2:] for text in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert len(texts) > 10
    plain = re.sub(r"\{who\(.*?\)\}", "user", re.sub(r'"\s*f?"', "", re.sub(r"\s+", " ", SOURCE)))
    for text in texts:
        for fragment in re.split(r"\.\.\.|30 s|/ write to / create / read| see ", text):
            assert fragment.strip(" ;") in plain, text
    assert KafkaSink.__doc__
