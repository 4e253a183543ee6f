"""What tests ask of a Kafka, as plain calls: topics, permissions, and all records of a topic.

Each call runs an event loop of its own in a thread, so that tests with and without a loop can use it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError, KafkaError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.admin import CreateAclsRequest, DescribeAclsRequest

from tests.eventually import eventually

_T = TypeVar("_T")

Resource = Literal["topic", "group", "cluster", "transactional_id"]
Operation = Literal[
    "all", "read", "write", "create", "delete", "alter", "describe", "describe_configs", "alter_configs",
    "idempotent_write",
]  # fmt: skip
_RESOURCES: dict[Resource, int] = {"topic": 2, "group": 3, "cluster": 4, "transactional_id": 5}
_OPERATIONS: dict[Operation, int] = {
    "all": 2,
    "read": 3,
    "write": 4,
    "create": 5,
    "delete": 6,
    "alter": 7,
    "describe": 8,
    "describe_configs": 10,
    "alter_configs": 11,
    "idempotent_write": 12,
}
_LITERAL, _PREFIXED = 3, 4
_ALLOW = 3
_NO_DEADLINE = 2**63 - 1  # the default of flush.messages


@dataclass(frozen=True)
class Record:
    """One record of a topic, as a plain consumer sees it."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp: int


class KafkaAdmin:
    """Calls through one plaintext listener; each is bounded by `timeout` seconds.

    What is changed is so on every broker that runs when the call returns, as far as asking many times shows it.
    """

    def __init__(self, bootstrap: str, timeout: float = 30) -> None:
        self._bootstrap = bootstrap
        self._timeout = timeout

    def create_topic(
        self,
        topic: str,
        *,
        partitions: int = 1,
        replicas: int = -1,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Create it; -1 replicas: the brokers' default."""

        async def work(admin: AIOKafkaAdminClient) -> None:
            # Its constructor wants an assignment with -1; the broker wants none.
            assignment: dict[int, list[int]] | None = {} if replicas == -1 else None
            wanted = NewTopic(topic, partitions, replicas, assignment, dict(settings or {}))
            _check((code, message) for _, code, message, *_ in (await admin.create_topics([wanted])).topic_errors)

        self._with_admin(work)
        self._wait_on_all_brokers(lambda broker: topic in broker.topics(), f"to know topic {topic}")

    def delete_topic(self, topic: str) -> None:
        """Delete it."""

        async def work(admin: AIOKafkaAdminClient) -> None:
            _check((code, topic) for _, code, *_ in (await admin.delete_topics([topic])).topic_error_codes)

        self._with_admin(work)
        self._wait_on_all_brokers(lambda broker: topic not in broker.topics(), f"to forget topic {topic}")

    def alter_topic(self, topic: str, settings: Mapping[str, str]) -> None:
        """Make these its settings; what is not named goes back to the default."""
        # A broker tells of a change a moment before it acts by it, but of no later one before that: so there are two.
        for number in (1_000_000, _NO_DEADLINE):
            self._alter_topic(topic, {**settings, "flush.messages": str(number)})

    def _alter_topic(self, topic: str, settings: Mapping[str, str]) -> None:
        async def work(admin: AIOKafkaAdminClient) -> None:
            wanted = ConfigResource(ConfigResourceType.TOPIC, topic, configs=dict(settings))
            for response in await admin.alter_configs([wanted]):
                _check((code, message) for code, message, *_ in response.resources)

        self._with_admin(work)
        wanted = settings.items()
        self._wait_on_all_brokers(
            lambda broker: wanted <= broker.describe(topic)["settings"].items(), f"to have {settings}"
        )

    def topics(self, *, internal: bool = False) -> list[str]:
        """The names of all topics; Kafka's own only where they are asked for."""

        async def work(admin: AIOKafkaAdminClient) -> list[str]:
            return sorted(name for name in await admin.list_topics() if internal or not name.startswith("__"))

        return self._with_admin(work)

    def describe(self, topic: str) -> dict[str, Any]:
        """What one of the brokers knows of a topic: `partitions` (`leader`, `replicas`, `isr`) and its `settings`."""

        async def work(admin: AIOKafkaAdminClient) -> dict[str, Any]:
            (found,) = await admin.describe_topics([topic])
            _check([(found["error_code"], topic)])
            responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
            entries = responses[0].resources[0][4]
            return {**found, "settings": {name: value for name, value, *_ in entries}}

        return self._with_admin(work)

    def brokers(self) -> set[int]:
        """The node ids of the brokers that the cluster counts on."""

        async def work(admin: AIOKafkaAdminClient) -> set[int]:
            return {broker["node_id"] for broker in (await admin.describe_cluster())["brokers"]}

        return self._with_admin(work)

    def leader(self, topic: str, partition: int = 0) -> int:
        """The node id of the broker that leads a partition, as one of the brokers knows it; -1: none."""

        async def work(admin: AIOKafkaAdminClient) -> int:
            (found,) = await admin.describe_topics([topic])
            _check([(found["error_code"], topic)])
            return next(int(each["leader"]) for each in found["partitions"] if each["partition"] == partition)

        return self._with_admin(work)

    def allow(
        self,
        principal: str,
        operation: Operation,
        resource: Resource,
        name: str = "kafka-cluster",
        *,
        prefixed: bool = False,
    ) -> None:
        """Permit an operation on one resource (of the cluster there is one), or on all with that prefix."""

        async def work(client: AIOKafkaClient) -> None:
            response = await client.send(client.get_random_node(), CreateAclsRequest(*rule))
            _check(response.creation_responses)

        pattern = _PREFIXED if prefixed else _LITERAL
        rule = (_RESOURCES[resource], name, pattern, principal, "*", _OPERATIONS[operation], _ALLOW)
        self._run(_with_client(self._bootstrap, work))
        self._wait_on_all_brokers(lambda broker: broker._has_rule(*rule), f"to allow {principal} to {operation} {name}")

    def records(self, topic: str, partition: int = 0) -> list[Record]:
        """All records there are at the time of asking, read by a plain consumer (committed ones only).

        Where the topic is missing that raises UnknownTopicOrPartitionError.
        """
        return self._run(_read(self._bootstrap, topic, partition))

    def end_offset(self, topic: str, partition: int = 0) -> int:
        """The offset after the last record of a partition: how many were appended to one that lost none."""

        async def work() -> int:
            consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap)
            await consumer.start()
            try:
                await _check_topic_exists(consumer, topic)
                place = TopicPartition(topic, partition)
                return int((await consumer.end_offsets([place]))[place])
            finally:
                await consumer.stop()

        return self._run(work())

    def _has_rule(self, *rule: Any) -> bool:
        async def work(client: AIOKafkaClient) -> bool:
            response = await client.send(client.get_random_node(), DescribeAclsRequest(*rule))
            _check([(response.error_code, response.error_message)])
            return bool(response.resources)

        return self._run(_with_client(self._bootstrap, work))

    def _wait_on_all_brokers(self, condition: Callable[[KafkaAdmin], bool], what: str) -> None:
        """Wait until something holds of every broker that runs: they do not learn of a change at once."""

        def held(broker: KafkaAdmin) -> bool:
            try:
                return condition(broker)
            except KafkaConnectionError:  # it does not run
                return True

        brokers = [KafkaAdmin(server) for server in self._bootstrap.split(",")]
        if len(brokers) > 1:
            brokers *= 4  # aiokafka asks any broker of the cluster, whichever it was told of first
        eventually(lambda: all(map(held, brokers)), f"all brokers {what}")

    def _with_admin(self, work: Callable[[AIOKafkaAdminClient], Coroutine[Any, Any, _T]]) -> _T:
        async def whole() -> _T:
            admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
            try:
                await admin.start()
                return await work(admin)
            finally:
                await admin.close()

        return self._run(whole())

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        async def bounded() -> _T:
            async with asyncio.timeout(self._timeout):
                return await work

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, bounded()).result()


