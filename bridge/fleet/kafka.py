"""Reader of a Kafka topic: all partitions, without a consumer group, so that it leaves no state on the brokers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from bridge.core.errors import NotFoundError, TransientError
from bridge.core.time import SECOND
from bridge.fleet.messages import Begin, Message
from sinks.kafka import access
from sinks.kafka.cluster import REQUEST_SECONDS, connected
from sinks.kafka.connection import end, start
from sinks.kafka.failures import said, who

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from config.sinks.kafka import KafkaSettings

POLL_SECONDS = 0.5
_BATCH = 1000


class KafkaReader:
    """Reads the topic of ``settings``; after an interruption, it continues after the last returned messages."""

    def __init__(self, settings: KafkaSettings, clock: Clock, *, begin: Begin, follow: bool) -> None:
        self.follow = follow
        self._settings = settings
        self._clock = clock
        self._begin = begin
        self._next: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Yield messages, in order within each partition.

        Raises:
            TransientError: No broker can be reached or accepts our credentials, or no data arrives.
            NotFoundError: The topic does not exist.
        """
        await self._look()
        consumer = self._consumer()
        try:
            await self._bounded(self._place(consumer))
            yield ()
            moved = self._now()
            while self.follow or self._left():
                batch = await self._bounded(self._fetch(consumer))
                if batch:
                    moved = self._now()
                    yield batch
                elif self._now() - moved > self._patience * SECOND:
                    await self._look()
                    if not self.follow:
                        raise TransientError(f"topic {self._settings.topic}: no data within {self._patience:g} s")
                    moved = self._now()
        except TopicAuthorizationFailedError as error:
            principal = who(self._settings)
            text = f"{principal} is not authorized to read topic {self._settings.topic}; allow Describe and Read"
            raise TransientError(text) from error
        except KafkaError as error:
            raise TransientError(f"cannot read topic {self._settings.topic}: {said(error)}") from error
        finally:
            await end(consumer)

    @property
    def _patience(self) -> float:
        return self._settings.request_timeout.total_seconds()

    def _now(self) -> int:
        return self._clock.now().monotonic

    def _left(self) -> bool:
        return any(self._next[partition] < end for partition, end in self._ends.items())

    async def _look(self) -> None:
        """Check that a broker accepts the connection and has the topic; aiokafka would only log the failure."""
        settings = self._settings
        async with connected(settings, access.options(settings)) as admin:
            partitions = await admin.where(settings.topic, "Read")
        if not partitions:
            servers = ", ".join(settings.bootstrap_servers)
            if self._ends:
                raise TransientError(f"topic {settings.topic} was deleted from Kafka at {servers}")
            raise NotFoundError(f"topic {settings.topic} does not exist on Kafka at {servers}")
        if leaderless := [number for number, each in partitions.items() if each.leader is None]:
            raise TransientError(f"topic {settings.topic}: partition {leaderless[0]} has no leader")

    def _consumer(self) -> AIOKafkaConsumer:
        settings = self._settings
        return AIOKafkaConsumer(
            settings.topic,
            bootstrap_servers=list(settings.bootstrap_servers),
            request_timeout_ms=int(REQUEST_SECONDS * 1000),
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # for partitions that are added later
            fetch_max_wait_ms=int(POLL_SECONDS * 500),
            **access.options(settings),
        )

    async def _place(self, consumer: AIOKafkaConsumer) -> None:
        """Seek to the start position, or to the position of the interruption."""
        await start(consumer)
        partitions = sorted(consumer.assignment())
        ends = await consumer.end_offsets(partitions)
        if not self._ends:
            self._ends = dict(ends)
            self._next = await self._first(consumer, partitions)
        oldest = await consumer.beginning_offsets(partitions)
        for partition in partitions:
            # Retention may have deleted our next offset. A recreated topic ends before it, and is read from the start.
            known = self._next.get(partition, 0)
            self._next[partition] = oldest[partition] if known > ends[partition] else max(known, oldest[partition])
            consumer.seek(partition, self._next[partition])

    async def _first(self, consumer: AIOKafkaConsumer, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        match self._begin:
            case "beginning":
                return dict.fromkeys(places, 0)
            case "end":
                return dict(self._ends)
            case datetime():
                moment = int(self._begin.timestamp() * 1000)
                found = await consumer.offsets_for_times(dict.fromkeys(places, moment))
                return {key: self._ends[key] if at is None else at.offset for key, at in found.items()}

    async def _fetch(self, consumer: AIOKafkaConsumer) -> list[Message]:
        batch: list[Message] = []
        fetched = await consumer.getmany(timeout_ms=int(POLL_SECONDS * 1000), max_records=_BATCH)
        for partition, records in fetched.items():
            batch += (Message(each.value or b"", f"partition {partition.partition}", each.offset) for each in records)
        for partition in consumer.assignment():
            # Also without records, because the control records of transactions have offsets, too.
            self._next[partition] = await consumer.position(partition)
        return batch

    async def _bounded(self, work: Any) -> Any:
        try:
            async with asyncio.timeout(self._patience):
                return await work
        except TimeoutError as error:
            servers = ", ".join(self._settings.bootstrap_servers)
            raise TransientError(f"no response from Kafka at {servers} within {self._patience:g} s") from error
