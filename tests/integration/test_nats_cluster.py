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
from tests.integration.nats_reading import (
    NatsFactory,
    StreamReader,
    publish_until_accepted,
    record_positions,
    records,
    retry_until_answered,
    settings,
)
from tests.scale import scaled
from tests.testbed.nats import Nats
from tests.testbed.server import Server

STREAM = "WHALEBRIDGE_EVENTS"
ROUNDS = scaled(reduced=3, full=12)


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
    async with StreamReader(peer) as reader:
        for _ in range(20 * ROUNDS):
            await asyncio.sleep(0.1)
            with contextlib.suppress(nats.errors.Error):  # there is none at the moment
                await reader.client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}", b"", timeout=2)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("trouble", [kill_leaders, retire_leaders])
@pytest.mark.parametrize("atomic", [True, False])
async def test_nats_sink_stores_each_record_once_when_leaders_change(
    nats_factory: NatsFactory, trouble: Callable[[Nats], Coroutine[None, None, None]], atomic: bool
) -> None:
    peer = nats_factory(3)
    async with StreamReader(peer) as reader:
        config = StreamConfig(STREAM, subjects=["events.>"], num_replicas=3, duplicate_window=3600, allow_atomic=atomic)
        await retry_until_answered(partial(reader.jetstream.add_stream, config))
    sink = NatsSink(settings(peer, timeout="3s"))
    troubling = asyncio.ensure_future(trouble(peer))
    published = 0
    complaints: list[str] = []
    while not troubling.done() or published < 2000:
        batch = records(1 + published % 317, first_sequence=published + 1)
        complaints += await publish_until_accepted(sink, batch, seconds=120)
        published += len(batch)
    await troubling
    await sink.close()
    assert complaints
    async with StreamReader(peer) as reader:
        # One that was frozen may take itself for the leader for a moment.
        stored = record_positions(await reader.read_stored(minimum=published))
    expected = record_positions(records(published))
    assert sorted(stored) == expected  # each once
    if atomic:
        assert stored == expected
