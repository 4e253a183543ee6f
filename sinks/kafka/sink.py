"""The Kafka sink: the records of a source go in order to one partition; published means that all replicas have them.

Invariants:
- At any time one batch is in flight, and the next is sent only when all in-sync replicas have it. Therefore the first
  occurrences of records are in order after any failure (P5 in docs/reliability.md).
- After any error the producer is abandoned and all its tasks end: the next producer starts with new sequence numbers
  and new connections, and files are read again.
- Every wait is bounded: connecting and each acknowledgment by the setting ``request_timeout``, closing by a few
  seconds.
- The current state follows the records: changes that were not acknowledged are computed again from the same state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from aiokafka.errors import InvalidTimestampError, KafkaConnectionError, KafkaError
from msgspec import Struct

from bridge.core.errors import RejectedRecordError, TransientError
from bridge.core.time import MILLISECOND
from bridge.telemetry.rate_limit import RateLimiter
from sinks import state_table
from sinks.kafka import state_topic_reader
from sinks.kafka.admin import Partition, Topic
from sinks.kafka.connection import (
    KafkaConnection,
    connect,
    describe_topic,
    has_moved,
    read_offsets,
    with_diagnosis,
)
from sinks.kafka.error_messages import FENCED, REJECTED, TOO_LARGE, describe, describe_denial
from sinks.kafka.messages import (
    MAX_BATCH_MESSAGES,
    Message,
    build_batches,
    choose_partition,
    event_messages,
    find_oversized,
    state_messages,
)
from sinks.retention import describe_short_retention
from sinks.state_table import StateKey, TableState
from sinks.target_memory import TargetMemory, TargetState

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from bridge.core.records import Record
    from config.sinks.kafka import KafkaSettings
    from sinks.kafka.patched_producer import Producer

_log = structlog.get_logger(__name__)
FIRST_LOOKUP_SECONDS = 2.0  # without an acknowledgment, until the leader's address is looked up
LOOKUP_SECONDS = 5.0  # between further lookups
_NO_TIMESTAMP = -1


class _SourceBatch(NamedTuple):
    """Consecutive records of one source, and their messages."""

    source: StateKey
    records: Sequence[Record]
    messages: Sequence[Message]


class _PublishProgress(Struct):
    """The progress of publishing a list of messages, at most ``max_messages`` per batch."""

    published: int = 0
    max_messages: int = MAX_BATCH_MESSAGES
    fenced: bool = False


def _get_event_topic(connection: KafkaConnection) -> Topic:
    return connection.event_topic


def _get_state_topic(connection: KafkaConnection) -> Topic:
    assert connection.state_topic  # noqa: S101 (only called if state_topic is set)
    return connection.state_topic


class KafkaSink:
    """Publishes records to a topic, and optionally the current state to another topic.

    A retention shorter than ``snapshot_interval`` causes a warning.
    """

    def __init__(self, settings: KafkaSettings, clock: Clock, snapshot_interval: timedelta = timedelta(0)) -> None:
        self._settings = settings
        self._snapshot_interval = snapshot_interval
        self._clock = clock
        self._timeout = settings.request_timeout.total_seconds()
        self._connection: KafkaConnection | None = None
        self._abandoned: list[Producer] = []
        self._max_batch_bytes = settings.max_request_size  # lower if the brokers accept less
        self._use_timestamps = True  # until the brokers reject one
        self._partitions: dict[tuple[str, StateKey], int] = {}
        self._table_states: dict[StateKey, TableState] = {}
        self._memories: dict[tuple[str, int], TargetMemory] = {}  # by topic and partition
        self.resets = 0
        """How often a topic has lost what was published."""
        self._warned: set[tuple[str, ...]] = set()
        self._rate_limiter = RateLimiter(clock)
        # aiokafka raises all errors that it logs, and logs ten times a second while a broker is down.
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

    async def start(self) -> None:
        """Connect, and create missing topics.

        Raises:
            TransientError: No server is usable, or a topic does not exist.
            CompactionError: A topic has the wrong cleanup policy.
        """
        await self._ensure_connected()

    async def publish(self, batch: Sequence[Record]) -> None:
        """Publish records; return when all replicas have them and the current state includes them.

        Raises:
            TransientError: Some records may not be stored; the whole batch may be published again.
            RejectedRecordError: Some records are too large or otherwise rejected for good.
        """
        settings = self._settings
        source_batches = [
            _SourceBatch(source, records, event_messages(source, records, settings.encoding, settings.cloudevents))
            for source, records in state_table.group_by_source(batch)
        ]
        self._reject_oversized(source_batches)
        for source_batch in source_batches:
            await self._publish_messages(source_batch.source, source_batch.messages, _get_event_topic)
            self._complete_snapshot(source_batch, settings.topic)
            if settings.state_topic:
                await self._update_state(source_batch)
                self._complete_snapshot(source_batch, settings.state_topic)
        self._forget_lost_topics()

    async def check_target(self) -> None:
        """Compare the topics with what was published, and create them again if they are gone.

        Raises:
            TransientError, CompactionError: Like ``start``.
        """
        connection = await self._ensure_connected()
        try:
            for name in {name for name, _ in self._memories}:
                metadata = await describe_topic(connection, name, self._settings)
                await self._observe(connection, name, *metadata)
        except TransientError:  # the brokers may have other addresses now
            self._abandon()
        except BaseException:
            self._abandon()
            raise
        self._forget_lost_topics()
        await self._ensure_connected()

    async def close(self) -> None:
        """Close all connections in a bounded time. Idempotent."""
        self._abandon()
        await self._close_abandoned()

    # --- messages ---

    async def _publish_messages(
        self, source: StateKey, messages: Sequence[Message], select_topic: Callable[[KafkaConnection], Topic]
    ) -> None:
        progress = _PublishProgress()
        while progress.published < len(messages):
            connection = await self._ensure_connected()
            topic = select_topic(connection)
            partition = self._partition_for(topic, source)
            remaining = messages[progress.published :]
            for builder, sent in build_batches(
                remaining, self._timestamp(), connection.producer.create_batch, progress.max_messages
            ):
                try:
                    async with asyncio.timeout(self._timeout):
                        delivery = await connection.producer.send_batch(builder, topic.name, partition=partition)
                        await self._wait_delivered(connection, topic, partition, delivery)
                except TimeoutError as error:
                    await self._abandon_and_close()
                    text = f"topic {topic.name}: no acknowledgment within {self._timeout:g} s"
                    raise TransientError(await with_diagnosis(text, self._settings, topic.name, partition)) from error
                except (KafkaError, AssertionError) as error:  # AssertionError: the partition no longer exists
                    await self._abandon_and_close()
                    self._recover_or_raise(error, topic.name, sent, progress)
                    break  # continue with a new producer
                except BaseException:
                    self._abandon()
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
            while not (await asyncio.wait({delivery}, timeout=delay))[0]:
                if await has_moved(connection, topic, partition, self._settings) and not delivery.done():
                    raise KafkaConnectionError(f"partition {partition} has moved to another broker or address")
                delay = LOOKUP_SECONDS
            await delivery
        finally:
            delivery.cancel()

    def _recover_or_raise(
        self, error: Exception, topic: str, messages: Sequence[Message], progress: _PublishProgress
    ) -> None:
        """Change what made the batch fail (batch size, timestamps or producer), so that it can be resent at once.

        Raises:
            TransientError: The failure cannot be fixed here.
            RejectedRecordError: The broker will never accept the only message of the batch.
        """
        if isinstance(error, REJECTED) and len(messages) > 1:
            progress.max_messages = len(messages) // 2  # until the rejected message is alone
            if isinstance(error, TOO_LARGE):
                self._max_batch_bytes = max(sum(message.size for message in messages) // 2, 1)
        elif isinstance(error, REJECTED):
            raise RejectedRecordError(
                f"topic {topic} rejected the record: {describe(error)}", frozenset({messages[0].position})
            )
        elif isinstance(error, InvalidTimestampError) and self._use_timestamps:
            self._use_timestamps = False
            hint = "set this host's clock; records are sent without timestamps until then"
            _log.warning("timestamps_rejected", topic=topic, hint=hint)
        elif isinstance(error, FENCED) and not progress.fenced:
            progress.fenced = True
            self._rate_limiter.log(_log.info, topic, "producer_recreated", topic=topic, reason=type(error).__name__)
        else:
            denied = describe_denial(error, topic, self._settings)
            raise TransientError(denied or f"topic {topic}: {describe(error)}")

    def _reject_oversized(self, source_batches: Sequence[_SourceBatch]) -> None:
        limit = self._settings.max_request_size
        messages = (message for source_batch in source_batches for message in source_batch.messages)
        if positions := frozenset(find_oversized(messages, limit)):
            raise RejectedRecordError(f"record is larger than max_request_size ({limit} bytes)", positions)

    def _timestamp(self) -> int:
        return self._clock.now().wall // MILLISECOND if self._use_timestamps else _NO_TIMESTAMP

    def _partition_for(self, topic: Topic, source: StateKey) -> int:
        """Return a source's partition; it stays the same as long as that partition exists."""
        key = (topic.name, source)
        if self._partitions.get(key) not in topic.partitions:
            self._partitions[key] = choose_partition(source, sorted(topic.partitions))
        return self._partitions[key]

    # --- topics that lose records ---

    def _remember(self, topic: Topic, partition: int, metadata: Any, count: int) -> None:
        """Remember where ``count`` acknowledged messages are stored."""
        if metadata.offset < 0:  # unknown: the broker had the batch already
            return
        memory = self._memories.setdefault((topic.name, partition), TargetMemory(topic.id))
        last = metadata.offset + count - 1
        memory.acknowledge(last)
        if metadata.log_start_offset is not None:
            memory.observe(TargetState(topic.id, metadata.log_start_offset, last))

    def _complete_snapshot(self, source_batch: _SourceBatch, topic: str) -> None:
        key = (topic, self._partitions.get((topic, source_batch.source), -1))
        if key in self._memories and any(each.type == "snapshot_completed" for each in source_batch.records):
            self._memories[key].complete_snapshot()

    async def _observe(
        self, connection: KafkaConnection, name: str, identity: str, partitions: Mapping[int, Partition]
    ) -> None:
        """Compare a topic with what was published to it."""
        for (topic, number), memory in list(self._memories.items()):
            if topic != name:
                continue
            partition = partitions.get(number)
            if partition is None:
                memory.observe(TargetState(identity, 0, -1))
            elif offsets := await read_offsets(connection, name, number, partition.leader_id):
                memory.observe(TargetState(identity, offsets[0], offsets[1] - 1))

    def _forget_lost_topics(self) -> None:
        """Count resets, and forget what the old topics had: the next connection reads everything again."""
        for name in sorted({topic for (topic, _), memory in self._memories.items() if memory.take_loss()}):
            self._memories = {key: memory for key, memory in self._memories.items() if key[0] != name}
            self._partitions = {key: partition for key, partition in self._partitions.items() if key[0] != name}
            if name == self._settings.state_topic:
                self._table_states.clear()
            self._max_batch_bytes = self._settings.max_request_size
            self._abandon()
            self.resets += 1
            _log.warning("target_reset", target=f"topic {name}", detail="created again or emptied; a snapshot follows")

    # --- the current state ---

    async def _update_state(self, source_batch: _SourceBatch) -> None:
        topic = _get_state_topic(await self._ensure_connected())
        state = self._table_states.get(source_batch.source)
        if state is None:
            partition = self._partition_for(topic, source_batch.source)
            options = (await self._ensure_connected()).options
            keys = await state_topic_reader.read_keys(
                source_batch.source, topic.name, partition, self._settings, options
            )
            state = TableState(frozenset(keys))
        state, changes = state_table.apply_records(state, source_batch.records)
        limit = min(self._settings.max_request_size, topic.max_batch_bytes or self._settings.max_request_size)
        try:
            await self._publish_messages(source_batch.source, state_messages(changes, limit), _get_state_topic)
        except RejectedRecordError as error:
            # Not reported as a rejection, because the event topic has accepted the records.
            raise TransientError(f"state entry rejected even without labels: {error}") from error
        self._table_states[source_batch.source] = state

    # --- the connection ---

    async def _ensure_connected(self) -> KafkaConnection:
        while self._connection is None:
            await self._close_abandoned()
            self._connection = await connect(self._settings, self._clock, self._max_batch_bytes)
            self._max_batch_bytes = self._connection.max_batch_bytes
            self._warn_about_topics(self._connection)
            try:
                for topic in filter(None, (self._connection.event_topic, self._connection.state_topic)):
                    await self._observe(self._connection, topic.name, topic.id, topic.partitions)
            except BaseException:  # a timeout of the pump cancels this
                self._abandon()
                raise
            self._forget_lost_topics()
        return self._connection

    def _warn_about_topics(self, connection: KafkaConnection) -> None:
        for topic in (connection.event_topic, connection.state_topic):
            if topic is None:
                continue
            if topic.cleanup_policy is None:
                hint = "allow DescribeConfigs on the topic"
                self._warn_once("topic_config_unreadable", topic=topic.name, hint=hint)
            if topic.retention is not None and topic.retention < self._snapshot_interval:
                text = describe_short_retention("retention.ms", topic.retention, self._snapshot_interval)
                self._warn_once("topic_config_warning", detail=f"{topic.name}: {text}")

    def _warn_once(self, event: str, **fields: str) -> None:
        if (event, *fields.values()) not in self._warned:
            self._warned.add((event, *fields.values()))
            _log.warning(event, **fields)

    def _abandon(self) -> None:
        if self._connection is not None:
            self._abandoned.append(self._connection.producer)
            self._connection = None

    async def _abandon_and_close(self) -> None:
        self._abandon()
        await self._close_abandoned()

    async def _close_abandoned(self) -> None:
        while self._abandoned:
            producer = self._abandoned[0]
            await producer.abandon()
            with contextlib.suppress(ValueError):  # a concurrent close() may have removed it
                self._abandoned.remove(producer)
