"""What the tests of the Kafka sink share."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from bridge.clock import SystemClock
from bridge.core.errors import TransientError
from bridge.core.ports import Clock
from bridge.core.records import Record
from config.sinks.kafka import KafkaSettings
from sinks.kafka.sink import KafkaSink
from tests.testbed.kafka import Kafka
from tests.testbed.kafka_admin import Record as Stored
from tests.testbed.kcat import environment
from tests.testbed.process import run

KafkaFactory = Callable[..., Kafka]


def settings(peer: Kafka | str, topic: str, **options: Any) -> KafkaSettings:
    """Settings of a sink for a peer, or for an address of one.

    With time enough for a loaded machine where a test does not say otherwise: each server has half of it at the most.
    """
    address = peer if isinstance(peer, str) else peer.bootstrap
    return KafkaSettings.model_validate(
        {"bootstrap_servers": address, "topic": topic, "request_timeout": "30s", **options}
    )


@contextlib.asynccontextmanager
async def open_sink(
    peer: Kafka | str, topic: str, *, clock: Clock | None = None, retry_start: bool = False, **options: Any
) -> AsyncIterator[KafkaSink]:
    """A sink that is connected, and closed in time; nothing of it goes on, and nothing was said behind our back.

    With `retry_start`, connect like a pump, with retries: a loaded machine may exceed a short timeout.
    """
    before = asyncio.all_tasks()
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
    made = KafkaSink(settings(peer, topic, **options), clock or SystemClock())
    try:
        await (retry_until_done(made.start) if retry_start else made.start())
        yield made
    finally:
        async with asyncio.timeout(8):  # an answer of a broker is waited for longer
            await made.close()
            if left := asyncio.all_tasks() - before:
                await asyncio.wait(left)
        gc.collect()
        assert not complaints, complaints


async def publish_until_accepted(sink: KafkaSink, batch: Sequence[Record], *, seconds: float = 60) -> list[str]:
    """Publish as a pump does, trying again; return what was in the way."""
    return await retry_until_done(partial(sink.publish, batch), seconds=seconds)


async def retry_until_done(attempt: Callable[[], Awaitable[None]], *, seconds: float = 60) -> list[str]:
    """Try until it works; return what was in the way."""
    complaints = []
    async with asyncio.timeout(seconds):
        while True:
            try:
                await attempt()
            except TransientError as error:
                complaints.append(str(error))
                await asyncio.sleep(0.1)
            else:
                return complaints


def kcat(*arguments: str) -> str:
    """What kcat says: a client that has nothing in common with ours."""
    return run(["kcat", *arguments], env=environment()).stdout


def distinct_values(stored: Iterable[Stored]) -> list[bytes]:
    """Values in the order in which each of them came first."""
    return list(dict.fromkeys(each.value or b"" for each in stored))


def record_data(records: Iterable[Record]) -> list[bytes]:
    """What is to be stored."""
    return [each.data for each in records]


def decode_value(stored: Stored) -> dict[str, Any]:
    """A stored value, read."""
    return dict(msgspec.json.decode(stored.value or b"{}"))
