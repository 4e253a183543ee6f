"""Three servers, one stream on all of them, and its leader killed under load, again and again: nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import partial

import nats.errors
import pytest
from nats.js.api import StreamConfig

from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import FreshNats, Reader, answered, insist, positions, records, settings
from tests.scale import scaled
from tests.testbed.nats import Nats
from tests.testbed.server import Server

STREAM = "WHALEBRIDGE_EVENTS"
ROUNDS = scaled(part=3, full=12)


async def leader(peer: Nats) -> Server:
    return await asyncio.to_thread(peer.leader, STREAM)


async def kill_leaders(peer: Nats) -> None:
    for round_ in range(ROUNDS):
        await asyncio.sleep(0.5)
        victim = await leader(peer)
        if round_ % 3 == 2:  # frozen, it still takes connections and records
            await asyncio.to_thread(victim.suspend)
            await asyncio.sleep(6)
            await asyncio.to_thread(victim.resume)
        else:
            await asyncio.to_thread(victim.kill)
            await leader(peer)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(peer.start)


async def retire_leaders(peer: Nats) -> None:
    """Another leader every moment, while nobody dies."""
    async with Reader(peer) as reader:
        for _ in range(20 * ROUNDS):
            await asyncio.sleep(0.1)
            with contextlib.suppress(nats.errors.Error):  # there is none at the moment
                await reader.client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}", b"", timeout=2)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("trouble", [kill_leaders, retire_leaders])
@pytest.mark.parametrize("atomic", [True, False])
async def test_leaders_change_under_load(
    fresh_nats: FreshNats, trouble: Callable[[Nats], Coroutine[None, None, None]], atomic: bool
) -> None:
    peer = fresh_nats(3)
    async with Reader(peer) as reader:
        config = StreamConfig(STREAM, subjects=["events.>"], num_replicas=3, duplicate_window=3600, allow_atomic=atomic)
        await answered(partial(reader.jetstream.add_stream, config))
    sink = NatsSink(settings(peer, timeout="3s"))
    troubling = asyncio.ensure_future(trouble(peer))
    published = 0
    complaints: list[str] = []
    while not troubling.done() or published < 2000:
        batch = records(1 + published % 317, first=published + 1)
        complaints += await insist(sink, batch, seconds=120)
        published += len(batch)
    await troubling
    await sink.close()
    assert complaints
    async with Reader(peer) as reader:
        # One that was frozen may take itself for the leader for a moment.
        stored = positions(await reader.stored(least=published))
    expected = positions(records(published))
    assert sorted(stored) == expected  # each once
    if atomic:
        assert stored == expected
