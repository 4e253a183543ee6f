"""Reader of the partitions of a Kafka topic that a consumer group assigns to this process.

The state of a partition comes from all of its records. So a reader that gains a partition reads it from its beginning,
and one that loses it forgets its sources. The group's offsets say which records have been processed by some reader:
those before the offset only complete the state, those after it are changes. Offsets are committed after the records
have been processed, so each change is delivered at least once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, GroupAuthorizationFailedError, IllegalStateError, KafkaError

from bridge.consumer.kafka import KafkaReader, get_messages, location_of
from bridge.consumer.record_decoder import Source
from bridge.consumer.record_reader import Message, ReadRecord
from bridge.core.time import SECOND
from bridge.task_groups import completes_within
from sinks.kafka.admin import REQUEST_SECONDS
from sinks.kafka.aiokafka_patches import STOP_SECONDS, start_client, sticky_assignor
from sinks.kafka.errors import principal

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from config.sinks.kafka import KafkaSettings

COMMIT_SECONDS = 1.0
SESSION_SECONDS = 10.0  # without heartbeats, after which others get the partitions of a reader
_MAX_BATCH = 200  # at most what can be processed within aiokafka's limit of 5 minutes between two batches


class KafkaGroupReader(KafkaReader):
    """Reads the partitions that the group assigns; the caller calls ``begin`` and ``end`` for each record.

    A rebalance may happen at any time. What is left of a batch then is read again, by this reader or the next one.

    Args:
        settings: The topic.
        clock: Source of time.
        group: The id of the consumer group.
        forget: Called for each source of a partition that was lost, while the next batch is awaited.
    """

    def __init__(self, settings: KafkaSettings, clock: Clock, *, group: str, forget: Callable[[Source], None]) -> None:
        super().__init__(settings, clock, start_position="beginning", follow=True)
        self._group = group
        self._forget = forget
        self._membership: _Membership | None = None
        self._applied = 0  # the generation of the membership whose partitions are being read
        self._partitions: dict[str, TopicPartition] = {}  # those, by location
        self._sources: dict[TopicPartition, set[Source]] = {}
        self._committed: dict[TopicPartition, int] = {}  # the group's offsets
        self._replayed_up_to: dict[TopicPartition, int] = {}  # of partitions whose state is not complete yet
        self._committed_at = 0

    def begin(self, each: ReadRecord) -> bool:
        """Begin to process a record; return false if the rest of the batch has to be dropped, after a rebalance."""
        if not self._is_current():
            return False
        self._sources[self._partitions[each.message.location]].add(each.record.source)
        return True

    def is_new(self, message: Message) -> bool:
        """Return whether no reader of the group has processed and committed a message."""
        return message.number >= self._replayed_up_to.get(self._partitions[message.location], 0)

    async def end(self, message: Message) -> None:
        """Say that a message has been processed."""
        if self._is_current():
            self._next_offsets[self._partitions[message.location]] = message.number + 1
            if self._membership is not None and self._is_commit_due():
                await self.try_commit(self._membership.consumer, self.processed(), self._timeout)

    def processed(self) -> dict[TopicPartition, int]:
        """Return the offsets that can be committed now."""
        if not self._is_current():
            return {}
        offsets = ((each, self._next_offsets[each]) for each in self._partitions.values())
        return {each: offset for each, offset in offsets if offset > self._committed[each]}

    async def try_commit(
        self, consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int], seconds: float
    ) -> None:
        """Commit offsets within a time; if that fails, the records are processed again, or reading fails, too."""
        with contextlib.suppress(KafkaError):
            await completes_within(seconds, self._clock, self._commit(consumer, offsets))

    @property
    def _timeout(self) -> float:
        return super()._timeout + 2 * SESSION_SECONDS  # a rebalance may wait for a reader that was killed

    def _is_current(self) -> bool:
        return self._membership is not None and self._applied == self._membership.generation

    def _is_commit_due(self) -> bool:
        return self._now() - self._committed_at > COMMIT_SECONDS * SECOND

    def _create_consumer(self) -> AIOKafkaConsumer:
        return self._consumer(
            group_id=self._group,
            partition_assignment_strategy=(sticky_assignor(),),
            session_timeout_ms=int(SESSION_SECONDS * 1000),
            request_seconds=REQUEST_SECONDS + SESSION_SECONDS,  # the broker responds to a join after the rebalance
        )

    async def _seek(self, consumer: AIOKafkaConsumer) -> None:
        """Join the group, and wait for the first assignment, or for an error of the group."""
        await start_client(consumer)
        self._membership = membership = _Membership(self, consumer)
        self._applied = 0
        consumer.subscribe([self._settings.topic], listener=membership)
        while membership.assignment is None:
            await get_messages(consumer, limit=1)  # before the position is known

    async def _fetch(self, consumer: AIOKafkaConsumer) -> list[Message]:
        if self._is_current():  # all of the last batch was processed
            await self._skip_invalid(consumer)
            if self._is_commit_due():
                await self._commit(consumer, self.processed())
        elif self._membership is not None and self._membership.assignment is not None:
            await self._apply_assignment(consumer, self._membership, self._membership.assignment)
        # Until the states of all partitions are those of the group's offsets, there are no changes.
        ends = self._replayed_up_to.items()
        self._replayed_up_to = {each: end for each, end in ends if self._next_offsets[each] < end}
        batch = await get_messages(consumer, *self._replayed_up_to, limit=_MAX_BATCH)
        return batch if self._is_current() else []

    async def _skip_invalid(self, consumer: AIOKafkaConsumer) -> None:
        """Advance over what was read and is no record: invalid messages, and the markers of transactions."""
        for partition in self._partitions.values():
            with contextlib.suppress(IllegalStateError):  # it is not ours any more
                position = await consumer.position(partition)
                if self._is_current():
                    self._next_offsets[partition] = position

    async def _apply_assignment(
        self, consumer: AIOKafkaConsumer, membership: _Membership, assignment: frozenset[TopicPartition]
    ) -> None:
        """Forget what was lost, and seek to where the state of each partition ends."""
        generation = membership.generation
        committed = {each: await consumer.committed(each) or 0 for each in assignment}
        oldest = await consumer.beginning_offsets(assignment)
        ends = await consumer.end_offsets(assignment)
        if generation != membership.generation:
            return
        for partition in self._next_offsets.keys() - assignment:
            del self._next_offsets[partition]
            for source in self._sources.pop(partition):
                self._forget(source)
        self._partitions = {location_of(each): each for each in assignment}
        # No reader has processed a recreated topic, which ends before the group's offset, or before our own one.
        self._committed = {each: offset if offset <= ends[each] else 0 for each, offset in committed.items()}
        self._replayed_up_to = dict(self._committed)
        for each in assignment:
            self._sources.setdefault(each, set())
            known = self._next_offsets.get(each, 0)
            # Retention may have deleted the offset.
            offset = oldest[each] if known > ends[each] else max(known, oldest[each])
            self._next_offsets[each] = offset
            consumer.seek(each, offset)
        self._applied = generation

    async def _commit(self, consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit offsets; if the partitions belong to others meanwhile, they process the records again."""
        self._committed_at = self._now()
        if offsets:
            with contextlib.suppress(CommitFailedError, IllegalStateError):
                await consumer.commit(dict(offsets))
                self._committed |= offsets

    async def _close(self, consumer: AIOKafkaConsumer) -> None:
        await self.try_commit(consumer, self.processed(), STOP_SECONDS)
        self._membership = None
        await super()._close(consumer)

    def _describe(self, error: KafkaError) -> str:
        if isinstance(error, GroupAuthorizationFailedError):
            return f"{principal(self._settings)} is not authorized to use group {self._group}; allow Read on it"
        return super()._describe(error)


class _Membership(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    """What the group assigns to a consumer; aiokafka calls the methods at the begin and end of each rebalance."""

    def __init__(self, reader: KafkaGroupReader, consumer: AIOKafkaConsumer) -> None:
        self.consumer = consumer
        self.assignment: frozenset[TopicPartition] | None = None
        """None during a rebalance."""
        self.generation = 1
        """Increases with each change of the assignment."""
        self._reader = reader

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:  # noqa: ARG002 (aiokafka passes it)
        """Leave the partitions to others, who start where this reader has come to."""
        offsets = self._reader.processed()
        self.assignment, self.generation = None, self.generation + 1
        await self._reader.try_commit(self.consumer, offsets, SESSION_SECONDS)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Note the assignment, which applies when the next batch is read."""
        self.assignment, self.generation = frozenset(assigned), self.generation + 1
