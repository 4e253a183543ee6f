"""Calling the proxy as any client can, and knowing what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import socket
from collections.abc import Sequence

import grpc
from grpc import StatusCode

from bridge.containerd import methods
from bridge.containerd.client import ContainerdClient
from bridge.containerd.stream import ContainerdEventStream
from bridge.core.containerd_model import Event, Ignored, Marker, Undecodable
from bridge.core.errors import TransientError
from bridge.core.labels import LabelRules
from tests.proxy_process import ProxyProcess
from tests.simulator import wire
from tests.testbed.containerd import Containerd

MIB = 1024 * 1024
KEEP_ALL = LabelRules.keep_all()
DEFAULT = ((methods.NAMESPACE_HEADER, "default"),)
_numbers = itertools.count(1)


def unique_id(prefix: str) -> str:
    """An id of this process's own."""
    return f"{prefix}-{os.getpid()}-{next(_numbers)}"


def unary_call(channel: grpc.aio.Channel, method: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    """A method with one answer, bytes in and bytes out."""
    return channel.unary_unary(method)


def stream_call(channel: grpc.aio.Channel, method: str) -> grpc.aio.UnaryStreamMultiCallable[bytes, bytes]:
    """A method with many answers, bytes in and bytes out."""
    return channel.unary_stream(method)


async def call_outcome(
    channel: grpc.aio.Channel, method: str, *requests: bytes, namespace: str = "default"
) -> StatusCode:
    """What a call ends with; one with other than one request is made as a stream of them."""
    metadata = ((methods.NAMESPACE_HEADER, namespace),)
    call: grpc.aio.UnaryStreamCall[bytes, bytes] | grpc.aio.StreamStreamCall[bytes, bytes]
    if len(requests) == 1:
        call = stream_call(channel, method)(*requests, timeout=20, metadata=metadata)
    else:
        streams: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
        call = streams(iter(requests), timeout=20, metadata=metadata)
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    return await call.code()


def containerd_state(engine: Containerd) -> list[str]:
    """What a client could have changed, as containerd's own client tells it."""
    asked = (["namespaces", "ls"], ["containers", "ls"], ["tasks", "ls"], ["snapshots", "ls"], ["leases", "ls"])
    quietly = (["images", "ls", "--quiet"], ["content", "ls", "--quiet"])  # else they tell an age
    return [line for words in (*asked, *quietly) for line in sorted(engine.ctr(*words).stdout.splitlines())]


async def events_before_marker(address: str, stream: ContainerdEventStream) -> None:
    """Mark until a mark is back, and take what came with it."""
    async with ContainerdClient(address, KEEP_ALL) as client, asyncio.timeout(20):
        for number in itertools.count():
            await client.publish_marker("proven", number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    while Marker("proven", number) not in await stream.batch():
                        pass
                    return


def without_container_events(events: Sequence[Event], kept_topics: str = "") -> list[Event]:
    """Events without those of containers: shims tell later than they act, also of what an earlier test has removed."""
    return [each for each in events if isinstance(each, Marker | Ignored | Undecodable) or each.key.id == kept_topics]


async def first_messages(address: str, *calls: grpc.aio.UnaryStreamCall[bytes, bytes]) -> list[bytes]:
    """Mark until each of these subscriptions has told something, and return that: from now on they miss nothing."""
    reading = [asyncio.ensure_future(call.read()) for call in calls]
    async with ContainerdClient(address, KEEP_ALL) as client, asyncio.timeout(30):
        for number in itertools.count():
            await client.publish_marker("first", number)
            _, waiting = await asyncio.wait(reading, timeout=0.1)
            if not waiting:
                break
    return [raw for each in reading if isinstance(raw := each.result(), bytes)]


async def wait_ready(proxy: ProxyProcess) -> None:
    """Connect, once connections that were closed a moment ago do not count any more."""
    async with asyncio.timeout(20):
        while True:
            async with ContainerdClient(proxy.address, KEEP_ALL) as client:
                try:
                    await client.engine()
                except TransientError:
                    await asyncio.sleep(0.2)
                else:
                    return


def send_garbage(address: str) -> None:
    """Connect many times, and send what begins like something else each time, and goes on at random."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for start in (b"", b"GET / HTTP/1.1\r\n\r\n", preface, preface + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])):
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(ConnectionError):
                client.connect(address)
                client.sendall(start + secrets.token_bytes(4096))


async def publish_bulk(engine: Containerd, mebibytes: int) -> None:
    """Let containerd send that much to its subscribers, in events that mean nothing."""
    event = wire.field(1, "/tasks/large") + wire.field(2, wire.any_message("x", b"x" * MIB))
    async with grpc.aio.insecure_channel(methods.target(engine.address), options=methods.channel_options()) as direct:
        for _ in range(mebibytes):
            await unary_call(direct, methods.PUBLISH.path)(event, metadata=DEFAULT)
