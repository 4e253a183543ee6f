"""Requests to the brokers before anything is published: find a usable server, create and check the topics.

aiokafka's clients try one server after the other and only log why none is usable, so these requests use a separate
connection, whose errors can be reported. No result is cached: each (re)connect sends the requests again.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import structlog
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.errors import (
    LeaderNotAvailableError,
    NoError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest
from aiokafka.protocol.produce import ProduceRequest

from bridge.core.errors import FatalError, TransientError
from config.sinks.common import host_and_port
from config.sinks.kafka import PORT
from sinks.kafka import auth
from sinks.kafka.aiokafka_patches import TopicMetadataRequest, abort, topic_id
from sinks.kafka.errors import CONNECT_ERRORS, describe, describe_connect_error, describe_denial, principal

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from config.sinks.kafka import KafkaSettings

REQUEST_SECONDS = 10.0
_POLL_SECONDS = 0.1
_log = structlog.get_logger(__name__)
_NONEXISTENT_PARTITION = 2**31 - 1  # no topic has so many
_TOPIC_RESOURCE = 2  # Kafka's number for this resource type
_MAX_RETENTION_MS = timedelta.max // timedelta(milliseconds=1)  # above, it is as good as none, like Kafka's 2**63 - 1
_TOPIC_CONFIGS = ["cleanup.policy", "max.message.bytes", "retention.ms"]


class CompactionError(FatalError):
    """A topic's cleanup policy deletes records that are needed, or keeps obsolete ones."""


class Partition(NamedTuple):
    """A partition: its leader's address (None without a leader), its numbers of replicas and in-sync replicas.

    ``leader_id`` is the leader's node id, -1 without a leader.
    """

    leader: str | None
    replicas: int
    in_sync: int
    leader_id: int = -1


class TopicMetadata(NamedTuple):
    """A topic's id ("" if the brokers do not report it) and its partitions; none if the topic does not exist."""

    id: str
    partitions: dict[int, Partition]


class Topic(NamedTuple):
    """A topic; ``max_batch_bytes`` and ``cleanup_policy`` are None if reading the topic's configs is not authorized.

    ``id`` changes when the topic is created again; it is "" if the brokers do not report it. ``retention`` is the age
    at which records are deleted; None if they are not, or if it is not known.
    """

    name: str
    partitions: dict[int, Partition]
    max_batch_bytes: int | None
    cleanup_policy: str | None
    id: str = ""
    retention: timedelta | None = None


class Connection(Protocol):
    """A connection that sends a request and returns the response, such as aiokafka's."""

    def send(self, request: Any) -> Awaitable[Any]:
        """Send a request."""


