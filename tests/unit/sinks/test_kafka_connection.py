from __future__ import annotations

import asyncio
import gc
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from sinks.kafka.connection import end, start
from sinks.kafka.producer import Producer

VERSIONS = {18: (0, 0), 3: (0, 4)}  # of what a client asks first: which versions there are, and which brokers


class Hesitant:
    """A broker that tells its versions, and nothing else."""

    def __init__(self) -> None:
        self.address = ""
        self.asked, self.hung_up = asyncio.Event(), asyncio.Event()

    async def serve(self, asks: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        (number,) = struct.unpack_from(">i", await _request(asks), 4)
        versions = b"".join(struct.pack(">3h", key, *known) for key, known in VERSIONS.items())
        answer = struct.pack(">ihi", number, 0, len(VERSIONS)) + versions
        answers.write(struct.pack(">i", len(answer)) + answer)
        await _request(asks)
        self.asked.set()
        try:
            await asks.read()
        except ConnectionResetError:
            pass
        finally:
            self.hung_up.set()
            answers.close()


async def _request(asks: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack(">i", await asks.readexactly(4))
    return await asks.readexactly(size)


@pytest.fixture
async def broker() -> AsyncIterator[Hesitant]:
    broker = Hesitant()
    async with await asyncio.start_server(broker.serve, "127.0.0.1", 0) as server:
        broker.address = "{}:{}".format(*server.sockets[0].getsockname())
        yield broker


@pytest.mark.parametrize("kind", ["producer", "consumer"])
async def test_nothing_is_left_of_a_start_that_is_interrupted(broker: Hesitant, kind: str) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
    client: Any
    if kind == "producer":
        client = Producer([broker.address], compression=None, max_bytes=1000, request_seconds=60)
    else:
        client = AIOKafkaConsumer(bootstrap_servers=[broker.address])
    starting = asyncio.ensure_future(start(client))
    await broker.asked.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await (client.abandon() if kind == "producer" else end(client))
    del starting, client
    gc.collect()
    assert complaints == []
    await broker.hung_up.wait()
