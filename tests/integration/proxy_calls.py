"""Call the proxy as any client can, and observe the effects."""

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
from bridge.containerd.event_stream import ContainerdEventStream
from bridge.core.containerd_model import Event, Ignored, Marker, Undecodable
from bridge.core.errors import TransientError
from bridge.core.label_rules import LabelRules
from tests.proxy_process import ProxyProcess
from tests.simulator import wire
from tests.testbed.containerd import Containerd

MIB = 1024 * 1024
KEEP_ALL = LabelRules.keep_all()
DEFAULT = ((methods.NAMESPACE_HEADER, "default"),)
_numbers = itertools.count(1)


def unique_id(prefix: str) -> str:
    """Return a unique id."""
    return f"{prefix}-{os.getpid()}-{next(_numbers)}"


def unary_call(channel: grpc.aio.Channel, method: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    """Return a callable for a unary method, bytes in and bytes out."""
    return channel.unary_unary(method)


def stream_call(channel: grpc.aio.Channel, method: str) -> grpc.aio.UnaryStreamMultiCallable[bytes, bytes]:
    """Return a callable for a server-streaming method, bytes in and bytes out."""
    return channel.unary_stream(method)


async def call_outcome(
    channel: grpc.aio.Channel, method: str, *requests: bytes, namespace: str = "default", seconds: float = 20
) -> StatusCode:
    """Return the status of a call; with other than one request, the call streams the requests."""
    metadata = ((methods.NAMESPACE_HEADER, namespace),)
    call: grpc.aio.UnaryStreamCall[bytes, bytes] | grpc.aio.StreamStreamCall[bytes, bytes]
    if len(requests) == 1:
        call = stream_call(channel, method)(*requests, timeout=seconds, metadata=metadata)
    else:
        streams: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
        call = streams(iter(requests), timeout=seconds, metadata=metadata)
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    return await call.code()


def containerd_state(engine: Containerd) -> list[str]:
    """Return everything that a client could have changed, as listed by containerd's own client."""
    commands = (["namespaces", "ls"], ["containers", "ls"], ["tasks", "ls"], ["snapshots", "ls"], ["leases", "ls"])
    quiet = (["images", "ls", "--quiet"], ["content", "ls", "--quiet"])  # the full output contains ages
    return [line for words in (*commands, *quiet) for line in sorted(engine.ctr(*words).stdout.splitlines())]


def collect_garbage(engine: Containerd) -> None:
    """Let containerd remove what nothing refers to any more, which it otherwise does at some time."""
    engine.ctr("leases", "create", "--id", "garbage")
    engine.ctr("leases", "delete", "--sync", "garbage")


async def events_before_marker(address: str, stream: ContainerdEventStream) -> None:
    """Publish markers until one returns, and discard the events before it."""
    async with ContainerdClient(address, KEEP_ALL) as client, asyncio.timeout(20):
        for number in itertools.count():
            await client.publish_marker("drain", number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    while Marker("drain", number) not in await stream.batch():
                        pass
                    return


def without_container_events(events: Sequence[Event], kept_id: str = "") -> list[Event]:
    """Remove container events, except of ``kept_id``: shims publish late, also about containers of earlier tests."""
    return [each for each in events if isinstance(each, Marker | Ignored | Undecodable) or each.key.id == kept_id]


async def first_messages(address: str, *calls: grpc.aio.UnaryStreamCall[bytes, bytes]) -> list[bytes]:
    """Publish markers until each subscription has a first message, and return those: then all are subscribed."""
    reading = [asyncio.ensure_future(call.read()) for call in calls]
    async with ContainerdClient(address, KEEP_ALL) as client, asyncio.timeout(30):
        for number in itertools.count():
            await client.publish_marker("first", number)
            _, pending = await asyncio.wait(reading, timeout=0.1)
            if not pending:
                break
    return [raw for each in reading if isinstance(raw := each.result(), bytes)]


async def wait_ready(proxy: ProxyProcess) -> None:
    """Wait until the proxy accepts a connection; recently closed ones may still count towards its limit."""
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
    """Connect many times and send random bytes, after the beginnings of various protocols."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for start in (b"", b"GET / HTTP/1.1\r\n\r\n", preface, preface + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])):
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(ConnectionError):
                client.connect(address)
                client.sendall(start + secrets.token_bytes(4096))


async def publish_bulk(engine: Containerd, mebibytes: int) -> None:
    """Make containerd send large, irrelevant events to its subscribers, 1 MiB each."""
    event = wire.field(1, "/tasks/large") + wire.field(2, wire.any_message("x", b"x" * MIB))
    async with grpc.aio.insecure_channel(methods.target(engine.address), options=methods.channel_options()) as direct:
        for _ in range(mebibytes):
            await unary_call(direct, methods.PUBLISH.path)(event, metadata=DEFAULT)
