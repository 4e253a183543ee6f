"""The connection to Kafka: a producer, and the topics as they were when it connected."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.protocol.offset import OffsetRequest

from bridge.clock import shuffled
from bridge.core.errors import TransientError
from sinks.kafka import admin, auth
from sinks.kafka.admin import REQUEST_SECONDS, Topic, TopicMetadata
from sinks.kafka.aiokafka_patches import Producer, start_client
from sinks.kafka.errors import describe, describe_denial

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from config.sinks.kafka import KafkaSettings

_DIAGNOSIS_SECONDS = 5.0
_EARLIEST, _LATEST = -2, -1  # Kafka's numbers for the first offset, and the one after the last


class KafkaConnection(NamedTuple):
    """A connected producer, the topics by name, aiokafka's options, and the clock for time limits."""

    producer: Producer
    topics: dict[str, Topic]
    options: dict[str, Any]
    clock: Clock


class KafkaConnector:
    """Keeps one connection, and replaces it after an error.

    ``on_connected`` is called with each new connection; it may abandon it again. ``max_batch_bytes`` is the maximum
    size of a batch: at most what the topics accept.
    """

    def __init__(
        self, settings: KafkaSettings, clock: Clock, on_connected: Callable[[KafkaConnection], Awaitable[None]]
    ) -> None:
        self.max_batch_bytes = settings.max_request_size
        self._settings = settings
        self._clock = clock
        self._on_connected = on_connected
        self._connection: KafkaConnection | None = None
        self._abandoned: list[Producer] = []

    async def ensure_connected(self) -> KafkaConnection:
        """Return the connection; without one, connect within ``request_timeout``, and create missing topics.

        Raises:
            TransientError: Connecting failed, or a topic does not exist.
            CompactionError: A topic has the wrong cleanup policy.
        """
        while self._connection is None:
            await self._close_abandoned()
            self._connection = await self._connect_in_time()
            try:
                await self._on_connected(self._connection)
            except BaseException:  # a timeout of the pump cancels this
                self.abandon()
                raise
        return self._connection

    def abandon(self) -> None:
        """Do not use the connection again, for example after an error."""
        if self._connection is not None:
            self._abandoned.append(self._connection.producer)
            self._connection = None

    async def close(self) -> None:
        """Abandon the connection, and end all its tasks in a bounded time. Idempotent."""
        self.abandon()
        await self._close_abandoned()

    async def _close_abandoned(self) -> None:
        while self._abandoned:
            producer = self._abandoned[0]
            await producer.abandon(self._clock)
            with contextlib.suppress(ValueError):  # a concurrent close() may have removed it
                self._abandoned.remove(producer)

    async def _connect_in_time(self) -> KafkaConnection:
        settings = self._settings
        seconds = settings.request_timeout.total_seconds()
        try:
            async with self._clock.timeout(seconds):
                return await self._connect()
        except TimeoutError as error:
            text = f"Kafka at {', '.join(settings.bootstrap_servers)}: not connected within {seconds:g} s"
            raise TransientError(await with_diagnosis(text, settings, self._clock)) from error
        except KafkaError as error:
            denied = describe_denial(error, settings.topic, settings)
            raise TransientError(denied or f"Kafka: {describe(error)}") from error

    async def _connect(self) -> KafkaConnection:
        settings = self._settings
        options = auth.client_options(settings, self._clock)
        topics = {}
        async with admin.connect_admin(settings, options) as client:
            for name in filter(None, (settings.topic, settings.state_topic)):
                is_compacted = name == settings.state_topic
                topics[name] = await client.ensure_topic(name, self._clock, is_compacted=is_compacted)
            for name, topic in topics.items():
                await client.check_writable(name)
                if topic.max_batch_bytes is not None:
                    self.max_batch_bytes = min(self.max_batch_bytes, topic.max_batch_bytes)
        producer = Producer(
            list(settings.bootstrap_servers),
            compression=None if settings.compression == "none" else settings.compression,
            max_bytes=self.max_batch_bytes,
            request_timeout=min(REQUEST_SECONDS, settings.request_timeout.total_seconds()),
            **options,
        )
        try:
            await start_client(producer)
        except BaseException:
            await producer.abandon(self._clock)
            raise
        return KafkaConnection(producer, topics, options, self._clock)


class _ProducerConnection:
    """The producer's own connections, for requests of an ``AdminClient``."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._client = connection.producer.client
        self._clock = connection.clock

    async def send(self, request: Any) -> Any:
        """Send a request to any broker that is connected."""
        brokers = [broker.nodeId for broker in self._client.cluster.brokers()]
        for broker in shuffled(brokers, self._clock):
            if await self._client.ready(broker):
                return await self._client.send(broker, request)
        raise KafkaConnectionError("no broker is reachable at a known address")


async def describe_topic(connection: KafkaConnection, topic: str, settings: KafkaSettings) -> TopicMetadata:
    """Return a topic's metadata, over the producer's connections.

    Raises:
        TransientError: The brokers cannot be reached over them, or describing the topic is not authorized.
    """
    client = admin.AdminClient(settings, _ProducerConnection(connection), "the connected broker")
    return await client.describe(topic)


async def read_offsets(connection: KafkaConnection, topic: str, partition: int, leader: int) -> tuple[int, int] | None:
    """Return the first offset of a partition and the one after its last; None if its leader does not respond now.

    ``leader`` is the leader's node id.
    """
    offsets = []
    try:
        async with connection.clock.timeout(_DIAGNOSIS_SECONDS):
            for time in (_EARLIEST, _LATEST):
                request = OffsetRequest(-1, 0, [(topic, [(partition, time)])])
                response = await connection.producer.client.send(leader, request)
                ((_, ((_, error_code, _, offset),)),) = response.topics
                if error_code:
                    return None
                offsets.append(offset)
    except (KafkaError, TimeoutError):
        return None
    first, end = offsets
    return first, end


async def has_moved(connection: KafkaConnection, topic: Topic, partition: int, settings: KafkaSettings) -> bool:
    """Return whether the topic was created again, or its leader has another address than the producer knows.

    The producer fetches metadata only from the addresses that it knows; this uses the bootstrap servers.
    """
    limit = connection.clock.timeout(_DIAGNOSIS_SECONDS)
    try:
        async with limit, admin.connect_admin(settings, connection.options) as client:
            current = await client.describe(topic.name)
    except (TransientError, TimeoutError):
        return False
    if not current.partitions or (current.id and topic.id and current.id != topic.id):
        return True
    cluster = connection.producer.client.cluster
    known = cluster.broker_metadata(cluster.leader_for_partition(TopicPartition(topic.name, partition)))
    leader = current.partitions[partition].leader if partition in current.partitions else None
    return leader is not None and (known is None or leader != f"{known.host}:{known.port}")


async def with_diagnosis(text: str, settings: KafkaSettings, clock: Clock, topic: str = "", partition: int = 0) -> str:
    """Add the state of a partition to an error message, if it can be determined within a few seconds."""
    try:
        async with clock.timeout(_DIAGNOSIS_SECONDS):
            return f"{text}; {await admin.describe_partition(topic or settings.topic, partition, settings, clock)}"
    except TransientError as error:
        return f"{text}; {error}"
    except TimeoutError:
        return text
