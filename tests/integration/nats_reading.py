"""Shared helpers of the NATS sink tests: a plain reader of stored messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec
import nats.aio.client
import nats.errors
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig
from nats.js.errors import NoStreamResponseError, ServiceUnavailableError

from bridge.clock import SystemClock
from bridge.core.records import Record
from config.sinks.nats import NatsSettings
from sinks.nats.sink import NatsSink
from tests.integration.target_checks import publish_until_accepted
from tests.sample_records import records
from tests.testbed.nats import Nats
from tests.testbed.server import HOST

NatsFactory = Callable[..., Nats]
_T = TypeVar("_T")
_NO_LEADER = (nats.errors.TimeoutError, NoStreamResponseError, ServiceUnavailableError)


class StoredMessage(NamedTuple):
    """A message of a stream."""

    subject: str
    data: bytes
    headers: dict[str, str]

    @property
    def position(self) -> tuple[int, int]:
        """The epoch and sequence of its record."""
        document = msgspec.json.decode(self.data)
        return document["epoch"], document["sequence"]


def settings(peer: Nats, subject: str = "events", **options: Any) -> NatsSettings:
    """Return the settings of a sink for a NATS, with a timeout that suits a loaded machine."""
    servers = [url.partition("//")[2] for url in peer.urls]
    return NatsSettings.model_validate({"servers": servers, "subject_prefix": subject, "timeout": "20s", **options})


async def start_sink(peer: Nats, subject: str = "events", **options: Any) -> NatsSink:
    """Create a sink and connect it."""
    sink = NatsSink(settings(peer, subject, **options), SystemClock())
    try:
        await sink.start()
    except BaseException:
        await sink.close()
        raise
    return sink


async def wait_connection_ended(sink: NatsSink) -> None:
    """Wait until a sink detects the end of its connection."""
    assert sink._connection
    async with asyncio.timeout(60):
        await asyncio.wait({sink._connection.failed})


def record_positions(messages: Sequence[Record] | Sequence[StoredMessage]) -> list[tuple[int, int]]:
    """Return the positions of records, or of messages with one record each."""
    return [each.position if isinstance(each, StoredMessage) else (each.epoch, each.sequence) for each in messages]


async def retry_until_available(request: Callable[[], Awaitable[_T]]) -> _T:
    """Retry a request until a leader responds."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await request()
            except _NO_LEADER:
                await asyncio.sleep(0.05)


class StreamReader:
    """A plain client, connected to a URL, or to a peer without its proxies; a context manager."""

    def __init__(self, peer: Nats | str) -> None:
        self._urls = [peer] if isinstance(peer, str) else [f"nats://{HOST}:{node.port}" for node in peer.nodes]
        self.client = nats.aio.client.Client()

    async def __aenter__(self) -> StreamReader:
        await self.client.connect(self._urls, error_cb=_ignore_error)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    @property
    def jetstream(self) -> JetStreamContext:
        """The JetStream context of the client."""
        return self.client.jetstream(timeout=10)

    async def wait_count(self, count: int, stream: str = "WHALEBRIDGE_EVENTS") -> int:
        """Wait until a stream has at least ``count`` messages, and return the number."""
        async with asyncio.timeout(60):
            while (stored := await retry_until_available(partial(self._count, stream))) < count:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.02)
        return stored

    async def read_stored(self, stream: str = "WHALEBRIDGE_EVENTS", *, minimum: int = 0) -> list[StoredMessage]:
        """Return all messages of a stream in order, once it has at least ``minimum``."""
        await self.wait_count(minimum, stream)
        return await retry_until_available(partial(self._read, stream))

    async def read_bucket(self, name: str) -> dict[str, bytes]:
        """Return the entries of a KV bucket; nats-py's ``keys`` sometimes finds none (its marker of the end races)."""
        entries: dict[str, bytes] = {}
        for message in await self.read_stored(f"KV_{name}"):
            key = message.subject.removeprefix(f"$KV.{name}.")
            if "KV-Operation" in message.headers:
                entries.pop(key, None)
            else:
                entries[key] = message.data
        return entries

    async def _count(self, stream: str) -> int:
        return (await self.jetstream.stream_info(stream)).state.messages

    async def _read(self, stream: str) -> list[StoredMessage]:
        # By default a server deletes a consumer after 5 s of inactivity.
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, inactive_threshold=60)
        subscription = await self.jetstream.pull_subscribe(">", stream=stream, config=config)
        messages: list[StoredMessage] = []
        pending = (await subscription.consumer_info()).num_pending or 0
        while pending:
            page = await subscription.fetch(min(1000, pending), timeout=10)
            messages += [StoredMessage(each.subject, each.data, dict(each.headers or {})) for each in page]
            pending = page[-1].metadata.num_pending
        await subscription.unsubscribe()
        return messages


async def _ignore_error(_: Exception) -> None:
    """Ignore an error; by default the client logs it."""


async def check_streams_under_failures(
    peer: Nats, prefix: str, failures: Coroutine[None, None, None], *, sink_timeout: str
) -> None:
    """Publish to a stream with atomic batches and to one without during failures, and check both.

    The streams are PREFIX_BATCHES and PREFIX_SINGLE.
    """
    failing = asyncio.ensure_future(failures)
    await asyncio.gather(
        _check_stream_under_failures(peer, f"{prefix}_batches", failing, atomic=True, sink_timeout=sink_timeout),
        _check_stream_under_failures(peer, f"{prefix}_single", failing, atomic=False, sink_timeout=sink_timeout),
    )


async def add_streams(peer: Nats, prefix: str, *, replicas: int = 1) -> None:
    """Create the two streams of ``check_streams_under_failures``."""
    async with StreamReader(peer) as reader:
        for name, atomic in ((f"{prefix}_batches", True), (f"{prefix}_single", False)):
            config = StreamConfig(
                f"WHALEBRIDGE_{name.upper()}",
                subjects=[f"{name}.>"],
                num_replicas=replicas,
                duplicate_window=3600,
                allow_atomic=atomic,
            )
            await retry_until_available(partial(reader.jetstream.add_stream, config))


async def _check_stream_under_failures(
    peer: Nats, subject: str, failing: asyncio.Future[None], *, atomic: bool, sink_timeout: str
) -> None:
    sink = NatsSink(settings(peer, subject, timeout=sink_timeout), SystemClock())
    published = 0
    errors: list[str] = []
    try:
        while not failing.done() or published < 2000:
            batch = records(1 + published % 397, first_sequence=published + 1)
            errors += await publish_until_accepted(sink, batch, seconds=240)
            published += len(batch)
        await failing
    finally:
        await sink.close()  # its connection would let a later test fail
    assert errors
    async with StreamReader(peer) as reader:
        # A server that was suspended may consider itself the leader for a moment.
        stored = record_positions(await reader.read_stored(f"WHALEBRIDGE_{subject.upper()}", minimum=published))
    expected = record_positions(records(published))
    assert sorted(stored) == expected  # each exactly once
    if atomic:
        assert stored == expected
