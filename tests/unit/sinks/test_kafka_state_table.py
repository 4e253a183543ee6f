from __future__ import annotations

from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError

from sinks.kafka.state_table import read_keys
from sinks.state_table import StateKey

PARTITION = TopicPartition("state", 0)


class SlowConsumer:
    """A consumer of an empty partition whose broker responds to the second fetch."""

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self.fetch_count = 0

    def assign(self, partitions: list[TopicPartition]) -> None:
        assert partitions == [PARTITION]

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    async def position(self, _: TopicPartition) -> int:
        return 0

    def highwater(self, _: TopicPartition) -> int | None:
        return 0 if self.fetch_count > 1 else None

    async def getmany(self, _: TopicPartition, *, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        assert timeout_ms
        self.fetch_count += 1
        if self.fetch_count > 1 and not self._allowed:
            raise TopicAuthorizationFailedError
        return {}


async def test_state_topic_read_waits_for_response_when_topic_is_empty() -> None:
    with pytest.raises(TopicAuthorizationFailedError):
        await read_keys(SlowConsumer(allowed=False), PARTITION, StateKey("node-1", "engine"))
    consumer = SlowConsumer(allowed=True)
    assert await read_keys(consumer, PARTITION, StateKey("node-1", "engine")) == set()
    assert consumer.fetch_count == 2
