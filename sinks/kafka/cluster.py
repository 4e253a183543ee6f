"""What has to be known of the brokers, and to be there, before anything is published: a server that lets us in, the
topics, and what they take.

aiokafka's clients try one server after the other and only log why none would do, so this asks over a connection of its
own, whose errors can be told. Nothing here is kept: each (re)connect asks anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

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
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.produce import ProduceRequest

from bridge.core.errors import FatalError, TransientError
from config.sinks.common import host_and_port
from config.sinks.kafka import PORT
from sinks.kafka import access
from sinks.kafka.failures import CONNECT_ERRORS, not_allowed, not_reached, said, who

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from config.sinks.kafka import KafkaSettings

REQUEST_SECONDS = 10.0
_POLL_SECONDS = 0.1
_log = structlog.get_logger(__name__)
_NO_PARTITION = 2**31 - 1  # no topic has that many
_TOPIC = 2  # Kafka's number for this kind of resource
_SETTINGS = ["cleanup.policy", "max.message.bytes"]


class CompactionError(FatalError):
    """A topic would throw away records that are needed, or keep those that are not."""


class Partition(NamedTuple):
    """Where a partition is: its leader's address (None without one), and how many replicas it has, and in sync."""

    leader: str | None
    replicas: int
    in_sync: int


class Topic(NamedTuple):
    """A topic as it is now; ``max_bytes`` is the largest batch it takes, None where we may not know."""

    name: str
    partitions: dict[int, Partition]
    max_bytes: int | None
    policy: str | None


class Cluster:
    """One connection to whichever server let us in."""

    def __init__(self, settings: KafkaSettings, connection: AIOKafkaConnection, server: str) -> None:
        self._settings = settings
        self._connection = connection
        self._server = server

    async def event_topic(self, clock: Clock) -> Topic:
        """Return the topic for the records, created if it was missing.

        Raises:
            TransientError: It is not there, or we may not see or create it.
            CompactionError: It is compacted.
        """
        topic = await self._topic(self._settings.topic, "delete", clock)
        if topic.policy is not None and "compact" in topic.policy:
            raise CompactionError(
                f"topic {topic.name} is compacted (cleanup.policy={topic.policy}): it would keep only the last "
                "record of each source; set its cleanup.policy to delete, or name another topic"
            )
        return topic

    async def state_topic(self, name: str, clock: Clock) -> Topic:
        """Return the topic for the current state, created if it was missing.

        Raises:
            TransientError: It is not there, or we may not see or create it.
            CompactionError: It is not compacted.
        """
        topic = await self._topic(name, "compact", clock)
        if topic.policy is not None and "compact" not in topic.policy:
            raise CompactionError(
                f"state_topic {name} is not compacted (cleanup.policy={topic.policy}): it would forget rows; "
                "set its cleanup.policy to compact, or name another topic"
            )
        return topic

    async def where(self, topic: str, purpose: str = "Write") -> dict[int, Partition]:
        """Return a topic's partitions; none where it is not there. ``purpose`` is the operation it is wanted for.

        Raises:
            TransientError: We may not see it, or the server did not answer.
        """
        # Never created by asking for it: that would be with the brokers' defaults, wherever they allow it.
        response = await self._ask(MetadataRequest([topic], allow_auto_topic_creation=False))
        if not response.brokers:
            raise TransientError(f"{self._server}: {self._no_brokers()}")
        addresses = {broker[0]: f"{broker[1]}:{broker[2]}" for broker in response.brokers}
        (found,) = response.topics
        code, partitions = for_code(found[0]), found[-1]
        if code in (UnknownTopicOrPartitionError, LeaderNotAvailableError) and not partitions:
            return {}
        if code is TopicAuthorizationFailedError:
            raise TransientError(f"{who(self._settings)} may not see topic {topic}: allow Describe and {purpose} on it")
        if code is not NoError:
            raise TransientError(f"topic {topic}: {said(code())}")
        return {
            number: Partition(addresses.get(leader), len(replicas), len(in_sync))
            for _, number, leader, replicas, in_sync, *_ in partitions
        }

    async def check_writable(self, topic: str) -> None:
        """Make sure that we may write to a topic, without writing: brokers look at that before anything else.

        Raises:
            TransientError: We may not.
        """
        nothing = [(topic, [(_NO_PARTITION, b"")])]
        response = await self._ask(ProduceRequest(None, -1, int(REQUEST_SECONDS * 1000), nothing))
        for _, partitions in response.topics:
            for _, code, *_ in partitions:  # mostly: there is no such partition
                if denied := not_allowed(for_code(code)(), topic, self._settings):
                    raise TransientError(denied)

    async def _topic(self, name: str, policy: str, clock: Clock) -> Topic:
        partitions = await self.where(name)
        if not partitions:
            await self._create(name, policy)
        while not partitions:  # brokers learn of it one after the other; whoever called has an end to his patience
            await clock.sleep(_POLL_SECONDS)
            partitions = await self.where(name)
        known = await self._settings_of(name)
        size = known.get("max.message.bytes")
        return Topic(name, partitions, int(size) if size else None, known.get("cleanup.policy"))

    async def _create(self, name: str, policy: str) -> None:
        settings = self._settings
        todo = f"kafka-topics.sh --create --topic {name} --partitions {settings.partitions}"
        todo = f"create it (such as by: {todo} --config cleanup.policy={policy})"
        if not settings.auto_create:
            raise TransientError(f"topic {name} is missing, and auto_create is false: {todo}")
        replicas = -1 if settings.replication_factor is None else settings.replication_factor
        wanted: tuple[Any, ...] = (name, settings.partitions, replicas, [], [("cleanup.policy", policy)])
        response = await self._ask(CreateTopicsRequest([wanted], int(REQUEST_SECONDS * 1000), validate_only=False))
        for _, code, message in response.topic_errors:
            error = for_code(code)
            if error is TopicAuthorizationFailedError:
                denied = f"{who(settings)} may not create it: allow Create on it, or {todo}"
                raise TransientError(f"topic {name} is missing, and {denied}")
            if error not in (NoError, TopicAlreadyExistsError):
                raise TransientError(f"topic {name} is missing, and {message or said(error())}: {todo}")
            if error is NoError:
                _log.info("topic_created", topic=name)

    async def _settings_of(self, topic: str) -> dict[str, str]:
        """Return what we have to know of a topic's settings; nothing where we may not ask for it."""
        response = await self._ask(DescribeConfigsRequest([(_TOPIC, topic, _SETTINGS)]))
        (found,) = response.resources
        return {} if found[0] else {name: value for name, value, *_ in found[4]}

    async def _ask(self, request: Any) -> Any:
        try:
            return await self._connection.send(request)
        except CONNECT_ERRORS as error:
            raise TransientError(f"{not_reached(error, self._server, self._settings)}") from error

    def _no_brokers(self) -> str:
        if self._settings.auth and self._settings.auth.token_file:
            # aiokafka takes the refusal for a step of the login, and what comes next for an answer.
            return f"it refuses the token of token_file {self._settings.auth.token_file}; perhaps it has expired"
        return "it names no brokers"