class AdminClient:
    """Sends requests over a connection to one server."""

    def __init__(self, settings: KafkaSettings, connection: Connection, server: str) -> None:
        self._settings = settings
        self._connection = connection
        self._server = server

    async def ensure_topic(self, name: str, clock: Clock, *, is_compacted: bool) -> Topic:
        """Return a topic: compacted for the current state, not compacted for records; create it if it does not exist.

        Raises:
            TransientError: The topic does not exist, or describing or creating it is not authorized.
            CompactionError: The topic has the wrong cleanup policy.
        """
        topic = await self._ensure_topic(name, "compact" if is_compacted else "delete", clock)
        policy = topic.cleanup_policy
        if policy is not None and "compact" in policy and not is_compacted:
            raise CompactionError(
                f"topic {name} is compacted (cleanup.policy={policy}) and would keep only the last "
                "record of each source; set its cleanup.policy to delete, or use another topic"
            )
        if policy is not None and "compact" not in policy and is_compacted:
            raise CompactionError(
                f"state_topic {name} is not compacted (cleanup.policy={policy}) and would lose entries; "
                "set its cleanup.policy to compact, or use another topic"
            )
        return topic

    async def describe(self, topic: str, operation: str = "Write") -> TopicMetadata:
        """Return a topic's metadata. ``operation`` is the ACL operation that is needed.

        Raises:
            TransientError: Describing the topic is not authorized, or the request failed.
        """
        response = await self._request(TopicMetadataRequest(topic))
        if not response.brokers:
            raise TransientError(f"{self._server}: {self._describe_missing_brokers()}")
        addresses = {broker[0]: f"{broker[1]}:{broker[2]}" for broker in response.brokers}
        (topic_metadata,) = response.topics
        code = for_code(topic_metadata[0])
        partitions = next(field for field in topic_metadata if isinstance(field, list))
        if code in (UnknownTopicOrPartitionError, LeaderNotAvailableError) and not partitions:
            return TopicMetadata("", {})
        if code is TopicAuthorizationFailedError:
            raise TransientError(
                f"{principal(self._settings)} is not authorized to describe topic {topic}; "
                f"allow Describe and {operation} on it"
            )
        if code is not NoError:
            raise TransientError(f"topic {topic}: {describe(code())}")
        described = {}
        for _, number, leader, *others in partitions:
            replicas, in_sync = [field for field in others if isinstance(field, list)][:2]
            described[number] = Partition(addresses.get(leader), len(replicas), len(in_sync), leader)
        return TopicMetadata(topic_id(topic_metadata), described)

    async def check_writable(self, topic: str) -> None:
        """Check the permission to write to a topic, without writing: brokers check authorization first.

        Raises:
            TransientError: Writing is not authorized.
        """
        data = [(topic, [(_NONEXISTENT_PARTITION, b"")])]
        response = await self._request(ProduceRequest(None, -1, int(REQUEST_SECONDS * 1000), data))
        for _, partitions in response.topics:
            for _, code, *_ in partitions:  # usually: unknown partition
                if denied := describe_denial(for_code(code)(), topic, self._settings):
                    raise TransientError(denied)

    async def _ensure_topic(self, name: str, policy: str, clock: Clock) -> Topic:
        metadata = await self.describe(name)
        if not metadata.partitions:
            await self._create_topic(name, policy)
        while not metadata.partitions:  # brokers learn of a new topic one by one; the caller has a timeout
            await clock.sleep(_POLL_SECONDS)
            metadata = await self.describe(name)
        configs = await self._topic_configs(name)
        size, cleanup = configs.get("max.message.bytes"), configs.get("cleanup.policy")
        retention_ms = int(configs.get("retention.ms") or -1)
        expires = 0 <= retention_ms <= _MAX_RETENTION_MS and cleanup is not None and "delete" in cleanup
        return Topic(
            name,
            metadata.partitions,
            int(size) if size else None,
            cleanup,
            metadata.id,
            timedelta(milliseconds=retention_ms) if expires else None,
        )

    async def _create_topic(self, name: str, policy: str) -> None:
        settings = self._settings
        command = f"kafka-topics.sh --create --topic {name} --partitions {settings.partitions}"
        hint = f"create it (for example: {command} --config cleanup.policy={policy})"
        if not settings.auto_create:
            raise TransientError(f"topic {name} does not exist, and auto_create is false; {hint}")
        replicas = -1 if settings.replication_factor is None else settings.replication_factor
        request: tuple[Any, ...] = (name, settings.partitions, replicas, [], [("cleanup.policy", policy)])
        response = await self._request(CreateTopicsRequest([request], int(REQUEST_SECONDS * 1000), validate_only=False))
        for _, code, message in response.topic_errors:
            error = for_code(code)
            if error is TopicAuthorizationFailedError:
                denied = f"{principal(settings)} is not authorized to create it; allow Create on it, or {hint}"
                raise TransientError(f"topic {name} does not exist, and {denied}")
            if error not in (NoError, TopicAlreadyExistsError):
                reason = (message or describe(error())).rstrip(".")
                raise TransientError(f"topic {name} does not exist, and creating it failed: {reason}; {hint}")
            if error is NoError:
                _log.info("topic_created", topic=name)

    async def _topic_configs(self, topic: str) -> dict[str, str]:
        """Return the relevant configs of a topic; empty if reading them is not authorized."""
        response = await self._request(DescribeConfigsRequest([(_TOPIC_RESOURCE, topic, _TOPIC_CONFIGS)]))
        (resource,) = response.resources
        return {} if resource[0] else {name: value for name, value, *_ in resource[4]}

    async def _request(self, request: Any) -> Any:
        try:
            return await self._connection.send(request)
        except CONNECT_ERRORS as error:
            raise TransientError(f"{describe_connect_error(error, self._server, self._settings)}") from error

    def _describe_missing_brokers(self) -> str:
        if self._settings.auth and (source := self._settings.auth.token_source):
            # aiokafka parses the rejection as a step of the authentication, and the next bytes as the response.
            return f"token of {source} was rejected; it may have expired"
        return "the metadata lists no brokers"


@contextlib.asynccontextmanager
async def connect_admin(settings: KafkaSettings, options: dict[str, Any]) -> AsyncIterator[AdminClient]:
    """Connect to the first usable server.

    Raises:
        TransientError: No server is usable; the message has the reason for each.
    """
    reasons: list[str] = []
    for server in settings.bootstrap_servers:
        host, port = host_and_port(server, PORT)
        try:
            connection = await connect(host, port, options, _connect_timeout(settings))
        except CONNECT_ERRORS as error:
            reasons.append(describe_connect_error(error, server, settings))
            continue
        try:
            yield AdminClient(settings, connection, server)
        finally:
            await abort(connection)
        return
    raise TransientError(f"no Kafka server is usable: {'; '.join(reasons)}")


async def describe_partition(topic: str, partition: int, settings: KafkaSettings, clock: Clock) -> str:
    """Describe a partition for an error message: is its leader usable, and how many replicas are in sync.

    Raises:
        TransientError: No server is usable.
    """
    options = auth.client_options(settings, clock)
    async with connect_admin(settings, options) as admin:
        state = (await admin.describe(topic)).partitions.get(partition)
    if state is None:
        return f"topic {topic} no longer has a partition {partition}"
    if state.leader is None:
        return f"partition {partition} has no leader"
    try:
        await abort(await connect(*host_and_port(state.leader, PORT), options, REQUEST_SECONDS))
    except CONNECT_ERRORS as error:
        reason = describe_connect_error(error, state.leader, settings)
        return f"the advertised leader of partition {partition} is not usable: {reason}"
    return f"partition {partition} has {state.in_sync} of {state.replicas} replicas in sync"


async def connect(host: str, port: int, options: dict[str, Any], seconds: float) -> AIOKafkaConnection:
    """Connect to one server."""
    return await create_conn(host, port, request_timeout_ms=int(seconds * 1000), **options)


def _connect_timeout(settings: KafkaSettings) -> float:
    """Return the connect timeout per server in seconds; a server that hangs leaves time for the others."""
    return min(REQUEST_SECONDS, settings.request_timeout.total_seconds() / (len(settings.bootstrap_servers) + 1))
