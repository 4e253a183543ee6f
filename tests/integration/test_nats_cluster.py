"""NATS with three servers and one replicated stream, whose leader fails repeatedly under load: no record is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import partial

import nats.errors
import pytest
from nats.js.api import StreamConfig

from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import NatsFactory, StreamReader, record_positions, retry_until_available, settings
from tests.integration.target_checks import publish_until_accepted
from tests.sample_records import records
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
        server = await leader(peer)
        if round_ % 3 == 2:  # a suspended server still accepts connections and records
            await asyncio.to_thread(server.suspend)
            await asyncio.sleep(6)
            await asyncio.to_thread(server.resume)
        else:
            await asyncio.to_thread(server.kill)
            await leader(peer)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(peer.start)


async def retire_leaders(peer: Nats) -> None:
    """Make the leader step down repeatedly, while all servers run."""
    async with StreamReader(peer) as reader:
        for _ in range(20 * ROUNDS):
            await asyncio.sleep(0.1)
            with contextlib.suppress(nats.errors.Error):  # the stream has no leader at the moment
                await reader.client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}", b"", timeout=2)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fail", [kill_leaders, retire_leaders])
@pytest.mark.parametrize("atomic", [True, False])
async def test_nats_sink_stores_each_record_once_when_leaders_change(
    nats_factory: NatsFactory, fail: Callable[[Nats], Coroutine[None, None, None]], atomic: bool
) -> None:
    peer = nats_factory(3)
    async with StreamReader(peer) as reader:
        config = StreamConfig(STREAM, subjects=["events.>"], num_replicas=3, duplicate_window=3600, allow_atomic=atomic)
        await retry_until_available(partial(reader.jetstream.add_stream, config))
    sink = NatsSink(settings(peer, timeout="3s"))
    failing = asyncio.ensure_future(fail(peer))
    published = 0
    errors: list[str] = []
    while not failing.done() or published < 2000:
        batch = records(1 + published % 317, first_sequence=published + 1)
        errors += await publish_until_accepted(sink, batch, seconds=120)
        published += len(batch)
    await failing
    await sink.close()
    assert errors
    async with StreamReader(peer) as reader:
        # A server that was suspended may consider itself the leader for a moment.
        stored = record_positions(await reader.read_stored(minimum=published))
    expected = record_positions(records(published))
    assert sorted(stored) == expected  # each exactly once
    if atomic:
        assert stored == expected
