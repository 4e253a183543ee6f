"""Marker events: round trips on a stream that loses markers, stalls, or serves several bridges."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from bridge.core.containerd_model import Ignored, Marker
from bridge.core.errors import TransientError
from bridge.core.time import SECOND
from bridge.stream_markers import StreamMarkers, read_to_marker
from tests.unit.watch.fakes import HookedClient
from tests.virtual_time import VirtualClock

EVENT = Ignored("/tasks/exec-added", known=True)


async def test_stream_is_read_until_marker_returns(clock: VirtualClock) -> None:
    client = HookedClient()
    await client.subscribe()
    client.stream.put(EVENT, Marker("another", 7))
    received = await read_to_marker(client, client.stream, clock, 10)
    assert received[:2] == [EVENT, Marker("another", 7)]
    assert len(received) == 3
    client.stream.put(EVENT)
    assert await client.stream.batch() == [EVENT], "the stream can be read by others afterwards"


async def test_lost_markers_are_repeated_with_growing_delay(clock: VirtualClock) -> None:
    client, sent_at = HookedClient(), list[int]()
    await client.subscribe()

    async def lose_three() -> None:
        sent_at.append(clock.now().monotonic)
        client.faults.drop_published = len(sent_at) <= 3

    client.hooks["publish_marker"] = lose_three
    await read_to_marker(client, client.stream, clock, 10)
    delays = [round((after - before) / SECOND, 1) for before, after in itertools.pairwise(sent_at)]
    assert delays == [0.1, 0.2, 0.4]


async def test_silent_stream_has_stalled_after_timeout(clock: VirtualClock) -> None:
    client = HookedClient()
    await client.subscribe()
    client.faults.drop_published = True
    with pytest.raises(TransientError, match=f"{client.path}.*stalled"):
        await read_to_marker(client, client.stream, clock, 10)
    assert 10 <= clock.now().monotonic / SECOND - 1_000 <= 21


@pytest.mark.parametrize("busy", [False, True], ids=["events arrive", "queue is full"])
async def test_working_stream_without_marker_has_not_stalled(clock: VirtualClock, *, busy: bool) -> None:
    client = HookedClient()
    await client.subscribe()
    markers = StreamMarkers(client, clock, 10, busy=lambda: busy)
    round_trip = asyncio.create_task(markers.round_trip())
    for _ in range(100):
        await asyncio.sleep(5)
        if not busy:
            markers.on_event_received()
    assert not round_trip.done()
    (marker,) = (await client.stream.batch())[-1:]
    assert isinstance(marker, Marker)
    assert markers.receive(marker)
    await round_trip


async def test_marker_completes_only_round_trips_begun_before_it(clock: VirtualClock) -> None:
    client = HookedClient()
    await client.subscribe()
    markers = StreamMarkers(client, clock, 10)
    first = asyncio.create_task(markers.round_trip())
    await asyncio.sleep(0.05)
    (marker,) = await client.stream.batch()
    assert isinstance(marker, Marker)
    second = asyncio.create_task(markers.round_trip())
    await asyncio.sleep(0)
    assert markers.receive(marker)
    assert not markers.receive(Marker("f" * 16, 99))
    await first
    assert not second.done()
    (later,) = await client.stream.batch()
    assert isinstance(later, Marker)
    markers.receive(later)
    assert (await second).monotonic > (await first).monotonic
