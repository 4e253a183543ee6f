"""Reader of a Kafka topic: all partitions, without a consumer group, so that it leaves no state on the brokers."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from bridge.consumer.record_reader import Message, StartPosition
from bridge.core.errors import NotFoundError, TransientError
from bridge.core.time import SECOND
from sinks.kafka import auth
from sinks.kafka.admin import REQUEST_SECONDS, connect_admin
from sinks.kafka.aiokafka_patches import start_client, stop_consumer
from sinks.kafka.errors import describe, principal

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from config.sinks.kafka import KafkaSettings

# What matters reaches ``notify``. What aiokafka logs, such as each rebalance, would otherwise be printed to standard
# error by programs that do not configure logging.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())

POLL_SECONDS = 0.5
MAX_BATCH = 1000


class KafkaReader:
    """Reads the topic of ``settings``; after an interruption, it continues after the last returned messages."""

    def __init__(self, settings: KafkaSettings, clock: Clock, *, start_position: StartPosition, follow: bool) -> None:
        self.follow = follow
        self.total: int | None = None
        self._settings = settings
        self._clock = clock
        self._start_position = start_position
        self._saved_position: dict[str, int] = {}
        self._next_offsets: dict[TopicPartition, int] = {}
        self._end_offsets: dict[TopicPartition, int] = {}
        self._exists = False  # whether the topic has been found

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Yield messages, in order within each partition.

        Raises:
            TransientError: No broker can be reached or accepts our credentials, or no data arrives.
            NotFoundError: The topic does not exist.
        """
        await self._check_topic()
        consumer = self._create_consumer()
        try:
            await self._with_timeout(self._seek(consumer))
            yield ()
            last_data_at = self._now()
            while self.follow or self._has_remaining():
                batch = await self._with_timeout(self._fetch(consumer))
                if batch:
                    last_data_at = self._now()
                    yield batch
                elif self._now() - last_data_at > self._timeout * SECOND:
                    await self._check_topic()
                    if not self.follow:
                        raise TransientError(f"topic {self._settings.topic}: no data within {self._timeout:g} s")
                    last_data_at = self._now()
        except KafkaError as error:
            raise TransientError(self._describe(error)) from error
        finally:
            await self._close(consumer)

    @property
    def position(self) -> dict[str, int]:
        """The next offset of each partition."""
        return {str(each.partition): offset for each, offset in self._next_offsets.items()} or self._saved_position

    @position.setter
    def position(self, position: dict[str, int]) -> None:
        self._saved_position = position

    def _describe(self, error: KafkaError) -> str:
        settings = self._settings
        if isinstance(error, TopicAuthorizationFailedError):
            return f"{principal(settings)} is not authorized to read topic {settings.topic}; allow Describe and Read"
        return f"cannot read topic {settings.topic}: {describe(error)}"

    async def _close(self, consumer: AIOKafkaConsumer) -> None:
        await stop_consumer(consumer, self._clock)

    @property
    def _timeout(self) -> float:
        return self._settings.request_timeout.total_seconds()

    def _now(self) -> int:
        return self._clock.now().monotonic

    def _has_remaining(self) -> bool:
        return any(self._next_offsets[partition] < end for partition, end in self._end_offsets.items())

    async def _check_topic(self) -> None:
        """Check that a broker accepts the connection and has the topic; aiokafka would only log the failure."""
        settings = self._settings
        async with connect_admin(settings, auth.client_options(settings, self._clock)) as admin:
            partitions = (await admin.describe(settings.topic, "Read")).partitions
        if not partitions:
            servers = ", ".join(settings.bootstrap_servers)
            if self._exists:
                raise TransientError(f"topic {settings.topic} was deleted from Kafka at {servers}")
            raise NotFoundError(f"topic {settings.topic} does not exist on Kafka at {servers}")
        self._exists = True
        if leaderless := [number for number, each in partitions.items() if each.leader is None]:
            raise TransientError(f"topic {settings.topic}: partition {leaderless[0]} has no leader")

    def _create_consumer(self) -> AIOKafkaConsumer:
        return self._consumer(self._settings.topic)

    def _consumer(self, *topics: str, request_seconds: float = REQUEST_SECONDS, **options: Any) -> AIOKafkaConsumer:
        settings = self._settings
        return AIOKafkaConsumer(
            *topics,
            bootstrap_servers=list(settings.bootstrap_servers),
            request_timeout_ms=int(request_seconds * 1000),
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # for partitions that are added later
            fetch_max_wait_ms=int(POLL_SECONDS * 500),
            **options,
            **auth.client_options(settings, self._clock),
        )

    async def _seek(self, consumer: AIOKafkaConsumer) -> None:
        """Seek to the start position, or to the position of the interruption."""
        await start_client(consumer)
        partitions = sorted(consumer.assignment())
        ends = await consumer.end_offsets(partitions)
        if not self._end_offsets:
            self._end_offsets = dict(ends)
            if self._saved_position:  # a partition that is not in it was added later
                self._next_offsets = {each: self._saved_position.get(str(each.partition), 0) for each in partitions}
            else:
                self._next_offsets = await self._start_offsets(consumer, partitions)
        oldest = await consumer.beginning_offsets(partitions)
        for partition in partitions:
            # Retention may have deleted our next offset. A recreated topic ends before it, and is read from the start.
            known = self._next_offsets.get(partition, 0)
            self._next_offsets[partition] = (
                oldest[partition] if known > ends[partition] else max(known, oldest[partition])
            )
            consumer.seek(partition, self._next_offsets[partition])
        self.total = sum(ends[partition] - self._next_offsets[partition] for partition in partitions)

    async def _start_offsets(
        self, consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        match self._start_position:
            case "beginning":
                return dict.fromkeys(partitions, 0)
            case "end":
                return dict(self._end_offsets)
            case datetime():
                milliseconds = int(self._start_position.timestamp() * 1000)
                offsets = await consumer.offsets_for_times(dict.fromkeys(partitions, milliseconds))
                return {key: self._end_offsets[key] if at is None else at.offset for key, at in offsets.items()}

    async def _fetch(self, consumer: AIOKafkaConsumer) -> list[Message]:
        batch = await get_messages(consumer)
        for partition in consumer.assignment():
            # Also without records, because the control records of transactions have offsets, too.
            self._next_offsets[partition] = await consumer.position(partition)
        return batch

    async def _with_timeout(self, operation: Any) -> Any:
        try:
            async with self._clock.timeout(self._timeout):
                return await operation
        except TimeoutError as error:
            servers = ", ".join(self._settings.bootstrap_servers)
            raise TransientError(f"no response from Kafka at {servers} within {self._timeout:g} s") from error


async def get_messages(
    consumer: AIOKafkaConsumer, *partitions: TopicPartition, limit: int = MAX_BATCH
) -> list[Message]:
    """Return the next messages of the partitions, by default of all that are assigned; none after a while."""
    batch: list[Message] = []
    fetched = await consumer.getmany(*partitions, timeout_ms=int(POLL_SECONDS * 1000), max_records=limit)
    for partition, records in fetched.items():
        location = location_of(partition)
        batch += (Message(each.value or b"", location, each.offset, each.key or b"") for each in records)
    return batch


def location_of(partition: TopicPartition) -> str:
    """Return the location of the messages of a partition."""
    return f"partition {partition.partition}"
