"""The event stream against the stand-in: nothing lost, bounded, and gone when it is closed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from bridge.containerd.client import ContainerdClient
from bridge.containerd.stream import BATCH_EVENTS, LINGER_SECONDS, EventStream, linger
from bridge.core.errors import StreamOverflowError, TransientError
from bridge.core.labels import LabelRules
from bridge.core.model import ContainerKey, Event, Mark, TaskOOM, Undecodable
from tests.simulator.containerd import SimulatedContainerd
from tests.testbed.process import wait_until

KEY = ContainerKey("shop", "web")


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "containerd-events"]


def gone() -> None:
    """Wait for the end of all readers: each takes its time, where somebody else has the processor."""
    wait_until(lambda: not readers(), "the end of all readers")


async def held(stream: EventStream, events: int) -> None:
    """Wait until the stream holds so many events."""
    async with asyncio.timeout(30):
        while len(stream._held) < events:  # noqa: ASYNC110 (a thread's affair)
            await asyncio.sleep(0.01)


@pytest.fixture
async def stream(standin: SimulatedContainerd) -> AsyncIterator[EventStream]:
    stream = EventStream(standin.address)
    await subscribed(standin, 1)
    yield stream
    stream.close()
    gone()


async def subscribed(standin: SimulatedContainerd, streams: int) -> None:
    """Wait until the stand-in has so many subscribers."""
    await standin.until(lambda: len(standin.state.listeners) == streams)


def tell(standin: SimulatedContainerd, events: int) -> list[Event]:
    """Let so many events happen; return them."""
    marks: list[Event] = []
    for number in range(events):
        standin.state.publish_any("whalebridge", f"/whalebridge/marker/n/{number}", "google.protobuf.Empty", b"")
        marks.append(Mark("n", number))
    return marks


async def received(stream: EventStream, events: int) -> list[Event]:
    told: list[Event] = []
    while len(told) < events:
        batch = await stream.batch()
        assert 1 <= len(batch) <= BATCH_EVENTS
        told.extend(batch)
    return told


async def test_events_come_in_order_and_in_batches(standin: SimulatedContainerd, stream: EventStream) -> None:
    told = tell(standin, 20_000)
    assert await received(stream, 20_000) == told


async def test_events_come_while_nobody_asks(standin: SimulatedContainerd, stream: EventStream) -> None:
    told = tell(standin, 10)
    await held(stream, 10)
    assert await stream.batch() == told


async def test_a_single_event_does_not_linger(standin: SimulatedContainerd, stream: EventStream) -> None:
    waits = [1.0]
    while min(waits) >= LINGER_SECONDS and len(waits) < 200:  # at once, when the machine has nothing else to do
        await asyncio.sleep(2 * LINGER_SECONDS)
        began = time.perf_counter()
        tell(standin, 1)
        await stream.batch()
        waits.append(time.perf_counter() - began)
    assert min(waits) < LINGER_SECONDS


async def test_what_cannot_be_read_does_not_end_it(standin: SimulatedContainerd, stream: EventStream) -> None:
    standin.state.publish_any("shop", "/tasks/oom", "containerd.events.TaskOOM", b"\xff")
    standin.state.oom(KEY)
    undecodable, oom = await received(stream, 2)
    assert isinstance(undecodable, Undecodable)
    assert isinstance(oom, TaskOOM)


async def test_other_topics_are_not_sent(standin: SimulatedContainerd, stream: EventStream) -> None:
    standin.state.publish_any("shop", "/images/create", "containerd.events.ImageCreate", b"")
    told = tell(standin, 1)
    assert await stream.batch() == told


async def test_a_batch_that_is_cancelled_loses_nothing(standin: SimulatedContainerd, stream: EventStream) -> None:
    told = []
    events: list[Event] = []
    for _ in range(50):
        waiting = asyncio.create_task(stream.batch())
        told += tell(standin, 1)
        await asyncio.sleep(0.001)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            events.extend(await waiting)
    assert events + await received(stream, len(told) - len(events)) == told


async def test_the_end_is_told_after_all_that_came_before(standin: SimulatedContainerd, stream: EventStream) -> None:
    told = tell(standin, 5)
    await held(stream, 5)
    await standin.stop()
    await asyncio.sleep(0.1)
    assert await stream.batch() == told
    for _ in range(2):
        with pytest.raises(TransientError, match=f"containerd at {standin.address} .*"):
            await stream.batch()
    gone()


async def test_an_orderly_end_is_an_end(standin: SimulatedContainerd, stream: EventStream) -> None:
    standin.end_streams()
    with pytest.raises(TransientError, match=f"containerd at {standin.address} ended the event stream"):
        await stream.batch()


async def test_without_containerd_it_ends_at_once(tmp_path: Path) -> None:
    stream = EventStream(f"{tmp_path}/c.sock")
    async with asyncio.timeout(30):
        with pytest.raises(TransientError, match=r"/c\.sock cannot be reached to stream events: .*"):
            await stream.batch()
    stream.close()


async def test_closing_wakes_whoever_waits(stream: EventStream) -> None:
    waiting = asyncio.create_task(stream.batch())
    await asyncio.sleep(0)
    stream.close()
    gone()
    with pytest.raises(TransientError, match=r"the event stream of containerd at .* was closed"):
        await waiting
    stream.close()


async def test_closing_is_prompt_when_containerd_hangs(standin: SimulatedContainerd) -> None:
    standin.faults.hang()
    took: list[float] = []
    while not took or (min(took) > 0.5 and len(took) < 10):  # at once, when the machine has nothing else to do
        standin.calls.clear()
        stream = EventStream(standin.address)
        await standin.until(lambda: "Events.Subscribe" in standin.calls)
        began = time.perf_counter()
        stream.close()
        took.append(time.perf_counter() - began)
        gone()
    assert min(took) < 0.5


async def test_closing_before_anything_is_prompt(standin: SimulatedContainerd) -> None:
    for _ in range(20):
        EventStream(standin.address).close()
    gone()


async def test_too_much_for_the_memory_is_an_overflow(standin: SimulatedContainerd) -> None:
    stream = EventStream(standin.address, buffer_bytes=100_000)
    await subscribed(standin, 1)
    tell(standin, 10_000)
    await subscribed(standin, 0)  # given up: left unread it would fill containerd's memory instead
    for _ in range(2):
        with pytest.raises(StreamOverflowError, match="more than 100000 bytes of events from containerd at"):
            await stream.batch()
    stream.close()
    gone()


async def test_what_is_taken_makes_room(standin: SimulatedContainerd) -> None:
    stream = EventStream(standin.address, buffer_bytes=100_000)
    await subscribed(standin, 1)
    for _ in range(50):
        told = tell(standin, 100)
        assert await received(stream, 100) == told
    stream.close()


def test_a_loop_that_is_gone_does_not_matter(tmp_path: Path) -> None:
    async def leave() -> EventStream:
        async with SimulatedContainerd(tmp_path / "c.sock") as standin:
            stream = EventStream(standin.address)
            await subscribed(standin, 1)
            return stream

    stream = asyncio.run(leave())
    stream.close()
    gone()


async def test_a_client_closes_its_streams(standin: SimulatedContainerd) -> None:
    gone()  # those of tests before
    async with ContainerdClient(standin.address, LabelRules.keep_all()) as client:
        await client.subscribe()
        stream = await client.subscribe()
        assert len(readers()) == 2
    gone()
    stream.close()


@pytest.mark.parametrize(
    ("events", "seconds", "expected"),
    [(1, 60, LINGER_SECONDS), (1, 0.005, 0.02), (2, 0.004, 0.01), (20, 0.02, 0.02), (640, 0.1, 0.1), (4096, 0, 0.1)],
)
def test_batches_gather_for_as_long_as_events_come_often(events: int, seconds: float, expected: float) -> None:
    assert linger(events, seconds) == pytest.approx(expected)
