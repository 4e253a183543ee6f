"""Readers of a consumer group, against a group in memory that rebalances at any time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any, NamedTuple, TypeAlias
from unittest.mock import AsyncMock

import pytest
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, GroupAuthorizationFailedError, IllegalStateError, KafkaConnectionError

from bridge.consumer import State, follow, kafka, reader_factory
from bridge.consumer.kafka_group import KafkaGroupReader
from bridge.consumer.projection import SourceInfo
from bridge.consumer.record_decoder import InvalidMessageError, Source, decode
from bridge.consumer.state import Running
from bridge.core.errors import NotFoundError, TransientError
from bridge.core.records import RecordType
from config.sinks.kafka import KafkaSettings
from sinks.kafka.admin import Partition, TopicMetadata
from tests.naming import raises_naming
from tests.sample_records import HOST, record, records
from tests.scale import scaled
from tests.virtual_time import VirtualClock

AT = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = KafkaSettings.model_validate({"bootstrap_servers": "kafka:9092", "topic": "events"})


class Stored(NamedTuple):
    """A message of the topic."""

    offset: int
    value: bytes
    key: bytes | None = None


class Group:
    """A topic, and what the brokers know of a group."""

    def __init__(self, partitions: int) -> None:
        self.logs: dict[TopicPartition, list[Stored]] = {TopicPartition("events", n): [] for n in range(partitions)}
        self.oldest = dict.fromkeys(self.logs, 0)
        self.committed: dict[TopicPartition, int] = {}
        self.rejection: Exception | None = None
        self.members: list[FakeConsumer] = []
        self.has_changed = False  # the members, since the last rebalance
        self._chance = Random(1)  # noqa: S311
        self._lock = asyncio.Lock()

    def append(self, partition: int, *values: bytes) -> None:
        log = self.logs[TopicPartition("events", partition)]
        log += [Stored(offset, value) for offset, value in enumerate(values, len(log))]

    async def rebalance(self) -> None:
        """Revoke all partitions, and distribute them among the members at random."""
        async with self._lock:
            self.has_changed = False
            members = list(self.members)
            for member in members:
                assert member.listener is not None
                await member.listener.on_partitions_revoked(member.assigned)
            partitions = list(self.logs)
            self._chance.shuffle(partitions)
            for number, member in enumerate(members):
                assert member.listener is not None
                member.assigned = frozenset(partitions[number :: len(members)])
                member.offsets = {each: self.committed.get(each, 0) for each in member.assigned}
                await member.listener.on_partitions_assigned(member.assigned)


class FakeConsumer:
    """What a reader uses of `AIOKafkaConsumer`; each call lets other tasks run."""

    def __init__(self, group: Group, chance: Random) -> None:
        self.listener: ConsumerRebalanceListener | None = None
        self.assigned: frozenset[TopicPartition] = frozenset()
        self.offsets: dict[TopicPartition, int] = {}
        self.is_suspended = False
        self.fails_to_commit = False
        self._is_stopped = False
        self._group, self._chance = group, chance
        self._client = self

    async def start(self) -> None:
        await self._wait()

    async def close(self) -> None:
        await self._wait()

    async def stop(self) -> None:
        self.suspend()
        self._is_stopped = True

    def subscribe(self, topics: list[str], listener: ConsumerRebalanceListener) -> None:
        assert topics == ["events"]
        self.listener = listener
        self.resume()

    def suspend(self) -> None:
        """The group gives the partitions to others, without the consumer's knowledge."""
        if self in self._group.members:
            self._group.members.remove(self)
            self._group.has_changed = self.is_suspended = True

    def resume(self) -> None:
        """The consumer joins the group."""
        if self.listener and self not in self._group.members and not self._is_stopped:
            self._group.members.append(self)
            self._group.has_changed, self.is_suspended = True, False

    async def getmany(self, *partitions: TopicPartition, timeout_ms: int, max_records: int) -> Any:
        await self._wait()
        if self._group.rejection is not None:
            raise self._group.rejection
        if self._group.has_changed and not self.is_suspended:
            await self._group.rebalance()
        for each in partitions or self.assigned:
            start = max(self.offsets.get(each, 0), self._group.oldest[each])
            if each in self.assigned and (batch := self._group.logs[each][start : start + max_records]):
                self.offsets[each] = start + len(batch)
                return {each: batch}
        await asyncio.sleep(timeout_ms / 1000)
        return {}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.offsets[partition] = offset

    async def position(self, partition: TopicPartition) -> int:
        await self._wait()
        if partition not in self.assigned:
            raise IllegalStateError
        return self.offsets[partition]

    async def committed(self, partition: TopicPartition) -> int | None:
        await self._wait()
        return self._group.committed.get(partition)

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        await self._wait()
        return {each: self._group.oldest[each] for each in partitions}

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        await self._wait()
        return {each: len(self._group.logs[each]) for each in partitions}

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        await self._wait()
        if self.is_suspended:
            raise CommitFailedError
        if not offsets.keys() <= self.assigned:
            raise IllegalStateError
        if self.fails_to_commit:
            raise KafkaConnectionError
        self._group.committed |= offsets

    async def _wait(self) -> None:
        await asyncio.sleep(self._chance.choice((0, 0, 0.01, 0.1)))


