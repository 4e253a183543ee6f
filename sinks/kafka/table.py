"""Reading the topic of the current state, to know which rows of a source are there already."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from bridge.core.errors import TransientError
from sinks.current import Row
from sinks.kafka.cluster import REQUEST_SECONDS
from sinks.kafka.consumer import end
from sinks.kafka.failures import said, who
from sinks.kafka.messages import row_of
from sinks.kafka.starting import start

if TYPE_CHECKING:
    from config.sinks.kafka import KafkaSettings


_POLL_MILLISECONDS = 200


async def rows_of(
    source: Row, topic: str, partition: int, settings: KafkaSettings, options: dict[str, Any]
) -> set[Row]:
    """Return the rows of a source's containers that a partition holds.

    Raises:
        TransientError: It cannot be read, or not in time.
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
        raise TransientError(f"state_topic {topic} could not be read in time") from error
    except TopicAuthorizationFailedError as error:
        raise TransientError(
            f"{who(settings)} may not read state_topic {topic}, for rows that are out of date: allow Read on it"
        ) from error
    except KafkaError as error:
        raise TransientError(f"state_topic {topic} cannot be read: {said(error)}") from error
    finally:
        await end(consumer)


async def _read(consumer: AIOKafkaConsumer, place: TopicPartition, source: Row) -> set[Row]:
    consumer.assign([place])
    end = (await consumer.end_offsets([place]))[place]
    rows: set[Row] = set()
    while True:
        for records in (await consumer.getmany(place, timeout_ms=_POLL_MILLISECONDS)).values():
            for record in records:
                row = row_of(record.key or b"")
                if row is None or row[:2] != source[:2] or row == source:
                    continue
                if record.value is None:
                    rows.discard(row)
                else:
                    rows.add(row)
        # An answer is waited for also where there is nothing yet: that we may not read it is better known now than
        # after the next start.
        answered = consumer.highwater(place) is not None
        if answered and await consumer.position(place) >= end:
            return rows
