"""Synchronous admin client for Kafka: topics, permissions, and all records of a topic.

Each call runs an event loop in a separate thread, so that tests with and without a loop can use it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError, KafkaError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.admin import CreateAclsRequest, DescribeAclsRequest

from tests.eventually import eventually

_T = TypeVar("_T")

Operation = Literal["read", "write", "create", "describe", "describe_configs"]
_OPERATIONS: dict[Operation, int] = {"read": 3, "write": 4, "create": 5, "describe": 8, "describe_configs": 10}
_TOPIC, _LITERAL, _ALLOW = 2, 3, 3
_NO_DEADLINE = 2**63 - 1  # the default of flush.messages


@dataclass(frozen=True)
class Record:
    """One record of a topic, as read by a consumer."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp: int


class KafkaAdmin:
    """Admin calls through a plaintext listener, each with a timeout of `timeout` seconds.

    When a call returns, every running broker has applied its changes, as far as repeated requests can show.
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
        """Create a topic; -1 replicas: the brokers' default."""
        # With -1 replicas, the constructor requires an assignment, and the broker requires that it is empty.
        assignment: dict[int, list[int]] | None = {} if replicas == -1 else None
        new_topic = NewTopic(topic, partitions, replicas, assignment, dict(settings or {}))
        response = self._with_admin(lambda admin: admin.create_topics([new_topic]))
        _check((code, message) for _, code, message, *_ in response.topic_errors)
        self._wait_on_all_brokers(lambda broker: topic in broker.topics(), f"to know topic {topic}")

    def delete_topic(self, topic: str) -> None:
        """Delete a topic."""
        response = self._with_admin(lambda admin: admin.delete_topics([topic]))
        _check((code, topic) for _, code, *_ in response.topic_error_codes)
        self._wait_on_all_brokers(lambda broker: topic not in broker.topics(), f"to forget topic {topic}")

    def alter_topic(self, topic: str, settings: Mapping[str, str]) -> None:
        """Replace the settings of a topic; omitted settings get their defaults."""
        # A broker reports a change shortly before applying it, but reports a second change only after applying the
        # first. Therefore, there are two changes.
        for number in (1_000_000, _NO_DEADLINE):
            self._alter_topic(topic, {**settings, "flush.messages": str(number)})

    def _alter_topic(self, topic: str, settings: Mapping[str, str]) -> None:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs=dict(settings))
        for response in self._with_admin(lambda admin: admin.alter_configs([resource])):
            _check((code, message) for code, message, *_ in response.resources)
        expected = settings.items()
        self._wait_on_all_brokers(
            lambda broker: expected <= broker.describe(topic)["settings"].items(), f"to have {settings}"
        )

    def topics(self, *, internal: bool = False) -> list[str]:
        """Return the names of all topics; Kafka's internal topics only with `internal`."""
        names = self._with_admin(lambda admin: admin.list_topics())
        return sorted(name for name in names if internal or not name.startswith("__"))

    def describe(self, topic: str) -> dict[str, Any]:
        """Return a broker's view of a topic: `partitions` (`leader`, `replicas`, `isr`) and `settings`."""
        description = self._describe(topic)
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)
        responses = self._with_admin(lambda admin: admin.describe_configs([resource]))
        return {**description, "settings": {name: value for name, value, *_ in responses[0].resources[0][4]}}

    def _describe(self, topic: str) -> dict[str, Any]:
        (description,) = self._with_admin(lambda admin: admin.describe_topics([topic]))
        _check([(description["error_code"], topic)])
        return dict(description)

    def brokers(self) -> set[int]:
        """Return the node ids of the brokers in the cluster."""
        cluster = self._with_admin(lambda admin: admin.describe_cluster())
        return {broker["node_id"] for broker in cluster["brokers"]}

    def leader(self, topic: str, partition: int = 0) -> int:
        """Return the node id of a partition's leader according to one of the brokers; -1: none."""
        partitions = self._describe(topic)["partitions"]
        return next(int(each["leader"]) for each in partitions if each["partition"] == partition)

    def allow(self, principal: str, operation: Operation, topic: str) -> None:
        """Allow an operation on a topic."""
        rule = (_TOPIC, topic, _LITERAL, principal, "*", _OPERATIONS[operation], _ALLOW)
        _check(self._send(CreateAclsRequest(*rule)).creation_responses)
        self._wait_on_all_brokers(
            lambda broker: broker._has_rule(*rule), f"to allow {principal} to {operation} {topic}"
        )

    def records(self, topic: str, partition: int = 0) -> list[Record]:
        """Return all committed records of a partition.

        Raises:
            UnknownTopicOrPartitionError: The topic does not exist.
        """
        return self._run(_read(self._bootstrap, topic, partition))

    def end_offset(self, topic: str, partition: int = 0) -> int:
        """Return the offset after the last record of a partition: the number of records, if none was deleted."""
        return self._offsets(topic, partition)[1]

    def committed(self, group: str) -> int:
        """Return the sum of the offsets that a consumer group has committed: how many records it has processed."""
        offsets = self._with_admin(lambda admin: admin.list_consumer_group_offsets(group))
        return sum(int(each.offset) for each in offsets.values())

    def wait_empty(self, topic: str) -> None:
        """Wait until the retention has removed all records of a topic with one partition."""

        def is_empty() -> bool:
            first, end = self._offsets(topic, 0)
            return first == end

        eventually(is_empty, f"{topic} to be empty", within=60)

    def delete_records(self, topic: str) -> None:
        """Delete all records of a topic with one partition."""
        everything = {TopicPartition(topic, 0): RecordsToDelete(before_offset=-1)}
        self._with_admin(lambda admin: admin.delete_records(everything))

    def _offsets(self, topic: str, partition: int) -> tuple[int, int]:
        async def work() -> tuple[int, int]:
            consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap)
            await consumer.start()
            try:
                await _check_topic_exists(consumer, topic)
                key = TopicPartition(topic, partition)
                first, end = await consumer.beginning_offsets([key]), await consumer.end_offsets([key])
                return int(first[key]), int(end[key])
            finally:
                await consumer.stop()

        return self._run(work())

    def _has_rule(self, *rule: Any) -> bool:
        response = self._send(DescribeAclsRequest(*rule))
        _check([(response.error_code, response.error_message)])
        return bool(response.resources)

    def _send(self, request: Any) -> Any:
        """Send a request that the admin client lacks; return the response."""

        async def connect_and_send() -> Any:
            client = AIOKafkaClient(bootstrap_servers=self._bootstrap)
            try:
                await client.bootstrap()
                return await client.send(client.get_random_node(), request)
            finally:
                await client.close()

        return self._run(connect_and_send())

    def _wait_on_all_brokers(self, condition: Callable[[KafkaAdmin], bool], what: str) -> None:
        """Wait until a condition holds on every running broker: changes reach the brokers at different times."""

        def holds(broker: KafkaAdmin) -> bool:
            try:
                return condition(broker)
            except KafkaConnectionError:  # the broker does not run
                return True

        brokers = [KafkaAdmin(server) for server in self._bootstrap.split(",")]
        if len(brokers) > 1:
            brokers *= 4  # aiokafka sends requests to any broker, not only to the bootstrap server
        eventually(lambda: all(map(holds, brokers)), f"all brokers {what}")

    def _with_admin(self, work: Callable[[AIOKafkaAdminClient], Coroutine[Any, Any, _T]]) -> _T:
        async def connect_and_work() -> _T:
            admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
            try:
                await admin.start()
                return await work(admin)
            finally:
                await admin.close()

        return self._run(connect_and_work())

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        async def with_timeout() -> _T:
            async with asyncio.timeout(self._timeout):
                return await work

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, with_timeout()).result()


