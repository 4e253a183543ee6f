"""Publishes messages to a topic.

Invariant: one batch is in flight at a time, and the next is sent only when all in-sync replicas have the previous one.
Therefore, apart from repetitions, records are in order after any failure (P5 in docs/reliability.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import structlog
from aiokafka.errors import InvalidTimestampError, KafkaConnectionError, KafkaError
from msgspec import Struct

from bridge.core.errors import RejectedRecordError, TransientError
from bridge.core.time import MILLISECOND
from bridge.task_groups import completes_within, first_of
from bridge.telemetry.rate_limit import RateLimiter
from sinks.kafka.admin import Topic, TopicMetadata
from sinks.kafka.connection import (
    KafkaConnection,
    KafkaConnector,
    describe_topic,
    has_moved,
    read_offsets,
    with_diagnosis,
)
from sinks.kafka.errors import FENCED, REJECTED, TOO_LARGE, describe, describe_denial
from sinks.kafka.messages import MAX_BATCH_MESSAGES, Message, build_batches, choose_partition
from sinks.target_memory import TargetMemory, TargetState

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from bridge.core.records import Record
    from config.sinks.kafka import KafkaSettings
    from sinks.state_table import StateKey

FIRST_LOOKUP_SECONDS = 2.0  # without an acknowledgment, until the leader's address is looked up
LOOKUP_SECONDS = 5.0  # between further lookups
_NO_TIMESTAMP = -1
_log = structlog.get_logger(__name__)


class _PublishProgress(Struct):
    """The progress of publishing a list of messages, at most ``max_messages`` per batch."""

    published: int = 0
    max_messages: int = MAX_BATCH_MESSAGES
    fenced: bool = False


class TopicPublisher:
    """Publishes to one topic, the messages of a source to one partition, and notices when the topic loses them.

    It outlasts connections. Not for concurrent use.
    """

    def __init__(self, name: str, settings: KafkaSettings, clock: Clock, connector: KafkaConnector) -> None:
        self.name = name
        self._settings = settings
        self._clock = clock
        self._connector = connector
        self._timeout = settings.request_timeout.total_seconds()
        self._use_timestamps = True  # until the brokers reject one
        self._partitions: dict[StateKey, int] = {}
        self._memories: dict[int, TargetMemory] = {}  # by partition
        self._rate_limiter = RateLimiter(clock)

    async def publish(self, source: StateKey, messages: Sequence[Message]) -> None:
        """Publish messages of one source; return when all replicas have them.

        Raises:
            TransientError: Some messages may not be stored; all of them may be published again.
            RejectedRecordError: The brokers will never accept one of the messages.
        """
        progress = _PublishProgress()
        while progress.published < len(messages):
            connection = await self._connector.ensure_connected()
            topic = connection.topics[self.name]
            partition = self._partition_for(source, topic)
            remaining = messages[progress.published :]
            for builder, sent in build_batches(
                remaining, self._timestamp(), connection.producer.create_batch, progress.max_messages
            ):
                try:
                    async with self._clock.timeout(self._timeout):
                        delivery = await connection.producer.send_batch(builder, self.name, partition=partition)
                        await self._wait_delivered(connection, topic, partition, delivery)
                except TimeoutError as error:
                    await self._connector.close()
                    text = f"topic {self.name}: no acknowledgment within {self._timeout:g} s"
                    raise TransientError(
                        await with_diagnosis(text, self._settings, self._clock, self.name, partition)
                    ) from error
                except (KafkaError, AssertionError) as error:  # AssertionError: the partition no longer exists
                    await self._connector.close()
                    self._recover_or_raise(error, sent, progress)
                    break  # continue with a new producer
                except BaseException:
                    self._connector.abandon()
                    raise
                progress.published += len(sent)
                self._remember(topic, partition, delivery.result(), len(sent))

    async def _wait_delivered(
        self, connection: KafkaConnection, topic: Topic, partition: int, delivery: asyncio.Future[Any]
    ) -> None:
        """Wait for an acknowledgment; while it does not arrive, look whether the leader has moved.

        Raises:
            KafkaError: The delivery failed, or the leader has moved, and the producer does not know its address.
        """
        delay = FIRST_LOOKUP_SECONDS
        try:
            while not await completes_within(delay, self._clock, first_of(delivery)):
                if await has_moved(connection, topic, partition, self._settings) and not delivery.done():
                    raise KafkaConnectionError(f"partition {partition} has moved to another broker or address")
                delay = LOOKUP_SECONDS
        finally:
            delivery.cancel()

    def _recover_or_raise(self, error: Exception, messages: Sequence[Message], progress: _PublishProgress) -> None:
        """Change what made the batch fail (batch size, timestamps or producer), so that it can be resent at once.

        Raises:
            TransientError: The failure cannot be fixed here.
            RejectedRecordError: The broker will never accept the only message of the batch.
        """
        if isinstance(error, REJECTED) and len(messages) > 1:
            progress.max_messages = len(messages) // 2  # until the rejected message is alone
            if isinstance(error, TOO_LARGE):
                self._connector.max_batch_bytes = max(sum(message.size for message in messages) // 2, 1)
        elif isinstance(error, REJECTED):
            raise RejectedRecordError(
                f"topic {self.name} rejected the record: {describe(error)}", frozenset({messages[0].position})
            )
        elif isinstance(error, InvalidTimestampError) and self._use_timestamps:
            self._use_timestamps = False
            hint = "set this host's clock; records are sent without timestamps until then"
            _log.warning("timestamps_rejected", topic=self.name, hint=hint)
        elif isinstance(error, FENCED) and not progress.fenced:
            progress.fenced = True
            reason = type(error).__name__
            self._rate_limiter.log(_log.info, self.name, "producer_recreated", topic=self.name, reason=reason)
        else:
            denied = describe_denial(error, self.name, self._settings)
            raise TransientError(denied or f"topic {self.name}: {describe(error)}")

    def _timestamp(self) -> int:
        return self._clock.now().wall // MILLISECOND if self._use_timestamps else _NO_TIMESTAMP

    def _partition_for(self, source: StateKey, topic: Topic) -> int:
        """Return a source's partition; it stays the same as long as that partition exists."""
        if self._partitions.get(source) not in topic.partitions:
            self._partitions[source] = choose_partition(source, sorted(topic.partitions))
        return self._partitions[source]

    # --- topics that lose records ---

    def complete_snapshot(self, source: StateKey, records: Sequence[Record]) -> None:
        """Remember a complete snapshot if the published ``records`` end one."""
        memory = self._memories.get(self._partitions.get(source, -1))
        if memory and any(record.type == "snapshot_completed" for record in records):
            memory.complete_snapshot()

    async def check(self, connection: KafkaConnection) -> None:
        """Compare the topic, as it is now, with what was published to it.

        Raises:
            TransientError: The brokers cannot be reached over the producer's connections.
        """
        if self._memories:
            await self.observe(connection, await describe_topic(connection, self.name, self._settings))

    async def observe(self, connection: KafkaConnection, topic: Topic | TopicMetadata) -> None:
        """Compare the topic with what was published to it."""
        for number, memory in list(self._memories.items()):  # publishing may add some meanwhile
            partition = topic.partitions.get(number)
            if partition is None:
                memory.observe(TargetState(topic.id, 0, -1))
            elif offsets := await read_offsets(connection, self.name, number, partition.leader_id):
                memory.observe(TargetState(topic.id, offsets[0], offsets[1] - 1))

    def take_loss(self) -> bool:
        """Return whether the topic has lost what was published, once per loss; then forget what it had."""
        lost = any(memory.take_loss() for memory in self._memories.values())
        if lost:
            self._memories.clear()
            self._partitions.clear()
        return lost

    def _remember(self, topic: Topic, partition: int, metadata: Any, count: int) -> None:
        """Remember where ``count`` acknowledged messages are stored."""
        if metadata.offset < 0:  # unknown: the broker had the batch already
            return
        memory = self._memories.setdefault(partition, TargetMemory(topic.id))
        last = metadata.offset + count - 1
        memory.acknowledge(last)
        if metadata.log_start_offset is not None:
            memory.observe(TargetState(topic.id, metadata.log_start_offset, last))
