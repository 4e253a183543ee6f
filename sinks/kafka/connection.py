"""Connections to Kafka: query the brokers, start and stop aiokafka's clients without leaks."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

from bridge.core.errors import TransientError
from sinks.kafka import access, cluster
from sinks.kafka.cluster import REQUEST_SECONDS, Topic, hang_up
from sinks.kafka.failures import not_allowed, said
from sinks.kafka.producer import Producer

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from config.sinks.kafka import KafkaSettings

END_SECONDS = 1.0  # for each of the two steps in which a consumer ends
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


async def start(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Start a client; if that is interrupted, the caller closes the client as usual.

    A client sends its first request over a connection that it does not keep with its others. When that request is
    interrupted, aiokafka leaves the connection open, with a task that reads from it, and the only reference to it is in
    the interrupted stack frame.
    """
    try:
        await client.start()
    except BaseException as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if connection := frame.f_locals.get("bootstrap_conn"):
                await hang_up(connection)
        raise


async def end(consumer: AIOKafkaConsumer) -> None:
    """Close a consumer in a bounded time, whatever its state."""
    await _bounded(consumer.stop())
    # When a fetch is in flight, aiokafka fails on its own cancellation and does not close the client.
    await _bounded(consumer._client.close())


async def _bounded(ending: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(ending)
    await asyncio.wait({task}, timeout=END_SECONDS)
    if not task.done():
        task.cancel()
    elif not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not report it
