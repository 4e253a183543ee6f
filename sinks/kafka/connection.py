"""Connects to Kafka: checks the topics, and starts and stops aiokafka's clients without leaks."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

from bridge.core.errors import TransientError
from sinks.kafka import admin, auth
from sinks.kafka.admin import REQUEST_SECONDS, Topic, abort
from sinks.kafka.error_messages import describe, describe_denial
from sinks.kafka.patched_producer import Producer

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from config.sinks.kafka import KafkaSettings

STOP_SECONDS = 1.0  # for each of the two steps in which a consumer is stopped
_DIAGNOSIS_SECONDS = 5.0


class KafkaConnection(NamedTuple):
    """A connected producer, its topics, and aiokafka's options; ``max_batch_bytes`` is the maximum size of a batch."""

    producer: Producer
    event_topic: Topic
    state_topic: Topic | None
    options: dict[str, Any]
    max_batch_bytes: int


async def connect(settings: KafkaSettings, clock: Clock, max_batch_bytes: int) -> KafkaConnection:
    """Connect within ``request_timeout``, and create missing topics.

    Raises:
        TransientError: Connecting failed, or a topic does not exist.
        CompactionError: A topic has the wrong cleanup policy.
    """
    seconds = settings.request_timeout.total_seconds()
    try:
        async with asyncio.timeout(seconds):
            return await _connect(settings, clock, max_batch_bytes)
    except TimeoutError as error:
        text = f"Kafka at {', '.join(settings.bootstrap_servers)}: not connected within {seconds:g} s"
        raise TransientError(await with_diagnosis(text, settings)) from error
    except KafkaError as error:
        denied = describe_denial(error, settings.topic, settings)
        raise TransientError(denied or f"Kafka: {describe(error)}") from error


async def _connect(settings: KafkaSettings, clock: Clock, max_batch_bytes: int) -> KafkaConnection:
    options = auth.client_options(settings)
    async with admin.connect_admin(settings, options) as client:
        events = await client.ensure_event_topic(clock)
        state = await client.ensure_state_topic(settings.state_topic, clock) if settings.state_topic else None
        await client.check_writable(events.name)
        if state:
            await client.check_writable(state.name)
    for topic in (events, state):
        if topic and topic.max_batch_bytes is not None:
            max_batch_bytes = min(max_batch_bytes, topic.max_batch_bytes)
    producer = Producer(
        list(settings.bootstrap_servers),
        compression=None if settings.compression == "none" else settings.compression,
        max_bytes=max_batch_bytes,
        request_timeout=min(REQUEST_SECONDS, settings.request_timeout.total_seconds()),
        **options,
    )
    try:
        await start_client(producer)
    except BaseException:
        await producer.abandon()
        raise
    return KafkaConnection(producer, events, state, options, max_batch_bytes)


async def with_diagnosis(text: str, settings: KafkaSettings, topic: str = "", partition: int = 0) -> str:
    """Add the state of a partition to an error message, if it can be determined within a few seconds."""
    try:
        async with asyncio.timeout(_DIAGNOSIS_SECONDS):
            return f"{text}; {await admin.describe_partition(topic or settings.topic, partition, settings)}"
    except TransientError as error:
        return f"{text}; {error}"
    except TimeoutError:
        return text


async def start_client(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Start a client; after an error, the caller must still close the client.

    A client sends its first request on a separate connection. If this request is interrupted, aiokafka leaves that
    connection open, with a task that reads from it; the only reference to it is in the traceback.
    """
    try:
        await client.start()
    except BaseException as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if connection := frame.f_locals.get("bootstrap_conn"):
                await abort(connection)
        raise


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Close a consumer in a bounded time, in any state."""
    await _wait_bounded(consumer.stop())
    # If a fetch is in flight, aiokafka fails on its own cancellation and does not close the client.
    await _wait_bounded(consumer._client.close())


async def _wait_bounded(closing: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(closing)
    await asyncio.wait({task}, timeout=STOP_SECONDS)
    if not task.done():
        task.cancel()
    elif not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not report it