class MemoryReader(KafkaGroupReader):
    """A reader of a topic in memory."""

    def __init__(self, topic: Group, chance: Random, forget: Callable[[Source], None]) -> None:
        super().__init__(SETTINGS, VirtualClock(), group="billing", forget=forget)
        self.consumer = FakeConsumer(topic, chance)
        self._create = partial(FakeConsumer, topic, chance)

    def _create_consumer(self) -> FakeConsumer:
        self.consumer = self._create()
        return self.consumer


class Member:
    """A task that follows the topic."""

    def __init__(self, group: Group, readers: dict[str, MemoryReader], chance: Random) -> None:
        self.state = State()
        self.received: list[tuple[str, int]] = []
        self.reader = MemoryReader(group, chance, self.state.forget)
        self._name = f"member {len(readers)}"
        readers[self._name] = self.reader
        self._chance = chance
        self.task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    async def _follow(self) -> None:
        async with aclosing(follow("kafka://kafka/events", self.state, group=self._name)) as changes:
            async for change in changes:
                self.received.append((change.source.host, change.record.sequence))
                await asyncio.sleep(self._chance.choice((0, 0, 0.2)))


StartMember: TypeAlias = Callable[[Group, Random], Member]


@pytest.fixture
def topic_partitions() -> dict[int, Partition]:
    """The partitions of the topic that a reader finds; none if it was deleted."""
    return {0: Partition("kafka:9092", 1, 1)}


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, topic_partitions: dict[int, Partition]) -> StartMember:
    """Start a member of a group."""
    readers: dict[str, MemoryReader] = {}
    admin = AsyncMock(describe=AsyncMock(return_value=TopicMetadata("", topic_partitions)))
    monkeypatch.setattr(kafka, "connect_admin", lambda *_: contextlib.nullcontext(admin))
    monkeypatch.setattr(reader_factory, "create_group_reader", lambda *arguments: readers[arguments[3]])
    return lambda group, chance: Member(group, readers, chance)


def known(states: Iterable[State]) -> list[tuple[SourceInfo, list[Running]]]:
    """Return all that is known of each source."""
    return sorted(
        (info, sorted(state.containers(host=info.source.host, now=AT)))
        for state in states
        for info in state.sources(now=AT)
    )


def fold(group: Group) -> State:
    """Return the state that a single reader has in the end."""
    state = State()
    for log in group.logs.values():
        for each in log:
            with contextlib.suppress(InvalidMessageError):
                state.apply(*decode(each.value))
    return state


async def settle(group: Group, members: Sequence[Member]) -> None:
    """Wait until the members have read everything and committed it, and have forgotten what they lost."""
    await group.rebalance()
    for _ in range(1000):
        await asyncio.sleep(1)
        if group.committed == {partition: len(log) for partition, log in group.logs.items() if log}:
            break
    await asyncio.sleep(10)
    assert not any(each.task.done() for each in members)


