"""The current state in a compacted topic: an entry per running container, and one per source.

At the first write of a source its keys are read from the topic, so that its next snapshot removes obsolete entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from bridge.core.errors import RejectedRecordError, TransientError
from sinks.kafka.admin import REQUEST_SECONDS
from sinks.kafka.aiokafka_patches import start_client, stop_consumer
from sinks.kafka.errors import describe, principal
from sinks.kafka.messages import decode_key, state_messages
from sinks.kafka.publisher import TopicPublisher
from sinks.state_table import StateKey, TableState, apply_records, group_by_source

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from bridge.core.records import Record
    from config.sinks.kafka import KafkaSettings
    from sinks.kafka.connection import KafkaConnector

_POLL_MILLISECONDS = 200


class StateTopic(TopicPublisher):
    """Keeps a compacted topic up to date. Not for concurrent use."""

    def __init__(self, name: str, settings: KafkaSettings, clock: Clock, connector: KafkaConnector) -> None:
        super().__init__(name, settings, clock, connector)
        self._table_states: dict[StateKey, TableState] = {}

    def take_loss(self) -> bool:
        """Like ``TopicPublisher.take_loss``; then forget which entries the topic had, too."""
        lost = super().take_loss()
        if lost:
            self._table_states.clear()
        return lost

    async def apply(self, batch: Sequence[Record]) -> None:
        """Apply ``batch`` to the topic; return when all replicas have the changes.

        Raises:
            TransientError: Some changes may not be stored; the same batch may be applied again.
        """
        for source, records in group_by_source(batch):
            state = self._table_states.get(source) or await self._read_state(source)
            state, changes = apply_records(state, records)
            limit = self._settings.max_request_size
            topic = (await self._connector.ensure_connected()).topics[self.name]
            messages = state_messages(changes, min(limit, topic.max_batch_bytes or limit))
            try:
                await self.publish(source, messages)
            except RejectedRecordError as error:
                # Not reported as a rejection, because the event topic has accepted the records.
                raise TransientError(f"state entry rejected even without labels: {error}") from error
            self._table_states[source] = state
            self.complete_snapshot(source, records)

    async def _read_state(self, source: StateKey) -> TableState:
        """Read the keys of a source's containers.

        Raises:
            TransientError: The topic cannot be read, or not in time.
        """
        settings = self._settings
        connection = await self._connector.ensure_connected()
        partition = TopicPartition(self.name, self._partition_for(source, connection.topics[self.name]))
        consumer = AIOKafkaConsumer(
            bootstrap_servers=list(settings.bootstrap_servers),
            request_timeout_ms=int(REQUEST_SECONDS * 1000),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_POLL_MILLISECONDS // 2,
            **connection.options,
        )
        try:
            async with self._clock.timeout(self._timeout):
                await start_client(consumer)
                return TableState(frozenset(await read_keys(consumer, partition, source)))
        except TimeoutError as error:
            raise TransientError(f"state_topic {self.name} cannot be read: no response in time") from error
        except TopicAuthorizationFailedError as error:
            raise TransientError(
                f"{principal(settings)} is not authorized to read state_topic {self.name}; allow Read on it"
            ) from error
        except KafkaError as error:
            raise TransientError(f"state_topic {self.name} cannot be read: {describe(error)}") from error
        finally:
            await stop_consumer(consumer, self._clock)


async def read_keys(consumer: AIOKafkaConsumer, topic_partition: TopicPartition, source: StateKey) -> set[StateKey]:
    """Return the keys of a source's containers in a partition."""
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
