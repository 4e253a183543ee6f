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

if TYPE_CHECKING:
    from config.sinks.kafka import KafkaSettings


class Link(NamedTuple):
    """A producer that is connected, and what was found on the way; ``limit`` is how large its batches may be."""

    producer: Producer
    events: Topic
    state: Topic | None
    options: dict[str, Any]
    limit: int


async def connect(settings: KafkaSettings, limit: int, given_up: list[Producer]) -> Link:
    """Connect in a bounded time. A producer that was begun in vain is put to those that are ``given_up``.

    Raises:
        TransientError: It does not work now; the text says why.
        CompactionError: A topic is compacted that must not be, or the other way round.
    """
    seconds = settings.timeout.total_seconds()
    try:
        async with asyncio.timeout(seconds):
            return await _connect(settings, limit, given_up)
    except TimeoutError as error:
        servers = ", ".join(settings.servers)
        raise TransientError(f"Kafka at {servers}: not connected within {seconds:g} s") from error
    except KafkaError as error:
        denied = not_allowed(error, settings.topic, settings)
        raise TransientError(denied or f"Kafka: {said(error)}") from error


async def _connect(settings: KafkaSettings, limit: int, given_up: list[Producer]) -> Link:
    options = access.options(settings)
    async with cluster.connected(settings, options) as there:
        events = await there.event_topic()
        state = await there.state_topic(settings.state_topic) if settings.state_topic else None
    for topic in (events, state):
        if topic and topic.max_bytes is not None:
            limit = min(limit, topic.max_bytes)
    producer = Producer(
        list(settings.servers),
        compression=None if settings.compression == "none" else settings.compression,
        max_bytes=limit,
        request_seconds=min(REQUEST_SECONDS, settings.timeout.total_seconds()),
        **options,
    )
    given_up.append(producer)
    await producer.start()
    given_up.remove(producer)
    return Link(producer, events, state, options, limit)