def broker_ready_check(bootstrap: str, node: int) -> Callable[[], bool]:
    """A check whether the broker there has its place in the cluster."""
    host, _, port = bootstrap.rpartition(":")
    admin = KafkaAdmin(bootstrap, timeout=5)

    def check() -> bool:
        # Raises OSError while nothing listens: aiokafka would log that as an error.
        socket.create_connection((host, int(port)), timeout=5).close()
        try:
            return node in admin.brokers()
        except (KafkaError, TimeoutError):
            return False

    return check


async def _with_client(bootstrap: str, work: Callable[[AIOKafkaClient], Coroutine[Any, Any, _T]]) -> _T:
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    try:
        await client.bootstrap()
        return await work(client)
    finally:
        await client.close()


async def _read(bootstrap: str, topic: str, partition: int) -> list[Record]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=50,
    )
    found: list[Record] = []
    await consumer.start()
    try:
        await _check_topic_exists(consumer, topic)
        place = TopicPartition(topic, partition)
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        while await consumer.position(place) < end:
            for records in (await consumer.getmany(place, timeout_ms=100)).values():
                found += [Record(r.offset, r.key, r.value, tuple(r.headers), r.timestamp) for r in records]
    finally:
        await consumer.stop()
    return found


async def _check_topic_exists(consumer: AIOKafkaConsumer, topic: str) -> None:
    """Raise where aiokafka would wait until the topic is there."""
    if topic not in await consumer.topics():
        raise UnknownTopicOrPartitionError(topic)


def _check(results: Iterable[tuple[int, str | None]]) -> None:
    for code, message in results:
        if code:
            error = for_code(code)
            raise error(message or error.description)
