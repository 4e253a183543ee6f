"""`whalebridge conformance` on real brokers: our own reader and those in examples/ have the expected state."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime

import pytest

from bridge.cli import execute
from bridge.consumer import State, follow
from tests.conformance.test_vectors import read_with, source_documents, states
from tests.integration.commands import whalebridge
from tests.integration.delivery import BrokerTargets
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats


@pytest.mark.parametrize("broker", [0, 1], ids=["kafka", "nats"])
def test_readers_agree_on_published_topic(
    broker: int, kafka: Kafka, nats: Nats, example_reader: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = BrokerTargets(kafka, nats).urls[broker]
    assert execute(["conformance", "--sink", url, "--seed", "11"]) == 0
    expected = json.loads(capsys.readouterr().out)

    async def read() -> State:
        state = State()
        async for _ in follow(url, state, wait=False):
            pass
        return state

    known = source_documents(asyncio.run(read()), datetime.fromisoformat(expected["now"]))
    assert [each | {"findings": []} for each in known] == expected["sources"]
    topic = whalebridge("tail", url, "--no-follow", "--type", "*", "--duplicates", "--json").stdout
    assert read_with(example_reader, topic.encode()) == {"invalid": 0, "sources": states(expected)}
    report = json.loads(whalebridge("audit", url, "--json").stdout)
    assert (report["findings"], report["holds"]) == ([], True)
    if broker == 0:  # JetStream drops repetitions
        assert report["repeated"] > 100
