"""Reads the keys of a source from the topic of the current state, to remove obsolete entries later."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from bridge.core.errors import TransientError
from sinks.current import Row
from sinks.kafka.cluster import REQUEST_SECONDS
from sinks.kafka.connection import end, start
from sinks.kafka.failures import said, who
from sinks.kafka.messages import row_of

if TYPE_CHECKING:
    from config.sinks.kafka import KafkaSettings


_POLL_MILLISECONDS = 200


async def rows_of(
    source: Row, topic: str, partition: int, settings: KafkaSettings, options: dict[str, Any]
) -> set[Row]:
    """Return the keys of a source's containers in a partition.

    Raises:
        TransientError: The topic cannot be read, or not in time.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=list(settings.bootstrap_servers),
        request_timeout_ms=int(REQUEST_SECONDS * 1000),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=_POLL_MILLISECONDS // 2,
        **options,
    )
    try:
        async with asyncio.timeout(settings.request_timeout.total_seconds()):
            await start(consumer)
            return await _read(consumer, TopicPartition(topic, partition), source)
    except TimeoutError as error:
        raise TransientError(f"state_topic {topic} cannot be read: no response in time") from error
    except TopicAuthorizationFailedError as error:
        raise TransientError(
            f"{who(settings)} is not authorized to read state_topic {topic}; allow Read on it (to remove old entries)"
        ) from error
    except KafkaError as error:
        raise TransientError(f"state_topic {topic} cannot be read: {said(error)}") from error
    finally:
        await end(consumer)


async def _read(consumer: AIOKafkaConsumer, place: TopicPartition, source: Row) -> set[Row]:
    consumer.assign([place])
    end = (await consumer.end_offsets([place]))[place]
    keys: set[Row] = set()
    while True:
        for records in (await consumer.getmany(place, timeout_ms=_POLL_MILLISECONDS)).values():
            for record in records:
                key = row_of(record.key or b"")
                if key is None or key[:2] != source[:2] or key == source:
                    continue
                if record.value is None:
                    keys.discard(key)
                else:
                    keys.add(key)
        # Wait for a response even if the topic is empty, so that a missing permission is reported at the first start.
        responded = consumer.highwater(place) is not None
        if responded and await consumer.position(place) >= end:
            return keys
