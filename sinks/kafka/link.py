"""Connecting: the brokers are asked first, then the producer is started."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka.errors import KafkaError

from bridge.core.errors import TransientError
from sinks.kafka import access, cluster
from sinks.kafka.cluster import REQUEST_SECONDS, Topic
from sinks.kafka.failures import not_allowed, said
from sinks.kafka.producer import Producer
from sinks.kafka.starting import start

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from config.sinks.kafka import KafkaSettings

_EXPLAIN_SECONDS = 5.0


class Link(NamedTuple):
    """A producer that is connected, and what was found on the way; ``limit`` is how large its batches may be."""

    producer: Producer
    events: Topic
    state: Topic | None
    options: dict[str, Any]
    limit: int


async def connect(settings: KafkaSettings, clock: Clock, limit: int) -> Link:
    """Connect in a bounded time.

    Raises:
        TransientError: It does not work now; the text says why.
        CompactionError: A topic is compacted that must not be, or the other way round.
    """
    seconds = settings.request_timeout.total_seconds()
    try:
        async with asyncio.timeout(seconds):
            return await _connect(settings, clock, limit)
    except TimeoutError as error:
        text = f"Kafka at {', '.join(settings.bootstrap_servers)}: not connected within {seconds:g} s"
        raise TransientError(await explained(text, settings)) from error
    except KafkaError as error:
        denied = not_allowed(error, settings.topic, settings)
        raise TransientError(denied or f"Kafka: {said(error)}") from error


async def _connect(settings: KafkaSettings, clock: Clock, limit: int) -> Link:
    options = access.options(settings)
    async with cluster.connected(settings, options) as there:
        events = await there.event_topic(clock)
        state = await there.state_topic(settings.state_topic, clock) if settings.state_topic else None
        await there.check_writable(events.name)
        if state:
            await there.check_writable(state.name)
    for topic in (events, state):
        if topic and topic.max_bytes is not None:
            limit = min(limit, topic.max_bytes)
    producer = Producer(
        list(settings.bootstrap_servers),
        compression=None if settings.compression == "none" else settings.compression,
        max_bytes=limit,
        request_seconds=min(REQUEST_SECONDS, settings.request_timeout.total_seconds()),
        **options,
    )
    try:
        await start(producer)
    except BaseException:
        await producer.abandon()
        raise
    return Link(producer, events, state, options, limit)


async def explained(text: str, settings: KafkaSettings, topic: str = "", partition: int = 0) -> str:
    """Add to ``text`` why nobody answered, as far as that can be found out in a few seconds."""
    try:
        async with asyncio.timeout(_EXPLAIN_SECONDS):
            return f"{text}; {await cluster.state_of(topic or settings.topic, partition, settings)}"
    except TransientError as error:
        return f"{text}; {error}"
    except TimeoutError:
        return text
