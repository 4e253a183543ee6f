"""Reading a topic of Kafka: all partitions, without a group, so that nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from bridge.core.errors import NotFoundError, TransientError
from bridge.fleet.messages import Begin, Message
from sinks.kafka import access
from sinks.kafka.cluster import REQUEST_SECONDS, connected
from sinks.kafka.consumer import end
from sinks.kafka.failures import said, who
from sinks.kafka.starting import start

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from config.sinks.kafka import KafkaSettings

POLL_SECONDS = 0.5
_BATCH = 1000
_NANOSECONDS = 1_000_000_000


class KafkaReader:
    """Reads the topic of ``settings``; where it was interrupted, it goes on behind what it has handed over."""

    def __init__(self, settings: KafkaSettings, clock: Clock, *, begin: Begin, follow: bool) -> None:
        self.follow = follow
        self._settings = settings
        self._clock = clock
        self._begin = begin
        self._next: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        """Read messages; those of a partition in its order.

        Raises:
            TransientError: No broker can be reached or lets us in, or nothing moves.
            NotFoundError: There is no such topic.
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
                elif self._now() - moved > self._patience * _NANOSECONDS:
                    await self._look()
                    if not self.follow:
                        raise TransientError(f"topic {self._settings.topic}: nothing came within {self._patience:g} s")
                    moved = self._now()
        except TopicAuthorizationFailedError as error:
            text = f"{who(self._settings)} may not read topic {self._settings.topic}: allow Describe and Read on it"
            raise TransientError(text) from error
        except KafkaError as error:
            raise TransientError(f"topic {self._settings.topic} cannot be read: {said(error)}") from error
        finally:
            await end(consumer)

    @property
    def _patience(self) -> float:
        return self._settings.request_timeout.total_seconds()

    def _now(self) -> int:
        return self._clock.now().monotonic

    def _left(self) -> bool:
        return any(self._next[place] < end for place, end in self._ends.items())

    async def _look(self) -> None:
        """Make sure that a broker lets us in, and has the topic: aiokafka would only log why not."""
        settings = self._settings
        async with connected(settings, access.options(settings)) as there:
            partitions = await there.where(settings.topic, "Read")
        if not partitions:
            text = f"there is no topic {settings.topic} at Kafka {', '.join(settings.bootstrap_servers)}"
            raise TransientError(f"{text} any more") if self._ends else NotFoundError(text)
        if headless := [number for number, each in partitions.items() if each.leader is None]:
            raise TransientError(f"topic {settings.topic}: partition {headless[0]} has no leader")

    def _consumer(self) -> AIOKafkaConsumer:
        settings = self._settings
        return AIOKafkaConsumer(
            settings.topic,
            bootstrap_servers=list(settings.bootstrap_servers),
            request_timeout_ms=int(REQUEST_SECONDS * 1000),
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # also in partitions that are added meanwhile
            fetch_max_wait_ms=int(POLL_SECONDS * 500),
            **access.options(settings),
        )

    async def _place(self, consumer: AIOKafkaConsumer) -> None:
        """Begin where reading is to begin, or where it was interrupted."""
        await start(consumer)
        places = sorted(consumer.assignment())
        ends = await consumer.end_offsets(places)
        if not self._ends:
            self._ends = dict(ends)
            self._next = await self._first(consumer, places)
        oldest = await consumer.beginning_offsets(places)
        for place in places:
            # Retention may have passed us by; a topic made anew ends before us, and is read from its beginning.
            known = self._next.get(place, 0)
            self._next[place] = oldest[place] if known > ends[place] else max(known, oldest[place])
            consumer.seek(place, self._next[place])

    async def _first(self, consumer: AIOKafkaConsumer, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        match self._begin:
            case "beginning":
                return dict.fromkeys(places, 0)
            case "end":
                return dict(self._ends)
            case datetime():
                moment = int(self._begin.timestamp() * 1000)
                found = await consumer.offsets_for_times(dict.fromkeys(places, moment))
                return {place: self._ends[place] if at is None else at.offset for place, at in found.items()}

    async def _fetch(self, consumer: AIOKafkaConsumer) -> list[Message]:
        batch: list[Message] = []
        fetched = await consumer.getmany(timeout_ms=int(POLL_SECONDS * 1000), max_records=_BATCH)
        for place, records in fetched.items():
            batch += (Message(each.value or b"", f"partition {place.partition}", each.offset) for each in records)
        for place in consumer.assignment():
            # Also where there was nothing for us: the marks of transactions take offsets, too.
            self._next[place] = await consumer.position(place)
        return batch

    async def _bounded(self, work: Any) -> Any:
        try:
            async with asyncio.timeout(self._patience):
                return await work
        except TimeoutError as error:
            servers = ", ".join(self._settings.bootstrap_servers)
            raise TransientError(f"Kafka at {servers} did not answer within {self._patience:g} s") from error
