"""Failures of NATS servers and networks: the sink reports them in bounded time, and no record is lost."""

from __future__ import annotations

import asyncio
import time

from bridge.clock import SystemClock
from bridge.core.errors import TransientError
from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import (
    NatsFactory,
    StreamReader,
    add_streams,
    check_streams_under_failures,
    record_positions,
    settings,
    start_sink,
    wait_connection_ended,
)
from tests.integration.target_checks import publish_until_accepted
from tests.naming import raises_naming
from tests.sample_records import batches, records
from tests.testbed.server import HOST

BOUND = 15.0  # seconds; above the timeouts of the sink, for a slow machine


async def test_nats_sink_reconnects_when_server_restarts_while_idle(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    sink = await start_sink(peer)
    await asyncio.to_thread(peer.stop)
    await asyncio.to_thread(peer.start)
    await wait_connection_ended(sink)
    await sink.publish(records(3))  # at the first attempt: the sink has detected that the old connection is closed
    await sink.close()


async def test_nats_sink_stores_each_record_once_when_server_flaps(nats_factory: NatsFactory) -> None:
    """The proxy resets connections ten times a second, within messages; the server is killed at every eighth reset."""
    peer = nats_factory(proxied=True)
    proxy = peer.proxies[0]

    async def flap() -> None:
        """Reset the connections 64 times; on a slow machine few records pass within 0.1 s."""
        budget = 0
        for turn in range(64):
            budget = (budget + 77_777) % 500_000
            await asyncio.to_thread(proxy.reset_after, budget)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(proxy.reset)
            if turn % 8 == 7:
                await asyncio.to_thread(peer.kill)
                await asyncio.to_thread(peer.start)

    await add_streams(peer, "flaps")
    await check_streams_under_failures(peer, "flaps", flap(), sink_timeout="5s")


async def test_fault_34_nats_network_drops_data(nats_factory: NatsFactory) -> None:
    peer = nats_factory(proxied=True)
    all_records = records(3000, size=5000)  # more than the kernel buffers for a server that does not read
    sink = NatsSink(settings(peer, timeout="2s"), SystemClock())
    await publish_until_accepted(sink, all_records[:10])  # even without failures, 2 s may be too short
    peer.proxies[0].drop_traffic()
    for _ in range(2):
        began = time.monotonic()
        with raises_naming(TransientError, HOST, "2 s"):
            await sink.publish(all_records[10:1000])
        assert time.monotonic() - began < BOUND
    await asyncio.to_thread(peer.proxies[0].restore)
    for batch in batches(all_records[10:], 1000):
        await publish_until_accepted(sink, batch)
    await sink.close()
    async with StreamReader(peer) as reader:
        assert record_positions(await reader.read_stored()) == record_positions(all_records)


async def test_fault_30_nats_client_is_closed(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    sink = await start_sink(peer)
    await sink.publish(records(3))
    assert sink._connection
    await sink._connection._client.close()
    await sink.publish(records(3, first_sequence=4))
    await sink.close()
    async with StreamReader(peer) as reader:
        assert record_positions(await reader.read_stored()) == record_positions(records(6))


async def test_nats_sink_tolerates_slow_network(nats_factory: NatsFactory) -> None:
    peer = nats_factory(proxied=True)
    sink = await start_sink(peer, timeout="6s")
    peer.proxies[0].delay(0.3)  # per 64 KiB: the batch takes longer than the timeout
    all_records = records(300, labels={"size": "x" * 5000})
    began = time.monotonic()
    await sink.publish(all_records)
    assert time.monotonic() - began > 6
    await sink.close()
    await asyncio.to_thread(peer.proxies[0].restore)
    async with StreamReader(peer) as reader:
        assert record_positions(await reader.read_stored()) == record_positions(all_records)


async def test_nats_sink_retries_when_server_batch_limit_is_reached(
    nats_factory: NatsFactory, tmp_path: object
) -> None:
    limits = "limits { batch { max_inflight_per_stream: 1 } }"
    peer = nats_factory(settings=f'jetstream {{ store_dir: "{tmp_path}", {limits} }}\n')
    sinks = [await start_sink(peer) for _ in range(6)]
    all_records = [records(500, host=f"node-{number}") for number in range(6)]
    errors = await asyncio.gather(*map(publish_until_accepted, sinks, all_records))
    for sink in sinks:
        await sink.close()
    assert any("too many inflight" in error for sink_errors in errors for error in sink_errors)
    async with StreamReader(peer) as reader:
        assert len(await reader.read_stored()) == 3000
