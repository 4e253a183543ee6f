"""Reads the keys of a source from the topic of the current state, to remove obsolete entries later."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from bridge.core.errors import TransientError
from sinks.kafka.admin import REQUEST_SECONDS
from sinks.kafka.connection import start_client, stop_consumer
from sinks.kafka.error_messages import describe, principal
from sinks.kafka.messages import decode_key
from sinks.state_table import StateKey

if TYPE_CHECKING:
    from config.sinks.kafka import KafkaSettings


_POLL_MILLISECONDS = 200


async def read_keys(
    source: StateKey, topic: str, partition: int, settings: KafkaSettings, options: dict[str, Any]
) -> set[StateKey]:
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
            await start_client(consumer)
            return await _read(consumer, TopicPartition(topic, partition), source)
    except TimeoutError as error:
        raise TransientError(f"state_topic {topic} cannot be read: no response in time") from error
    except TopicAuthorizationFailedError as error:
        raise TransientError(
            f"{principal(settings)} is not authorized to read state_topic {topic}; allow Read on it"
        ) from error
    except KafkaError as error:
        raise TransientError(f"state_topic {topic} cannot be read: {describe(error)}") from error
    finally:
        await stop_consumer(consumer)


async def _read(consumer: AIOKafkaConsumer, topic_partition: TopicPartition, source: StateKey) -> set[StateKey]:
    consumer.assign([topic_partition])
    end = (await consumer.end_offsets([topic_partition]))[topic_partition]
    keys: set[StateKey] = set()
    while True:
        for records in (await consumer.getmany(topic_partition, timeout_ms=_POLL_MILLISECONDS)).values():
            for record in records:
                key = decode_key(record.key or b"")
                if key is None or key[:2] != source[:2] or key == source:
                    continue
                if record.value is None:
                    keys.discard(key)
                else:
                    keys.add(key)
        # Wait for a response even if the topic is empty, so that a missing permission is reported at the first start.
        responded = consumer.highwater(topic_partition) is not None
        if responded and await consumer.position(topic_partition) >= end:
            return keys