def broker_ready_check(bootstrap: str, node: int) -> Callable[[], bool]:
    """Return a function that checks whether the broker has joined the cluster."""
    host, _, port = bootstrap.rpartition(":")
    admin = KafkaAdmin(bootstrap, timeout=5)

    def check() -> bool:
        # Raises OSError while the port is closed; aiokafka would log an error.
        socket.create_connection((host, int(port)), timeout=5).close()
        try:
            return node in admin.brokers()
        except (KafkaError, TimeoutError):
            return False

    return check


async def _read(bootstrap: str, topic: str, partition: int) -> list[Record]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=50,
    )
    result: list[Record] = []
    await consumer.start()
    try:
        await _check_topic_exists(consumer, topic)
        topic_partition = TopicPartition(topic, partition)
        consumer.assign([topic_partition])
        end = (await consumer.end_offsets([topic_partition]))[topic_partition]
        while await consumer.position(topic_partition) < end:
            for records in (await consumer.getmany(topic_partition, timeout_ms=100)).values():
                result += [Record(r.offset, r.key, r.value, tuple(r.headers), r.timestamp) for r in records]
    finally:
        await consumer.stop()
    return result


async def _check_topic_exists(consumer: AIOKafkaConsumer, topic: str) -> None:
    """Raise UnknownTopicOrPartitionError if the topic does not exist; aiokafka would wait for the topic."""
    if topic not in await consumer.topics():
        raise UnknownTopicOrPartitionError(topic)


def _check(results: Iterable[tuple[int, str | None]]) -> None:
    for code, message in results:
        if code:
            error = for_code(code)
            raise error(message or error.description)
