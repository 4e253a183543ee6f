"""What the NATS sink does when servers and networks fail: it says so in bounded time, and loses nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from bridge.core.errors import TransientError
from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import (
    NatsFactory,
    StreamReader,
    publish_until_accepted,
    record,
    record_positions,
    records,
    settings,
    split_batches,
    start_sink,
    wait_connection_ended,
)
from tests.naming import assert_names, raises_naming
from tests.testbed.nats import Nats
from tests.testbed.server import HOST

FailureAction = Callable[[Nats], None]
BOUND = 15.0  # seconds for what is given up after a few: above that, on a slow machine; far below "for ever"


async def timed_failure(attempt: asyncio.Future[None]) -> tuple[str, float]:
    began = time.monotonic()
    with pytest.raises(TransientError) as caught:
        await attempt
    return str(caught.value), time.monotonic() - began


async def test_nats_sink_connects_after_server_was_down_at_start(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    peer.kill()
    sink = NatsSink(settings(peer))
    with raises_naming(TransientError, f"{HOST}:{peer.nodes[0].port}"):
        await sink.start()
    peer.start()
    await sink.start()
    await sink.publish(records(5))
    await sink.close()


async def test_nats_sink_loses_nothing_when_server_is_down(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    all_ = records(300)
    sink = await start_sink(peer)
    await sink.publish(all_[:100])
    peer.kill()
    for _ in range(3):
        with raises_naming(TransientError, "NATS", f"{HOST}:{peer.nodes[0].port}"):
            await sink.publish(all_[100:200])
    peer.start()
    for batch in split_batches(all_[100:], 100):
        await sink.publish(batch)
    await sink.close()
    async with StreamReader(peer) as reader:
        assert record_positions(await reader.read_stored()) == record_positions(all_)


async def test_nats_sink_reconnects_when_server_restarts_while_idle(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    sink = await start_sink(peer)
    await asyncio.to_thread(peer.stop)
    await asyncio.to_thread(peer.start)
    await wait_connection_ended(sink)
    await sink.publish(records(3))  # at the first attempt: the old connection is known to be gone
    await sink.close()


@pytest.mark.parametrize("atomic", [True, False])
async def test_nats_sink_stores_each_record_once_when_server_flaps(nats_factory: NatsFactory, atomic: bool) -> None:
    """Connections are reset ten times a second, in the midst of records, and the server is killed every other."""
    peer = nats_factory(proxied=True)
    proxy = peer.proxies[0]
    async with StreamReader(peer) as reader:
        await reader.jetstream.add_stream(
            name="WHALEBRIDGE_EVENTS", subjects=["events.>"], duplicate_window=3600, allow_atomic=atomic
        )

    async def flap() -> None:
        """For a while: where the machine is slow, hardly anything gets through in a tenth of a second."""
        budget = 0
        for turn in range(64):
            budget = (budget + 77_777) % 500_000
            await asyncio.to_thread(proxy.reset_after, budget)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(proxy.reset)
            if turn % 8 == 7:
                await asyncio.to_thread(peer.kill)
                await asyncio.to_thread(peer.start)

    flapping = asyncio.ensure_future(flap())
    sink = NatsSink(settings(peer, timeout="5s"))
    published = 0
    complaints: list[str] = []
    while not flapping.done() or published < 2000:
        batch = records(400, first_sequence=published + 1)
        complaints += await publish_until_accepted(sink, batch, seconds=120)
        published += len(batch)
    await flapping
    await sink.close()
    assert complaints
    async with StreamReader(peer) as reader:
        stored = record_positions(await reader.read_stored())
    expected = record_positions(records(published))
    assert sorted(stored) == expected  # each once
    if atomic:
        assert stored == expected


def suspend(peer: Nats) -> None:
    peer.suspend()


def silence(peer: Nats) -> None:
    peer.proxies[0].drop_traffic()


@pytest.mark.parametrize("fail", [suspend, silence])
async def test_nats_sink_times_out_and_recovers_when_server_hangs(
    nats_factory: NatsFactory, fail: FailureAction
) -> None:
    peer = nats_factory(proxied=True)
    all_ = records(3000, labels={"size": "x" * 5000})  # more than the kernel takes for a server that does not read
    sink = NatsSink(settings(peer, timeout="2s"))
    await publish_until_accepted(sink, all_[:10])  # before anything fails, two seconds may be too short for it
    fail(peer)
    text, lasted = await timed_failure(asyncio.ensure_future(sink.publish(all_[10:1000])))
    assert_names(text, HOST, "2 s")
    assert lasted < BOUND
    text, lasted = await timed_failure(asyncio.ensure_future(sink.publish(all_[10:1000])))
    assert_names(text, HOST, "2 s")
    assert lasted < BOUND
    if fail is suspend:
        peer.resume()
    else:
        await asyncio.to_thread(peer.proxies[0].restore)
    for batch in split_batches(all_[10:], 1000):
        await publish_until_accepted(sink, batch)
    await sink.close()
    async with StreamReader(peer) as reader:
        assert record_positions(await reader.read_stored()) == record_positions(all_)


@pytest.mark.parametrize("size", [10, 500_000])
async def test_nats_sink_cancels_and_closes_in_time_when_server_hangs(nats_factory: NatsFactory, size: int) -> None:
    peer = nats_factory()
    sink = await start_sink(peer, timeout="60s")
    peer.suspend()
    publishing = asyncio.ensure_future(sink.publish(records(100, labels={"size": "x" * size})))
    await asyncio.sleep(0.5)
    began = time.monotonic()
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    await sink.close()
    await sink.close()
    assert time.monotonic() - began < BOUND
    peer.resume()


async def test_nats_sink_closes_idle_connection_when_server_hangs(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    sink = await start_sink(peer)
    peer.suspend()
    began = time.monotonic()
    await sink.close()
    assert time.monotonic() - began < BOUND
    peer.resume()


async def test_nats_sink_replaces_closed_client(nats_factory: NatsFactory) -> None:
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
    peer.proxies[0].delay(0.3)  # for each 64 KiB: the batch takes longer than the timeout
    all_ = records(300, labels={"size": "x" * 5000})
    began = time.monotonic()
    await sink.publish(all_)
    assert time.monotonic() - began > 6
    await sink.close()
    await asyncio.to_thread(peer.proxies[0].restore)
    async with StreamReader(peer) as reader:
        assert record_positions(await reader.read_stored()) == record_positions(all_)


async def test_nats_sink_switches_server_when_first_server_stops(nats_factory: NatsFactory) -> None:
    """One server is known; the others of its cluster are learned, and used when it is gone."""
    peer = nats_factory(3)
    one = settings(peer, timeout="5s").model_copy(update={"servers": settings(peer).servers[:1]})
    sink = NatsSink(one.model_copy(update={"stream": one.stream.model_copy(update={"replicas": 3})}))
    await publish_until_accepted(sink, [record(1)])
    await asyncio.to_thread(peer.servers[0].stop)
    await publish_until_accepted(sink, [record(2)])
    await sink.close()


async def test_nats_sink_retries_when_server_batch_limit_is_reached(
    nats_factory: NatsFactory, tmp_path: object
) -> None:
    limits = "limits { batch { max_inflight_per_stream: 1 } }"
    peer = nats_factory(settings=f'jetstream {{ store_dir: "{tmp_path}", {limits} }}\n')
    sinks = [await start_sink(peer) for _ in range(6)]
    all_ = [records(500, host=f"node-{number}") for number in range(6)]
    complaints = await asyncio.gather(*map(publish_until_accepted, sinks, all_))
    for sink in sinks:
        await sink.close()
    assert any("too many inflight" in complaint for each in complaints for complaint in each)
    async with StreamReader(peer) as reader:
        assert len(await reader.read_stored()) == 3000
