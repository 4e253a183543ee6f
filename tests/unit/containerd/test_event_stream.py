"""Test the event stream: no lost events, bounded memory, few reads, and prompt reads when events come fast."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from bridge.containerd import envelope_batches
from bridge.containerd.client import ContainerdClient
from bridge.containerd.event_stream import (
    FILTERS,
    LINGER_SECONDS,
    MAX_BATCH_EVENTS,
    ContainerdEventStream,
    linger,
)
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.containerd.protos.events_pb2 import SubscribeRequest
from bridge.core.containerd_model import Event, Marker, Undecodable
from bridge.core.errors import StreamOverflowError, TransientError
from bridge.core.label_rules import LabelRules
from tests.golden import Golden
from tests.unit.containerd.http2_peer import (
    DATA,
    Peer,
    data,
    frames,
    goaway,
    message,
    messages,
    reset,
    response_headers,
    settings,
    trailers,
    trailers_only,
)


def envelope(namespace: str, topic: str, type_url: str, value: bytes = b"") -> bytes:
    return Envelope(namespace=namespace, topic=topic, event={"type_url": type_url, "value": value}).SerializeToString()


def marker_envelopes(numbers: range) -> list[bytes]:
    return [envelope("whalebridge", f"/whalebridge/marker/n/{number}", "google.protobuf.Empty") for number in numbers]


def markers(numbers: range) -> list[Event]:
    return [Marker("n", number) for number in numbers]


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path / "c.sock")
    yield peer
    peer.close()


async def subscribed(peer: Peer, **options: int) -> ContainerdEventStream:
    stream = ContainerdEventStream(peer.path, **options)
    peer.accept()
    await peer.send(settings() + response_headers())
    return stream


@pytest.fixture
async def stream(peer: Peer) -> AsyncIterator[ContainerdEventStream]:
    stream = await subscribed(peer)
    yield stream
    stream.close()


async def received(stream: ContainerdEventStream, events: int) -> list[Event]:
    received_events: list[Event] = []
    while len(received_events) < events:
        batch = await stream.batch()
        assert 1 <= len(batch) <= MAX_BATCH_EVENTS
        received_events.extend(batch)
    return received_events


async def all_received(stream: ContainerdEventStream) -> tuple[list[Event], TransientError]:
    """Return the events up to the end of the stream, and how it ended."""
    received_events: list[Event] = []
    while True:
        try:
            received_events.extend(await stream.batch())
        except TransientError as error:
            return received_events, error


async def test_event_stream_subscribes_to_required_topics(peer: Peer, stream: ContainerdEventStream) -> None:
    (request,) = (each.payload for each in frames(peer.received()) if each.type == DATA)
    assert request == message(SubscribeRequest(filters=FILTERS).SerializeToString())
    assert stream.drain() == []


async def test_event_stream_returns_events_in_order_and_batches(peer: Peer, stream: ContainerdEventStream) -> None:
    sending = asyncio.create_task(peer.send(messages(*marker_envelopes(range(20_000)))))
    assert await received(stream, 20_000) == markers(range(20_000))
    await sending


async def test_event_stream_buffers_events_between_reads(peer: Peer, stream: ContainerdEventStream) -> None:
    for number in range(10):
        await peer.send(messages(*marker_envelopes(range(number, number + 1))))
        await asyncio.sleep(0.1)
    assert await stream.batch() == markers(range(10))


async def test_event_stream_reads_while_events_are_not_taken(peer: Peer, stream: ContainerdEventStream) -> None:
    async with asyncio.timeout(10):
        await peer.send(messages(*marker_envelopes(range(50_000))))
    await asyncio.sleep(1)
    assert await received(stream, 50_000) == markers(range(50_000))


async def test_event_stream_delivers_single_event_without_delay(peer: Peer, stream: ContainerdEventStream) -> None:
    loop = asyncio.get_running_loop()
    for number in range(10):
        await asyncio.sleep(1)
        await peer.send(messages(*marker_envelopes(range(number, number + 1))))
        began = loop.time()
        assert await stream.batch() == markers(range(number, number + 1))
        assert loop.time() == began


async def test_event_stream_collects_frequent_events(peer: Peer, stream: ContainerdEventStream) -> None:
    """At 200 events per second, a batch has four of them, and the socket is read as often as a batch is taken."""

    async def send() -> None:
        for number in range(400):
            await peer.send(messages(*marker_envelopes(range(number, number + 1))))
            await asyncio.sleep(0.005)

    reads = 0
    original = stream._connection._read

    def read() -> int:
        nonlocal reads
        reads += 1
        return original()

    stream._connection._read = read  # type: ignore[method-assign] # counted
    sending = asyncio.create_task(send())
    batches: list[Sequence[Event]] = []
    while sum(len(batch) for batch in batches) < 400:
        batches.append(await stream.batch())
    await sending
    assert [event for batch in batches for event in batch] == markers(range(400))
    assert len(batches) < 120
    assert reads < 150


async def test_event_stream_reads_flood_before_socket_is_full(peer: Peer, stream: ContainerdEventStream) -> None:
    """At 10,000 events per second, the batches are large, but containerd never waits for the stream."""
    loop = asyncio.get_running_loop()
    waits = []

    async def send() -> None:
        for number in range(0, 20_000, 10):
            began = loop.time()
            await peer.send(messages(*marker_envelopes(range(number, number + 10))))
            waits.append(loop.time() - began)
            await asyncio.sleep(0.001)

    sending = asyncio.create_task(send())
    batches: list[Sequence[Event]] = []
    while sum(len(batch) for batch in batches) < 20_000:
        batches.append(await stream.batch())
    await sending
    assert len(batches) < 40
    assert max(waits[100:]) == 0


async def test_event_stream_reads_large_events_at_full_speed(peer: Peer, stream: ContainerdEventStream) -> None:
    """The socket holds less than a quarter of an event, and no batch is taken."""
    large = message(envelope("shop", "/tasks/large", "x", b"x" * 1024 * 1024))
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(48):
        await peer.send(b"".join(data(large[at : at + 16_384]) for at in range(0, len(large), 16_384)))
    assert loop.time() - began < 2
    await asyncio.sleep(0.1)
    assert len(await received(stream, 48)) == 48


async def test_event_stream_continues_after_undecodable_event(peer: Peer, stream: ContainerdEventStream) -> None:
    await peer.send(messages(envelope("shop", "/tasks/oom", "containerd.events.TaskOOM", b"\xff")))
    await peer.send(messages(*marker_envelopes(range(1))))
    undecodable, marker = await received(stream, 2)
    assert isinstance(undecodable, Undecodable)
    assert marker == Marker("n", 0)


async def test_event_stream_loses_nothing_when_read_is_canceled(peer: Peer, stream: ContainerdEventStream) -> None:
    events: list[Event] = []
    for number in range(50):
        waiting = asyncio.create_task(stream.batch())
        await peer.send(messages(*marker_envelopes(range(number, number + 1))))
        await asyncio.sleep(0.001)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            events.extend(await waiting)
    if len(events) < 50:
        events += await received(stream, 50 - len(events))
    assert events == markers(range(50))


class TestEnd:
    @pytest.mark.parametrize(
        ("end", "text"),
        [
            (b"", "connection closed"),
            (goaway(0), "shutting down"),
            (goaway(1), "connection closed"),
            (reset(1, 8), "closed"),
            (trailers(status="14", text="stopping"), "stopping"),
            (b"garbage in place of a frame", "invalid HTTP/2 data"),
            (data(b"\1\0\0\0\0"), "compressed"),
        ],
    )
    async def test_event_stream_returns_all_events_before_error(
        self, peer: Peer, stream: ContainerdEventStream, end: bytes, text: str
    ) -> None:
        await received_first(peer, stream)
        await peer.send(messages(*marker_envelopes(range(1, 300))) + end)
        peer.received()
        peer.hang_up()
        events, error = await all_received(stream)
        assert events == markers(range(1, 300))
        assert text in str(error)
        assert not isinstance(error, StreamOverflowError)
        with pytest.raises(TransientError, match=re.escape(str(error))):
            await stream.batch()

    async def test_event_stream_close_keeps_what_has_arrived(self, peer: Peer, stream: ContainerdEventStream) -> None:
        await received_first(peer, stream)
        await peer.send(messages(*marker_envelopes(range(1, 300))))
        for _ in range(2):
            stream.close()
        assert stream.drain() == markers(range(1, 300))
        with pytest.raises(TransientError, match=re.escape(peer.path)):
            await stream.batch()

    async def test_event_stream_raises_when_server_ends_stream(
        self, peer: Peer, stream: ContainerdEventStream, golden: Golden
    ) -> None:
        await peer.send(trailers())
        with golden.error("containerd_errors", "event stream, orderly end", TransientError, peer.path):
            await stream.batch()

    async def test_event_stream_raises_when_containerd_is_missing(self, tmp_path: Path, golden: Golden) -> None:
        stream = ContainerdEventStream(f"{tmp_path}/c.sock")
        with golden.error("containerd_errors", "event stream, no socket", TransientError, tmp_path / "c.sock"):
            await stream.batch()
        stream.close()

    async def test_event_stream_close_wakes_pending_read(
        self, peer: Peer, stream: ContainerdEventStream, golden: Golden
    ) -> None:
        waiting = asyncio.create_task(stream.batch())
        await asyncio.sleep(0)
        stream.close()
        with golden.error("containerd_errors", "event stream closed", TransientError, peer.path):
            await waiting

    async def test_event_stream_closes_connection(self, peer: Peer, stream: ContainerdEventStream) -> None:
        peer.received()
        stream.close()
        with pytest.raises(BrokenPipeError):
            await peer.send(b"more")

    def test_event_stream_closes_after_event_loop_ended(self, tmp_path: Path) -> None:
        peer = Peer(tmp_path / "c.sock")
        stream = asyncio.run(subscribed(peer))
        stream.close()
        peer.close()

    async def test_client_close_closes_event_streams(self, peer: Peer, golden: Golden) -> None:
        async with ContainerdClient(peer.path, LabelRules.keep_all()) as client:
            streams = [await client.subscribe() for _ in range(2)]
            peer.accept()
        for stream in streams:
            with golden.error("containerd_errors", "stream after close", TransientError, peer.path):
                await stream.batch()


async def received_first(peer: Peer, stream: ContainerdEventStream) -> None:
    """Let a batch be taken, so that the next one collects events."""
    await peer.send(messages(*marker_envelopes(range(1))))
    assert await stream.batch() == markers(range(1))


class TestOverflow:
    async def test_event_stream_raises_overflow_when_buffer_is_full(self, peer: Peer, golden: Golden) -> None:
        stream = await subscribed(peer, buffer_bytes=100_000)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # unread events would fill containerd's memory
            await peer.send(messages(*marker_envelopes(range(10_000))))
        for _ in range(2):
            with golden.error("containerd_errors", "event stream, overflow", StreamOverflowError, 100000, peer.path):
                await stream.batch()
        assert stream.drain() == []
        stream.close()

    async def test_event_stream_frees_buffer_on_read(self, peer: Peer) -> None:
        stream = await subscribed(peer, buffer_bytes=100_000)
        for number in range(0, 5_000, 100):
            await peer.send(messages(*marker_envelopes(range(number, number + 100))))
            assert await received(stream, 100) == markers(range(number, number + 100))
        stream.close()

    async def test_event_stream_raises_overflow_when_proxy_reports_it(
        self, peer: Peer, stream: ContainerdEventStream
    ) -> None:
        await peer.send(messages(*marker_envelopes(range(3))) + trailers(status="8", text="too slow"))
        events, error = await all_received(stream)
        assert events == markers(range(3))
        assert isinstance(error, StreamOverflowError)
        assert "too slow" in str(error)


class TestBatchedEnvelopes:
    @staticmethod
    async def subscribed_to_proxy(peer: Peer) -> ContainerdEventStream:
        stream = ContainerdEventStream(peer.path)
        peer.accept()
        await peer.send(settings() + response_headers(metadata=[envelope_batches.HEADER]))
        return stream

    @staticmethod
    def batched(envelopes: Sequence[bytes]) -> bytes:
        return messages(*envelope_batches.batch(envelopes))

    async def test_event_stream_reads_batches_of_proxy(self, peer: Peer) -> None:
        stream = await self.subscribed_to_proxy(peer)
        await peer.send(self.batched(marker_envelopes(range(100))) + self.batched(marker_envelopes(range(100, 101))))
        assert await received(stream, 101) == markers(range(101))
        stream.close()

    async def test_event_stream_raises_when_batch_is_unreadable(self, peer: Peer, golden: Golden) -> None:
        stream = await self.subscribed_to_proxy(peer)
        await peer.send(self.batched(marker_envelopes(range(10))) + messages(b"\xff") + trailers_only())
        assert await stream.batch() == markers(range(10))
        with golden.error("containerd_errors", "event stream, unreadable batch", TransientError, peer.path):
            await stream.batch()


@pytest.mark.parametrize(
    ("events", "seconds", "expected"),
    [(1, 60, LINGER_SECONDS), (1, 0.005, 0.02), (2, 0.004, 0.01), (20, 0.02, 0.02), (640, 0.1, 0.1), (4096, 0, 0.1)],
)
def test_event_stream_linger_grows_with_event_rate(events: int, seconds: float, expected: float) -> None:
    assert linger(events, seconds) == pytest.approx(expected)
