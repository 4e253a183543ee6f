"""Shared helpers of the Kafka sink tests."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import msgspec

from bridge.clock import SystemClock
from bridge.core.ports import Clock
from bridge.core.records import Record
from config.sinks.kafka import KafkaSettings
from sinks.kafka.sink import KafkaSink
from tests.integration.target_checks import retry_until_done
from tests.testbed.kafka import Kafka
from tests.testbed.kafka_admin import Record as Stored
from tests.testbed.kcat import environment
from tests.testbed.process import run

KafkaFactory = Callable[..., Kafka]


def settings(peer: Kafka | str, topic: str, **options: Any) -> KafkaSettings:
    """Return the settings of a sink for a Kafka or for an address.

    The default timeout suits a loaded machine; the sink spends at most half of it on each server.
    """
    address = peer if isinstance(peer, str) else peer.bootstrap
    return KafkaSettings.model_validate(
        {"bootstrap_servers": address, "topic": topic, "request_timeout": "30s", **options}
    )


@contextlib.asynccontextmanager
async def open_sink(
    peer: Kafka | str, topic: str, *, clock: Clock | None = None, retry_start: bool = False, **options: Any
) -> AsyncIterator[KafkaSink]:
    """Connect a sink, and close it within a deadline. Fail if it leaves tasks or unhandled errors behind.

    With `retry_start`, connect like a pump, with retries: a loaded machine may exceed a short timeout.
    """
    before = asyncio.all_tasks()
    unhandled: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(str(context)))
    sink = KafkaSink(settings(peer, topic, **options), clock or SystemClock())
    try:
        await (retry_until_done(sink.start) if retry_start else sink.start())
        yield sink
    finally:
        async with asyncio.timeout(8):  # shorter than the timeout of a request
            await sink.close()
            if left := asyncio.all_tasks() - before:
                await asyncio.wait(left)
        gc.collect()
        assert not unhandled, unhandled


def kcat(*arguments: str) -> str:
    """Run kcat, a client that shares no code with ours, and return its output."""
    return run(["kcat", *arguments], env=environment()).stdout


def distinct_values(stored: Iterable[Stored]) -> list[bytes]:
    """Return the distinct values, ordered by first occurrence."""
    return list(dict.fromkeys(each.value or b"" for each in stored))


def record_data(records: Iterable[Record]) -> list[bytes]:
    """Return the expected values."""
    return [each.data for each in records]


def decode_value(stored: Stored) -> dict[str, Any]:
    """Decode a stored value."""
    return dict(msgspec.json.decode(stored.value or b"{}"))