@contextlib.asynccontextmanager
async def connected(settings: KafkaSettings, options: dict[str, Any]) -> AsyncIterator[Cluster]:
    """Connect to the first of the servers that lets us in.

    Raises:
        TransientError: None does; the text says of each why.
    """
    reasons: list[str] = []
    for server in settings.bootstrap_servers:
        host, port = host_and_port(server, PORT)
        try:
            connection = await open_(host, port, options, _patience(settings))
        except CONNECT_ERRORS as error:
            reasons.append(not_reached(error, server, settings))
            continue
        try:
            yield Cluster(settings, connection, server)
        finally:
            await hang_up(connection)
        return
    raise TransientError(f"no Kafka server can be used: {'; '.join(reasons)}")


async def state_of(topic: str, partition: int, settings: KafkaSettings) -> str:
    """Tell how a partition is: whether its leader lets us in, and how many of its replicas are in sync.

    Raises:
        TransientError: Nobody can be asked.
    """
    options = access.options(settings)
    async with connected(settings, options) as there:
        found = (await there.where(topic)).get(partition)
    if found is None:
        return f"topic {topic} has no partition {partition} any more"
    if found.leader is None:
        return f"partition {partition} has no leader"
    try:
        await hang_up(await open_(*host_and_port(found.leader, PORT), options, REQUEST_SECONDS))
    except CONNECT_ERRORS as error:
        reason = not_reached(error, found.leader, settings)
        return f"the leader of partition {partition}, as the brokers name it, cannot be used: {reason}"
    return f"partition {partition} has {found.in_sync} of {found.replicas} replicas in sync"


async def open_(host: str, port: int, options: dict[str, Any], seconds: float) -> AIOKafkaConnection:
    """Connect to one server."""
    return await create_conn(host, port, request_timeout_ms=int(seconds * 1000), **options)


async def hang_up(connection: AIOKafkaConnection) -> None:
    """Let go of a connection without waiting for the other side, which may hang."""
    if connection._writer is not None:
        connection._writer.transport.abort()
    if ended := connection.close():
        await asyncio.wait({ended}, timeout=1.0)


def _patience(settings: KafkaSettings) -> float:
    """How long to wait for one server, so that one that hangs leaves time for all others."""
    return min(REQUEST_SECONDS, settings.request_timeout.total_seconds() / (len(settings.bootstrap_servers) + 1))
