"""The Kafka sink: the records of a source go in order to one partition; published means that all replicas have them.

Invariants:
- After any error the producer is abandoned and all its tasks end: the next producer starts with new sequence numbers
  and new connections, and files are read again.
- Every wait is bounded: connecting and each acknowledgment by the setting ``request_timeout``, closing by a few
  seconds.
- The current state follows the records: changes that were not acknowledged are computed again from the same state.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from bridge.core.errors import RejectedRecordError, TransientError
from sinks.kafka.connection import KafkaConnection, KafkaConnector
from sinks.kafka.messages import event_messages, find_oversized
from sinks.kafka.publisher import TopicPublisher
from sinks.kafka.state_table import StateTopic
from sinks.state_table import group_by_source
from sinks.target_memory import RESET_DETAIL, RESET_HINT, describe_short_retention

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from bridge.core.records import Record
    from config.sinks.kafka import KafkaSettings
    from sinks.kafka.admin import Topic

_log = structlog.get_logger(__name__)


class KafkaSink:
    """Publishes records to a topic, and optionally the current state to another topic.

    A retention shorter than ``snapshot_interval`` causes a warning.
    """

    def __init__(self, settings: KafkaSettings, clock: Clock, snapshot_interval: timedelta = timedelta(0)) -> None:
        self._settings = settings
        self._snapshot_interval = snapshot_interval
        self._connector = KafkaConnector(settings, clock, self._on_connected)
        self._events = TopicPublisher(settings.topic, settings, clock, self._connector)
        self._state = (
            StateTopic(settings.state_topic, settings, clock, self._connector) if settings.state_topic else None
        )
        self._publishers = [self._events, *([self._state] if self._state else [])]
        self.resets = 0
        """How often a topic has lost what was published."""
        self._warned: set[tuple[str, ...]] = set()
        # aiokafka raises all errors that it logs, and logs ten times a second while a broker is down.
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

    async def start(self) -> None:
        """Connect, and create missing topics.

        Raises:
            TransientError: No server is usable, or a topic does not exist.
            CompactionError: A topic has the wrong cleanup policy.
        """
        await self._connector.ensure_connected()

    async def publish(self, batch: Sequence[Record]) -> None:
        """Publish records; return when all replicas have them and the current state includes them.

        Raises:
            TransientError: Some records may not be stored; the whole batch may be published again.
            RejectedRecordError: Some records are too large or otherwise rejected for good.
        """
        settings = self._settings
        by_source = [
            (source, records, event_messages(source, records, settings.encoding, settings.cloudevents))
            for source, records in group_by_source(batch)
        ]
        limit = settings.max_request_size
        all_messages = (message for _, _, messages in by_source for message in messages)
        if positions := frozenset(find_oversized(all_messages, limit)):
            raise RejectedRecordError(f"record is larger than max_request_size ({limit} bytes)", positions)
        for source, records, messages in by_source:
            await self._events.publish(source, messages)
            self._events.complete_snapshot(source, records)
        if self._state:
            await self._state.apply(batch)
        self._count_resets()

    async def check_target(self) -> None:
        """Compare the topics with what was published, and create them again if they are gone.

        Raises:
            TransientError, CompactionError: Like ``start``.
        """
        connection = await self._connector.ensure_connected()
        try:
            for publisher in self._publishers:
                await publisher.check(connection)
        except TransientError:  # the brokers may have other addresses now
            self._connector.abandon()
        except BaseException:
            self._connector.abandon()
            raise
        self._count_resets()
        await self._connector.ensure_connected()

    async def close(self) -> None:
        """Close all connections in a bounded time. Idempotent."""
        await self._connector.close()

    async def _on_connected(self, connection: KafkaConnection) -> None:
        for publisher in self._publishers:
            topic = connection.topics[publisher.name]
            self._warn_about(topic)
            await publisher.observe(connection, topic)
        self._count_resets()

    def _count_resets(self) -> None:
        """Count resets, and forget what the old topics had: the next connection reads everything again."""
        for publisher in self._publishers:
            if publisher.take_loss():
                self._connector.max_batch_bytes = self._settings.max_request_size
                self._connector.abandon()
                self.resets += 1
                _log.warning("target_reset", target=f"topic {publisher.name}", detail=RESET_DETAIL, hint=RESET_HINT)

    def _warn_about(self, topic: Topic) -> None:
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
