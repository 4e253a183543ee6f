"""NATS with three servers and replicated streams, whose leaders fail repeatedly under load: no record is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine, Iterator
from itertools import product

import nats.errors
import pytest

from bridge.clock import SystemClock
from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import (
    StreamReader,
    add_streams,
    check_streams_under_failures,
    record_positions,
    settings,
)
from tests.integration.target_checks import publish_until_accepted
from tests.sample_records import record, records
from tests.scale import scaled
from tests.testbed.nats import COMPONENTS, Nats
from tests.testbed.server import Server

ROUNDS = scaled(reduced=1, full=6)


@pytest.fixture(scope="module")
def cluster(require: Callable[..., None]) -> Iterator[Nats]:
    """Three servers, which all run before and after each test; use unique streams."""
    require(*COMPONENTS)
    with Nats(3) as cluster:
        yield cluster


def streams(prefix: str) -> list[str]:
    return [f"WHALEBRIDGE_{prefix}_BATCHES", f"WHALEBRIDGE_{prefix}_SINGLE"]


async def common_leader(cluster: Nats) -> Server:
    """Move the leadership of the second stream to the server that leads the first."""
    first, second = streams("KILL_LEADERS")
    async with asyncio.timeout(60), StreamReader(cluster) as reader:
        while True:
            server = await asyncio.to_thread(cluster.leader, first)
            if await asyncio.to_thread(cluster.leader, second) is server:
                return server
            with contextlib.suppress(nats.errors.Error):  # the stream has no leader at the moment
                placement = json.dumps({"placement": {"preferred": server.name}}).encode()
                await reader.client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{second}", placement, timeout=2)
            await asyncio.sleep(0.2)


async def kill_leaders(cluster: Nats) -> None:
    for _ in range(ROUNDS):
        server = await common_leader(cluster)
        await asyncio.to_thread(server.kill)
        for stream in streams("KILL_LEADERS"):
            await asyncio.to_thread(cluster.leader, stream)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(cluster.start)
        server = await common_leader(cluster)
        await asyncio.to_thread(server.suspend)  # it still accepts connections and records
        await asyncio.sleep(6)
        await asyncio.to_thread(server.resume)


async def retire_leaders(cluster: Nats) -> None:
    """Make the leaders step down repeatedly, while all servers run."""
    async with StreamReader(cluster) as reader:
        for _, stream in product(range(60 * ROUNDS), streams("RETIRE_LEADERS")):
            await asyncio.sleep(0.05)
            with contextlib.suppress(nats.errors.Error):  # the stream has no leader at the moment
                await reader.client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", b"", timeout=2)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fail", [kill_leaders, retire_leaders])
async def test_fault_31_nats_leaders_change(cluster: Nats, fail: Callable[[Nats], Coroutine[None, None, None]]) -> None:
    await add_streams(cluster, fail.__name__, replicas=3)
    await check_streams_under_failures(cluster, fail.__name__, fail(cluster), sink_timeout="3s")


async def test_nats_sink_stores_resent_records_once_with_replicas(cluster: Nats) -> None:
    """Later batches are partly stored, as after a restart without acknowledgments."""
    all_records = records(900)
    for start, end in [(0, 400), (200, 600), (0, 900)]:
        sink = NatsSink(settings(cluster, "resent", timeout="5s", stream={"replicas": 3}), SystemClock())
        await publish_until_accepted(sink, all_records[start:end])  # the stream may have no leader at the moment
        await sink.close()
    async with StreamReader(cluster) as reader:
        stored = await reader.read_stored("WHALEBRIDGE_RESENT", minimum=900)
    assert record_positions(stored) == record_positions(all_records)


async def test_nats_sink_switches_server_when_first_server_stops(cluster: Nats) -> None:
    """The settings name one server; the sink discovers the others and uses them when the first server stops."""
    all_servers = settings(cluster, "switches", timeout="5s", stream={"replicas": 3})
    sink = NatsSink(all_servers.model_copy(update={"servers": all_servers.servers[:1]}), SystemClock())
    await publish_until_accepted(sink, [record(1)])
    await asyncio.to_thread(cluster.servers[0].stop)
    await publish_until_accepted(sink, [record(2)])
    await sink.close()
    await asyncio.to_thread(cluster.start)
