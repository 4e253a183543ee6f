"""The Kafka sink: the records of a source go in order to one partition; published means that all replicas have them.

Invariants:
- At any time one batch is in flight, and the next is sent only when all in-sync replicas have it. Therefore the first
  occurrences of records are in order after any failure (P5).
- After any error the producer is abandoned and all its tasks end: the next producer starts with new sequence numbers
  and new connections, and files are read again.
- Every wait is bounded: connecting and each acknowledgement by the setting ``request_timeout``, closing by a few
  seconds.
- The current state follows the records: changes that were not acknowledged are computed again from the same state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import structlog
from aiokafka.errors import InvalidTimestampError, KafkaError
from msgspec import Struct

from bridge.core.errors import RefusedRecordError, TransientError
from bridge.core.time import MILLISECOND
from bridge.telemetry.rate_limit import RateLimiter
from sinks import current
from sinks.current import Row, State
from sinks.kafka import table
from sinks.kafka.cluster import Topic
from sinks.kafka.connection import Link, connect, explained
from sinks.kafka.failures import POISONED, REFUSED, TOO_LARGE, not_allowed, said
from sinks.kafka.messages import MOST, Message, batches, event_messages, partition_of, state_messages, too_large

if TYPE_CHECKING:
    from bridge.core.events import Record
    from bridge.core.ports import Clock
    from config.sinks.kafka import KafkaSettings
    from sinks.kafka.producer import Producer

_log = structlog.get_logger(__name__)
_NO_TIMESTAMP = -1


class _Run(NamedTuple):
    """Consecutive records of one source, and their messages."""

    source: Row
    records: Sequence[Record]
    messages: Sequence[Message]


class _Delivery(Struct):
    """The progress of publishing a list of messages, at most ``max_messages`` per batch."""

    done: int = 0
    most: int = MOST
    poisoned: bool = False


def _events(link: Link) -> Topic:
    return link.events


def _state(link: Link) -> Topic:
    assert link.state  # noqa: S101 (only called if state_topic is set)
    return link.state


class KafkaSink:
    """Publishes records to a topic, and optionally the current state to another topic."""

    def __init__(self, settings: KafkaSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._timeout = settings.request_timeout.total_seconds()
        self._link: Link | None = None
        self._given_up: list[Producer] = []
        self._limit = settings.max_request_size  # lower if the brokers accept less
        self._timestamps = True  # until the brokers reject one
        self._partitions: dict[tuple[str, Row], int] = {}
        self._states: dict[Row, State] = {}
        self._warned: set[str] = set()
        self._limiter = RateLimiter(clock)
        # aiokafka raises all errors that it logs, and logs ten times a second while a broker is down.
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

    async def start(self) -> None:
        """Connect, and create missing topics.

        Raises:
            TransientError: No server is usable, or a topic does not exist.
            CompactionError: A topic has the wrong cleanup policy.
        """
        await self._connected()

    async def publish(self, batch: Sequence[Record]) -> None:
        """Publish records; return when all replicas have them and the current state includes them.

        Raises:
            TransientError: Some records may not be stored; the whole batch may be published again.
            RejectedRecordError: Some records are too large or otherwise rejected for good.
        """
        settings = self._settings
        runs = [
            _Run(source, records, event_messages(source, records, settings.encoding, settings.cloudevents))
            for source, records in current.runs(batch)
        ]
        self._refuse_too_large(runs)
        for run in runs:
            await self._deliver(run.source, run.messages, _events)
            if settings.state_topic:
                await self._update_state(run)

    async def close(self) -> None:
        """Close all connections in a bounded time. Idempotent."""
        self._give_up()
        await self._end()

    # --- messages ---

    async def _deliver(self, source: Row, messages: Sequence[Message], which: Callable[[Link], Topic]) -> None:
        delivery = _Delivery()
        while delivery.done < len(messages):
            link = await self._connected()
            topic = which(link)
            partition = self._partition(topic, source)
            remaining = messages[delivery.done :]
            for builder, part in batches(remaining, self._timestamp(), link.producer.create_batch, delivery.most):
                try:
                    async with asyncio.timeout(self._timeout):
                        await (await link.producer.send_batch(builder, topic.name, partition=partition))
                except TimeoutError as error:
                    await self._end_after_error()
                    text = f"topic {topic.name}: no acknowledgement within {self._timeout:g} s"
                    raise TransientError(await explained(text, self._settings, topic.name, partition)) from error
                except (KafkaError, AssertionError) as error:  # AssertionError: the partition no longer exists
                    await self._end_after_error()
                    self._change_or_raise(error, topic.name, part, delivery)
                    break  # continue with a new producer
                except BaseException:
                    self._give_up()
                    raise
                delivery.done += len(part)

    def _change_or_raise(self, error: Exception, topic: str, part: Sequence[Message], delivery: _Delivery) -> None:
        """Adjust the cause of a failed batch, if possible, so that it can be sent again at once.

        Raises:
            TransientError: The cause cannot be adjusted here.
            RejectedRecordError: The broker will never accept the only message of the batch.
        """
        if isinstance(error, REFUSED) and len(part) > 1:
            delivery.most = len(part) // 2  # until the rejected message is alone
            if isinstance(error, TOO_LARGE):
                self._limit = max(sum(message.size for message in part) // 2, 1)
        elif isinstance(error, REFUSED):
            raise RefusedRecordError(f"topic {topic} rejected the record: {said(error)}", frozenset({part[0].position}))
        elif isinstance(error, InvalidTimestampError) and self._timestamps:
            self._timestamps = False
            hint = "set this host's clock; records are sent without timestamps until then"
            _log.warning("timestamps_rejected", topic=topic, hint=hint)
        elif isinstance(error, POISONED) and not delivery.poisoned:
            delivery.poisoned = True
            self._limiter.log(_log.info, topic, "producer_recreated", topic=topic, reason=type(error).__name__)
        else:
            denied = not_allowed(error, topic, self._settings)
            raise TransientError(denied or f"topic {topic}: {said(error)}")

    def _refuse_too_large(self, runs: Sequence[_Run]) -> None:
        most = self._settings.max_request_size
        if positions := frozenset(too_large((message for run in runs for message in run.messages), most)):
            raise RefusedRecordError(f"record is larger than max_request_size ({most} bytes)", positions)

    def _timestamp(self) -> int:
        return self._clock.now().wall // MILLISECOND if self._timestamps else _NO_TIMESTAMP

    def _partition(self, topic: Topic, source: Row) -> int:
        """Return a source's partition; it stays the same as long as that partition exists."""
        key = (topic.name, source)
        if self._partitions.get(key) not in topic.partitions:
            self._partitions[key] = partition_of(source, sorted(topic.partitions))
        return self._partitions[key]

    # --- the current state ---

    async def _update_state(self, run: _Run) -> None:
        topic = _state(await self._connected())
        state = self._states.get(run.source)
        if state is None:
            partition = self._partition(topic, run.source)
            options = (await self._connected()).options
            state = State(frozenset(await table.rows_of(run.source, topic.name, partition, self._settings, options)))
        state, changes = current.fold(state, run.records)
        most = min(self._settings.max_request_size, topic.max_bytes or self._settings.max_request_size)
        try:
            await self._deliver(run.source, state_messages(changes, most), _state)
        except RefusedRecordError as error:
            # No rejection for the caller: the topic of the records has accepted the records.
            raise TransientError(f"state entry rejected even without labels: {error}") from error
        self._states[run.source] = state

    # --- the connection ---

    async def _connected(self) -> Link:
        if self._link is None:
            await self._end()
            self._link = await connect(self._settings, self._clock, self._limit)
            self._limit = self._link.limit
            self._warn(self._link)
        return self._link

    def _warn(self, link: Link) -> None:
        unchecked = {topic.name for topic in (link.events, link.state) if topic and topic.policy is None}
        for name in unchecked - self._warned:
            _log.warning("topic_config_unreadable", topic=name, hint="allow DescribeConfigs on the topic")
        self._warned |= unchecked

    def _give_up(self) -> None:
        if self._link is not None:
            self._given_up.append(self._link.producer)
            self._link = None

    async def _end_after_error(self) -> None:
        self._give_up()
        await self._end()

    async def _end(self) -> None:
        while self._given_up:
            producer = self._given_up[0]
            await producer.abandon()
            with contextlib.suppress(ValueError):  # a concurrent close() may have removed it
                self._given_up.remove(producer)
