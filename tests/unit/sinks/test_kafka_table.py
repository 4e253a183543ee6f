from __future__ import annotations

from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError

from sinks.current import Row
from sinks.kafka.table import _read

PLACE = TopicPartition("rows", 0)


class Slow:
    """A consumer of an empty partition whose broker answers the second time that something is read."""

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self.asked = 0

    def assign(self, places: list[TopicPartition]) -> None:
        assert places == [PLACE]

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 0)

    async def position(self, _: TopicPartition) -> int:
        return 0

    def highwater(self, _: TopicPartition) -> int | None:
        return 0 if self.asked > 1 else None

    async def getmany(self, _: TopicPartition, *, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        assert timeout_ms
        self.asked += 1
        if self.asked > 1 and not self._allowed:
            raise TopicAuthorizationFailedError
        return {}


async def test_an_answer_is_waited_for_where_there_is_nothing_to_read() -> None:
    with pytest.raises(TopicAuthorizationFailedError):
        await _read(Slow(allowed=False), PLACE, Row("node-1", "engine"))
    consumer = Slow(allowed=True)
    assert await _read(consumer, PLACE, Row("node-1", "engine")) == set()
    assert consumer.asked == 2
