"""Test the event stream on a simulated containerd: no lost events, bounded memory, no thread left after close."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from bridge.containerd.client import ContainerdClient
from bridge.containerd.event_stream import LINGER_SECONDS, MAX_BATCH_EVENTS, ContainerdEventStream, linger
from bridge.core.containerd_model import ContainerKey, Event, Marker, TaskOOM, Undecodable
from bridge.core.errors import StreamOverflowError, TransientError
from bridge.core.label_rules import LabelRules
from tests.eventually import eventually, eventually_async
from tests.golden import Golden
from tests.simulator.containerd import SimulatedContainerd

KEY = ContainerKey("shop", "web")


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "containerd-events"]


def wait_for_threads() -> None:
    """Wait until all reader threads have ended, which takes longer on a busy machine."""
    eventually(lambda: not readers(), "all reader threads to end")


CONNECTING = re.compile("failed to connect.*")  # gRPC's text differs between versions


async def wait_queued(stream: ContainerdEventStream, events: int) -> None:
    """Wait until the stream has buffered this number of events."""
    async with asyncio.timeout(30):
        while len(stream._queue) < events:  # noqa: ASYNC110 (another thread fills the queue)
            await asyncio.sleep(0.01)


@pytest.fixture
async def stream(containerd: SimulatedContainerd) -> AsyncIterator[ContainerdEventStream]:
    stream = ContainerdEventStream(containerd.address)
    await wait_subscribed(containerd, 1)
    yield stream
    stream.close()
    wait_for_threads()


async def wait_subscribed(containerd: SimulatedContainerd, streams: int) -> None:
    """Wait until the simulator has this number of subscribers."""
    await eventually_async(lambda: len(containerd.state.listeners) == streams)


def publish_markers(containerd: SimulatedContainerd, events: int) -> list[Event]:
    """Publish this number of markers, and return the expected events."""
    markers: list[Event] = []
    for number in range(events):
        containerd.state.publish_any("whalebridge", f"/whalebridge/marker/n/{number}", "google.protobuf.Empty", b"")
        markers.append(Marker("n", number))
    return markers


async def received(stream: ContainerdEventStream, events: int) -> list[Event]:
    received_events: list[Event] = []
    while len(received_events) < events:
        batch = await stream.batch()
        assert 1 <= len(batch) <= MAX_BATCH_EVENTS
        received_events.extend(batch)
    return received_events


async def test_event_stream_returns_events_in_order_and_batches(
    containerd: SimulatedContainerd, stream: ContainerdEventStream
) -> None:
    published = publish_markers(containerd, 20_000)
    assert await received(stream, 20_000) == published


async def test_event_stream_buffers_events_between_reads(
    containerd: SimulatedContainerd, stream: ContainerdEventStream
) -> None:
    published = publish_markers(containerd, 10)
    await wait_queued(stream, 10)
    assert await stream.batch() == published


async def test_event_stream_delivers_single_event_without_delay(
    containerd: SimulatedContainerd, stream: ContainerdEventStream
) -> None:
    waits = [1.0]
    while min(waits) >= LINGER_SECONDS and len(waits) < 200:  # delays on a busy machine do not count
        await asyncio.sleep(2 * LINGER_SECONDS)
        began = time.perf_counter()
        publish_markers(containerd, 1)
        await stream.batch()
        waits.append(time.perf_counter() - began)
    assert min(waits) < LINGER_SECONDS


async def test_event_stream_continues_after_undecodable_event(
    containerd: SimulatedContainerd, stream: ContainerdEventStream
) -> None:
    containerd.state.publish_any("shop", "/tasks/oom", "containerd.events.TaskOOM", b"\xff")
    containerd.state.oom(KEY)
    undecodable, oom = await received(stream, 2)
    assert isinstance(undecodable, Undecodable)
    assert isinstance(oom, TaskOOM)


async def test_event_stream_omits_events_of_other_topics(
    containerd: SimulatedContainerd, stream: ContainerdEventStream
) -> None:
    containerd.state.publish_any("shop", "/images/create", "containerd.events.ImageCreate", b"")
    published = publish_markers(containerd, 1)
    assert await stream.batch() == published


async def test_event_stream_loses_nothing_when_read_is_canceled(
    containerd: SimulatedContainerd, stream: ContainerdEventStream
) -> None:
    published = []
    events: list[Event] = []
    for _ in range(50):
        waiting = asyncio.create_task(stream.batch())
        published += publish_markers(containerd, 1)
        await asyncio.sleep(0.001)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            events.extend(await waiting)
    assert events + await received(stream, len(published) - len(events)) == published


async def test_event_stream_raises_after_buffered_events_on_disconnect(
    containerd: SimulatedContainerd, stream: ContainerdEventStream
) -> None:
    published = publish_markers(containerd, 5)
    await wait_queued(stream, 5)
    await containerd.stop()
    await asyncio.sleep(0.1)
    assert await stream.batch() == published
    for _ in range(2):
        with pytest.raises(TransientError, match=re.escape(containerd.address)):
            await stream.batch()
    wait_for_threads()


async def test_event_stream_raises_when_server_ends_stream(
    containerd: SimulatedContainerd, stream: ContainerdEventStream, golden: Golden
) -> None:
    containerd.state.end_streams()
    with golden.error("containerd_errors", "event stream, orderly end", TransientError, containerd.address):
        await stream.batch()


async def test_event_stream_raises_when_containerd_is_missing(tmp_path: Path, golden: Golden) -> None:
    stream = ContainerdEventStream(f"{tmp_path}/c.sock")
    async with asyncio.timeout(30):
        with golden.error(
            "containerd_errors", "event stream, no socket", TransientError, tmp_path / "c.sock", GRPC=CONNECTING
        ):
            await stream.batch()
    stream.close()


async def test_event_stream_close_wakes_pending_read(stream: ContainerdEventStream, golden: Golden) -> None:
    waiting = asyncio.create_task(stream.batch())
    await asyncio.sleep(0)
    stream.close()
    wait_for_threads()
    with golden.error("containerd_errors", "event stream closed", TransientError, "c.sock"):
        await waiting
    stream.close()


async def test_event_stream_close_is_prompt_when_containerd_hangs(containerd: SimulatedContainerd) -> None:
    containerd.faults.hang()
    took: list[float] = []
    while not took or (min(took) > 0.5 and len(took) < 10):  # delays on a busy machine do not count
        containerd.calls.clear()
        stream = ContainerdEventStream(containerd.address)
        await eventually_async(lambda: "Events.Subscribe" in containerd.calls)
        began = time.perf_counter()
        stream.close()
        took.append(time.perf_counter() - began)
        wait_for_threads()
    assert min(took) < 0.5


async def test_event_stream_close_is_prompt_before_subscription(containerd: SimulatedContainerd) -> None:
    for _ in range(20):
        ContainerdEventStream(containerd.address).close()
    wait_for_threads()


async def test_event_stream_raises_overflow_when_buffer_is_full(
    containerd: SimulatedContainerd, golden: Golden
) -> None:
    stream = ContainerdEventStream(containerd.address, buffer_bytes=100_000)
    await wait_subscribed(containerd, 1)
    publish_markers(containerd, 10_000)
    await wait_subscribed(containerd, 0)  # closed, because unread events would fill containerd's memory
    for _ in range(2):
        with golden.error(
            "containerd_errors", "event stream, overflow", StreamOverflowError, 100000, containerd.address
        ):
            await stream.batch()
    stream.close()
    wait_for_threads()


async def test_event_stream_frees_buffer_on_read(containerd: SimulatedContainerd) -> None:
    stream = ContainerdEventStream(containerd.address, buffer_bytes=100_000)
    await wait_subscribed(containerd, 1)
    for _ in range(50):
        published = publish_markers(containerd, 100)
        assert await received(stream, 100) == published
    stream.close()


def test_event_stream_closes_after_event_loop_ended(tmp_path: Path) -> None:
    async def open_stream() -> ContainerdEventStream:
        async with SimulatedContainerd(tmp_path / "c.sock") as containerd:
            stream = ContainerdEventStream(containerd.address)
            await wait_subscribed(containerd, 1)
            return stream

    stream = asyncio.run(open_stream())
    stream.close()
    wait_for_threads()


async def test_client_close_closes_event_streams(containerd: SimulatedContainerd) -> None:
    wait_for_threads()  # threads of previous tests
    async with ContainerdClient(containerd.address, LabelRules.keep_all()) as client:
        await client.subscribe()
        stream = await client.subscribe()
        assert len(readers()) == 2
    wait_for_threads()
    stream.close()


@pytest.mark.parametrize(
    ("events", "seconds", "expected"),
    [(1, 60, LINGER_SECONDS), (1, 0.005, 0.02), (2, 0.004, 0.01), (20, 0.02, 0.02), (640, 0.1, 0.1), (4096, 0, 0.1)],
)
def test_event_stream_linger_grows_with_event_rate(events: int, seconds: float, expected: float) -> None:
    assert linger(events, seconds) == pytest.approx(expected)
