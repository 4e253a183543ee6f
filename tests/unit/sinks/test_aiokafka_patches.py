"""Test that the patches of aiokafka work, and that the internals that they use still exist."""

from __future__ import annotations

import asyncio
import gc
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import for_code
from aiokafka.producer.message_accumulator import MessageBatch
from aiokafka.producer.sender import Sender

from bridge.clock import SystemClock
from sinks.kafka import aiokafka_patches
from sinks.kafka.aiokafka_patches import InvalidRecordError, Producer, start_client, stop_consumer
from tests.unit.sinks.library_internals import check_internals

pytestmark = pytest.mark.real_time

CLOCK = SystemClock()
VERSIONS = {18: (0, 0), 3: (0, 4)}  # API versions of the first requests of a client: ApiVersions and Metadata


class UnresponsiveBroker:
    """A broker that responds only to ApiVersions requests."""

    def __init__(self) -> None:
        self.address = ""
        self.requested, self.disconnected = asyncio.Event(), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (number,) = struct.unpack_from(">i", await _request(reader), 4)
        versions = b"".join(struct.pack(">3h", key, *version_range) for key, version_range in VERSIONS.items())
        response = struct.pack(">ihi", number, 0, len(VERSIONS)) + versions
        writer.write(struct.pack(">i", len(response)) + response)
        await _request(reader)
        self.requested.set()
        try:
            await reader.read()
        except ConnectionResetError:
            pass
        finally:
            self.disconnected.set()
            writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(size)


@pytest.fixture
async def broker() -> AsyncIterator[UnresponsiveBroker]:
    broker = UnresponsiveBroker()
    async with await asyncio.start_server(broker.serve, "127.0.0.1", 0) as server:
        broker.address = "{}:{}".format(*server.sockets[0].getsockname())
        yield broker


@pytest.mark.parametrize("kind", ["producer", "consumer"])
async def test_kafka_client_leaves_nothing_when_start_is_canceled(broker: UnresponsiveBroker, kind: str) -> None:
    errors: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(str(context)))
    client: Any
    if kind == "producer":
        client = Producer([broker.address], compression=None, max_bytes=1000, request_timeout=60)
    else:
        client = AIOKafkaConsumer(bootstrap_servers=[broker.address])
    starting = asyncio.ensure_future(start_client(client))
    await broker.requested.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await (client.abandon(CLOCK) if kind == "producer" else stop_consumer(client, CLOCK))
    del starting, client
    gc.collect()
    assert errors == []
    await broker.disconnected.wait()


async def test_aiokafka_has_internals_that_patches_use() -> None:
    producer = Producer(["k1:9092"], compression=None, max_bytes=1000, request_timeout=1)
    consumer = AIOKafkaConsumer(bootstrap_servers=["k1:9092"])
    accumulator = producer._message_accumulator
    owners = {
        "_conns": producer.client,
        "_sender": producer,
        "_message_accumulator": producer,
        "_pending_batches": accumulator,
        "_batches": accumulator,
        "_drain_waiter": MessageBatch(TopicPartition("t", 0), producer.create_batch(), 1, 0),
        "_client": consumer,
        "_writer": AIOKafkaConnection("k1", 9092),
    }
    check_internals(aiokafka_patches, {"_fail_batches", "_topic"}, owners)
    assert hasattr(Sender, "sender_task")
    assert hasattr(accumulator, "fail_all")
    assert "bootstrap_conn" in AIOKafkaClient.bootstrap.__code__.co_varnames, "see start_client()"
    await producer.abandon(CLOCK)
    await stop_consumer(consumer, CLOCK)


def test_aiokafka_reports_records_that_brokers_reject() -> None:
    assert for_code(87) is InvalidRecordError, "see InvalidRecordError: aiokafka has an error of its own"
