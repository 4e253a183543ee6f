"""What aiokafka lacks, or does wrong; all uses of its internals are here.

Each function names the issue of github.com/aio-libs/aiokafka that would make it unnecessary, if there is one.
pyproject.toml bounds aiokafka to the versions that this module was tested with, and
tests/unit/sinks/test_aiokafka_patches.py fails when a name that is used here has disappeared.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeAlias

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import BrokerResponseError, KafkaConnectionError, kafka_errors
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v4, MetadataRequest_v5
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from bridge.core.errors import TransientError
from bridge.task_groups import completes_within, with_timeout
from sinks.credentials import abort_transport

if TYPE_CHECKING:
    from bridge.core.ports import Clock

STOP_STEP_SECONDS = 0.5  # for each of the two steps in which a producer is abandoned
STOP_SECONDS = 1.0  # for each of the two steps in which a consumer is stopped
_MAX_CANCELS = 10  # the sender forwards the first cancellations to the tasks that it awaits


# --- clients that start and stop without leaks, in a bounded time ---


class Producer(AIOKafkaProducer):  # type: ignore[misc] # aiokafka has no types
    """An idempotent producer with ``acks=all``, whose batches may be as large as a request."""

    def __init__(
        self, servers: list[str], *, compression: str | None, max_bytes: int, request_timeout: float, **options: Any
    ) -> None:
        super().__init__(
            bootstrap_servers=servers,
            enable_idempotence=True,
            acks="all",
            compression_type=compression,
            max_batch_size=max_bytes,
            max_request_size=max_bytes,
            request_timeout_ms=int(request_timeout * 1000),
            **options,
        )

    async def abandon(self, clock: Clock) -> None:
        """Stop in a bounded time, without waiting for deliveries in flight (issue 1101).

        ``stop()`` waits until everything is delivered, which with a dead broker is never; an interrupted stop leaves
        tasks that retry and may deliver old records hours later.
        """
        for connection in list(self.client._conns.values()):
            _abort_transport(connection)  # otherwise unsent data would wait for the broker
        sender = self._sender.sender_task
        for _ in range(_MAX_CANCELS):
            if sender is None or sender.done():
                break
            sender.cancel()
            await completes_within(STOP_STEP_SECONDS / _MAX_CANCELS, clock, asyncio.wait([sender]))
        self._fail_batches()
        with contextlib.suppress(Exception):  # errors of abandoned deliveries
            await completes_within(STOP_STEP_SECONDS, clock, self.stop())

    def _fail_batches(self) -> None:
        accumulator = self._message_accumulator
        batches = {*accumulator._pending_batches, *(each for queue in accumulator._batches.values() for each in queue)}
        accumulator._pending_batches |= batches  # fail_all() looks here; batches that wait for a retry are elsewhere
        accumulator.fail_all(KafkaConnectionError("abandoned"))
        for batch in batches:
            for future in (batch.future, batch._drain_waiter):
                if future.done() and not future.cancelled():
                    future.exception()  # retrieved, so that asyncio does not log it if no task awaits it


async def start_client(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Start a client (issue 715); after an error, the caller must still close the client.

    A client sends its first request on a separate connection. If this request is interrupted, aiokafka leaves that
    connection open, with a task that reads from it; the only reference to it is in the traceback.
    """
    try:
        await client.start()
    except BaseException as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if connection := frame.f_locals.get("bootstrap_conn"):
                await abort(connection)
        raise


async def stop_consumer(consumer: AIOKafkaConsumer, clock: Clock) -> None:
    """Close a consumer in a bounded time, in any state (issues 647 and 1013)."""
    # If a fetch is in flight, aiokafka fails on its own cancellation and does not close the client.
    for close in (consumer.stop, consumer._client.close):
        ended = partial(asyncio.gather, close(), return_exceptions=True)  # errors do not matter any more
        with contextlib.suppress(TransientError):
            await with_timeout(ended, STOP_SECONDS, clock)


async def abort(connection: AIOKafkaConnection) -> None:
    """Close a connection without waiting for the server, which may hang (no issue)."""
    if connection._writer is not None:  # otherwise it is closed
        _abort_transport(connection)
        await asyncio.wait([connection.close()])


def _abort_transport(connection: AIOKafkaConnection) -> None:
    if connection._writer is not None:
        abort_transport(connection._writer.transport)


# --- a group's assignments (no issue) ---


def sticky_assignor() -> type[StickyPartitionAssignor]:
    """Return an assignor for one consumer: aiokafka keeps what a consumer has been assigned in the class."""
    return type("Assignor", (StickyPartitionAssignor,), {})


# --- an error that aiokafka does not know (no issue) ---


class InvalidRecordError(BrokerResponseError):  # type: ignore[misc] # aiokafka has no types
    """A broker's validation (of schemas, of compacted topics) rejects a record."""

    errno = 87
    message = "INVALID_RECORD"
    description = "This record has failed the validation on the broker."


kafka_errors.setdefault(InvalidRecordError.errno, InvalidRecordError)  # otherwise for_code() returns UnknownError


# --- metadata with topic ids: a version of the request that aiokafka lacks (no issue) ---

_UUID_BYTES = 16
_NO_ID = bytes(_UUID_BYTES)
_TEXT = CompactString("utf-8")
_WITH_ID = 10  # the version that adds topic ids


class _Uuid(AbstractType):  # type: ignore[misc] # aiokafka has no types
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(_UUID_BYTES)


class MetadataResponse_v10(Response):  # type: ignore[misc] # noqa: N801 (aiokafka's naming)
    """Kafka's MetadataResponse, version 10."""

    API_KEY = 3
    API_VERSION = _WITH_ID
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(("node_id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), ("tags", TaggedFields)),
        ),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", _TEXT),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class MetadataRequest_v10(RequestStruct):  # type: ignore[misc] # noqa: N801 (aiokafka's naming)
    """Kafka's MetadataRequest, version 10."""

    API_KEY = 3
    API_VERSION = _WITH_ID
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = MetadataResponse_v10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", _TEXT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


_Versions: TypeAlias = MetadataRequest_v4 | MetadataRequest_v5 | MetadataRequest_v10


class TopicMetadataRequest(Request[_Versions]):  # type: ignore[misc] # aiokafka has no types
    """A request for the metadata of one topic; it never creates the topic, as some brokers would."""

    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: Any) -> Any:
        """Return the request in the version that aiokafka has negotiated."""
        if request_struct_class.API_VERSION < _WITH_ID:
            return request_struct_class([self._topic], False)
        return request_struct_class([(_NO_ID, self._topic, {})], False, False, False, {})


def topic_id(topic_metadata: tuple[Any, ...]) -> str:
    """Return the id of a topic in a response; "" if the brokers are older than 2.8 and do not report it."""
    value = topic_metadata[2]
    return value.hex() if isinstance(value, bytes) else ""