@pytest.mark.parametrize("seed", range(scaled(reduced=5, full=300)))
async def test_group_delivers_each_change_and_shares_exact_state(seed: int, start: StartMember) -> None:
    """Readers start, stop, are killed or suspended, and commits fail, while rebalances happen at any time."""
    chance = Random(seed)  # noqa: S311
    group = Group(partitions=chance.randrange(1, 5))
    hosts = {f"node-{number}": number % len(group.logs) for number in range(6)}
    members, past = [start(group, chance)], list[Member]()
    sequences = dict.fromkeys(hosts, 0)
    for _ in range(60):
        await asyncio.sleep(chance.choice((0, 0.05, 0.5, 3)))
        host = chance.choice(list(hosts))
        for _ in range(chance.randrange(40)):
            sequences[host] += 1
            type_: RecordType = chance.choice(("started", "exited", "paused"))
            data = record(sequences[host], type_, id_=f"web-{chance.randrange(9)}", host=host).data
            group.append(hosts[host], *[data] * chance.choice((1, 1, 1, 2)), *[b"hello"] * chance.randrange(2))
        match chance.randrange(8):
            case 0 if len(members) < 5:
                members.append(start(group, chance))
            case 1 if len(members) > 1:
                past.append(member := members.pop(chance.randrange(len(members))))
                if chance.random() < 0.5:  # it is killed, and cannot commit
                    member.reader.consumer.suspend()
                await member.stop()
            case 2:
                chance.choice(members).reader.consumer.suspend()
            case 3:
                chance.choice(members).reader.consumer.resume()
            case 4:
                for consumer in group.members:
                    consumer.fails_to_commit = chance.random() < 0.3
        if chance.random() < 0.5:
            await group.rebalance()
    for member in members:
        member.reader.consumer.resume()
        member.reader.consumer.fails_to_commit = False
    await settle(group, members)
    is_exact = known(each.state for each in members) == known([fold(group)])
    assert is_exact
    delivered = {each for member in (*members, *past) for each in member.received}
    assert {(host, each) for host, last in sequences.items() for each in range(1, last + 1)} - delivered == set()
    assert group.committed == {partition: len(log) for partition, log in group.logs.items() if log}
    for member in members:
        await member.stop()


async def test_group_processes_topic_that_was_recreated(start: StartMember) -> None:
    """The group's offsets are those of the deleted topic, which was longer."""
    chance, group = Random(1), Group(partitions=2)  # noqa: S311
    group.append(0, *[each.data for each in records(5)])
    group.append(1, *[each.data for each in records(5, host="node-2")])
    group.committed = dict(zip(group.logs, (100, 3), strict=True))
    member = start(group, chance)
    await settle(group, [member])
    assert set(member.received) == {*((HOST, each) for each in range(1, 6)), ("node-2", 4), ("node-2", 5)}
    assert known([member.state]) == known([fold(group)])
    assert set(group.committed.values()) == {5}
    await member.stop()


async def test_group_processes_what_retention_left_of_new_records(start: StartMember) -> None:
    chance, group = Random(1), Group(partitions=1)  # noqa: S311
    group.append(0, *[each.data for each in records(50)])
    (partition,) = group.logs
    group.committed[partition], group.oldest[partition] = 10, 30
    member = start(group, chance)
    await settle(group, [member])
    assert member.received == [(HOST, each) for each in range(31, 51)]
    await member.stop()


async def test_follow_fails_if_group_rejects_reader(start: StartMember) -> None:
    chance, group = Random(1), Group(partitions=1)  # noqa: S311
    group.rejection = GroupAuthorizationFailedError("billing")
    member = start(group, chance)
    with raises_naming(TransientError, "group billing", "allow Read"):
        await member.task


async def test_group_reader_waits_until_deleted_topic_is_back(
    start: StartMember, topic_partitions: dict[int, Partition]
) -> None:
    chance, group = Random(1), Group(partitions=1)  # noqa: S311
    member = start(group, chance)
    await settle(group, [member])
    found = dict(topic_partitions)
    topic_partitions.clear()
    await asyncio.sleep(100)  # until no data has arrived for a while
    group.append(0, record(1).data)
    topic_partitions.update(found)
    await settle(group, [member])
    assert member.received == [(HOST, 1)]
    topic_partitions.clear()
    await member.stop()
    with raises_naming(NotFoundError, "events does not exist"):
        await start(group, chance).task
