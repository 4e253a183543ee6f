"""Read streams of real NATS servers."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bridge import consumer
from bridge.clock import SystemClock
from bridge.consumer import State
from bridge.consumer.nats import REQUEST_EXPIRY_SECONDS, NatsReader
from bridge.consumer.record_reader import StartPosition
from bridge.core.errors import NotFoundError, TransientError
from sinks.nats.sink import NatsSink
from tests.eventually import eventually_async
from tests.integration.consumer_reading import (
    RESUMED_RECORDS,
    check_resumption,
    check_start_from_table,
    follow,
    read_to_end,
    record_data,
)
from tests.integration.nats_reading import NatsFactory, StreamReader, settings, start_sink
from tests.integration.test_nats_auth import SECRET
from tests.integration.test_nats_docs import PERMISSIONS
from tests.naming import assert_names, raises_naming
from tests.sample_records import record, records
from tests.testbed import nats_auth
from tests.testbed.nats import Nats
from tests.testbed.nats_auth import Permissions
from tests.testbed.server import HOST

MINIMUM_PERMISSIONS = Permissions(
    publish=["$JS.API.CONSUMER.CREATE.WHALEBRIDGE_EVENTS.*.events.>", "$JS.API.CONSUMER.MSG.NEXT.WHALEBRIDGE_EVENTS.*"],
    subscribe=["_INBOX.>"],
)
AUTH = {"user": "reader", "password": SECRET}


def reader(
    peer: Nats, subject: str = "events", *, start: StartPosition = "beginning", follow: bool = False, **options: Any
) -> NatsReader:
    return NatsReader(settings(peer, subject, **options), SystemClock(), start_position=start, follow=follow)


async def publish(peer: Nats, first: int, count: int, subject: str = "events", **options: Any) -> list[bytes]:
    batch = records(count, first)
    sink = await start_sink(peer, subject, **options)
    await sink.publish(batch)
    await sink.close()
    return record_data(batch)


async def test_nats_reader_reads_stream_in_order_to_end(nats: Nats) -> None:
    published = await publish(nats, 1, 1000, "read.order")
    messages = await read_to_end(stream := reader(nats, "read.order"))
    assert stream.total == 1000
    assert record_data(messages) == published
    assert [each.number for each in messages] == list(range(1, 1001))
    assert messages[0].location == "read.order.node-1.shop.started"


async def test_nats_consumer_killed_at_any_point_resumes_exactly(nats: Nats, tmp_path: Path) -> None:
    await publish(nats, 1, RESUMED_RECORDS, "read.resumed")
    await check_resumption(nats_url(nats, "read.resumed"), tmp_path)


async def test_nats_consumer_reads_recreated_stream_from_its_beginning(nats: Nats) -> None:
    await publish(nats, 1, 100, "read.recreated")
    url, state = nats_url(nats, "read.recreated"), State()
    assert len([change async for change in consumer.follow(url, state, wait=False)]) == 100
    state.positions[url] = {"stream": 5000}  # of the stream before it was created again
    assert [change async for change in consumer.follow(url, state, wait=False)] == []
    assert state.positions[url] == {"stream": 100}


async def test_nats_bucket_and_later_records_are_whole_state(nats: Nats) -> None:
    await check_start_from_table(
        lambda: NatsSink(settings(nats, "read.table", kv_bucket={"name": "table"}), SystemClock()),
        nats_url(nats, "read.table"),
        nats_url(nats, "table"),
    )


def nats_url(nats: Nats, subject: str) -> str:
    return f"nats://{','.join(settings(nats, subject).servers)}/{subject}"


async def test_nats_bucket_that_does_not_exist_is_not_found(nats: Nats) -> None:
    with raises_naming(NotFoundError, nats.url.removeprefix("nats://"), "no key-value bucket read-nothing"):
        await consumer.load_table(f"{nats.url}/read-nothing")


async def test_nats_reader_ends_when_stream_is_empty(nats: Nats) -> None:
    await publish(nats, 1, 0, "read.empty")
    assert await read_to_end(reader(nats, "read.empty")) == []


async def test_nats_reader_starts_at_timestamp_or_end(nats: Nats) -> None:
    await publish(nats, 1, 10, "read.since")
    await asyncio.sleep(0.05)
    moment = datetime.now(UTC)
    later = await publish(nats, 11, 10, "read.since")
    assert record_data(await read_to_end(reader(nats, "read.since", start=moment))) == later
    assert await read_to_end(reader(nats, "read.since", start="end")) == []
    async with follow(reader(nats, "read.since", start="end", follow=True)) as followed:
        newest = await publish(nats, 21, 3, "read.since")
        assert record_data(await followed.wait_count(3)) == newest


async def test_nats_reader_delivers_infrequent_records_immediately(nats: Nats) -> None:
    await publish(nats, 1, 0, "read.slowly")
    sink = await start_sink(nats, "read.slowly")
    async with follow(reader(nats, "read.slowly", follow=True)) as followed:
        delays = []
        for number in range(1, 4):
            await asyncio.sleep(0.3)
            started = time.monotonic()
            await sink.publish([record(number)])
            await followed.wait_count(number)
            delays.append(time.monotonic() - started)
        assert sorted(delays)[1] < REQUEST_EXPIRY_SECONDS - 1  # before the request expires; tolerates one stall
        await asyncio.sleep(REQUEST_EXPIRY_SECONDS + 1)  # until the server has expired the request
        await sink.publish([record(4)])
        await followed.wait_count(4)
        assert followed.notices == []
    await sink.close()


async def test_nats_reader_finds_stream_by_subjects(nats: Nats) -> None:
    published = await publish(nats, 1, 10, "read.named", stream={"name": "CUSTOM"})
    assert record_data(await read_to_end(reader(nats, "read.named"))) == published


async def test_nats_reader_reads_single_node(nats: Nats) -> None:
    await publish(nats, 1, 10, "read.nodes")
    sink = await start_sink(nats, "read.nodes")
    await sink.publish(other := records(10, host="node-7"))
    await sink.close()
    assert record_data(await read_to_end(reader(nats, "read.nodes.node-7"))) == record_data(other)


async def test_nats_reader_reads_only_requested_subjects(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    async with StreamReader(peer) as plain:
        await plain.jetstream.add_stream(name="ALL", subjects=[">"], no_ack=True)
        await plain.client.publish("other.subject", b"{}")
        await plain.client.publish("events.node-1.shop.started", b"1")
        async with asyncio.timeout(30):  # the server stores messages asynchronously
            while True:
                if (await plain.jetstream.stream_info("ALL", subjects_filter="events.>")).state.subjects:
                    break
                await asyncio.sleep(0.02)
        assert record_data(await read_to_end(reader(peer))) == [b"1"]


async def test_nats_reader_creates_only_ephemeral_consumer(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    await publish(peer, 1, 10)
    async with follow(reader(peer, follow=True)) as followed, StreamReader(peer) as plain:
        await followed.wait_count(10)
        (consumer,) = await plain.jetstream.consumers_info("WHALEBRIDGE_EVENTS")
        config = consumer.config
        assert (config.durable_name, config.ack_policy, config.inactive_threshold, config.mem_storage) == (
            None,
            "none",
            30.0,
            True,
        )


async def test_nats_reader_works_with_minimum_permissions(nats_factory: NatsFactory) -> None:
    peer = nats_factory(
        auth=nats_auth.users_config({"reader": SECRET, "admin": SECRET}, {"reader": MINIMUM_PERMISSIONS})
    )
    published = await publish(peer, 1, 300, auth=AUTH | {"user": "admin"})
    assert record_data(await read_to_end(reader(peer, auth=AUTH))) == published
    with raises_naming(TransientError, "permissions violation for publish to ", "docs/nats.md"):
        await read_to_end(reader(peer, "other", auth=AUTH))
    with raises_naming(TransientError, "Authorization Violation", "auth.password"):
        await read_to_end(reader(peer, auth=AUTH | {"password": "wrong"}))


def test_nats_reader_minimum_permissions_match_documentation() -> None:
    (page,) = (each for each in PERMISSIONS if "CONSUMER" in each)
    documented = page.replace("WHALEBRIDGE_CONTAINERS", "WHALEBRIDGE_EVENTS").replace("containers.>", "events.>")
    assert re.findall(r'"(.*?)"', documented) == [
        *(MINIMUM_PERMISSIONS.publish or ()),
        *(MINIMUM_PERMISSIONS.subscribe or ()),
    ]


async def test_nats_reader_resumes_after_server_restart(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    first = await publish(peer, 1, 10)
    async with follow(reader(peer, follow=True)) as followed:
        await followed.wait_count(10)
        await asyncio.to_thread(peer.stop)
        await eventually_async(lambda: bool(followed.notices))
        await asyncio.to_thread(peer.start)
        second = await publish(peer, 11, 10)
        assert record_data(await followed.wait_count(20)) == first + second
        # An interruption, and the resumption; more of both if the server responds before it can serve the stream.
        lost, *_, resumed = followed.notices
        assert_names(lost, "NATS", "127.0.0.1:")
        assert resumed == "reading resumed"


async def test_nats_reader_reads_records_published_while_disconnected(nats_factory: NatsFactory) -> None:
    """The reader starts at the end and has not read a message yet."""
    peer = nats_factory(proxied=True)
    await publish(peer, 1, 10)
    async with follow(reader(peer, start="end", follow=True)) as followed:
        peer.proxies[0].refuse()
        await eventually_async(lambda: bool(followed.notices))
        async with StreamReader(peer) as plain:  # not through the proxy
            await plain.jetstream.publish("events.node-1.shop.started", b"1")
        peer.proxies[0].restore()
        assert record_data(await followed.wait_count(1)) == [b"1"]


async def test_nats_reader_recreates_deleted_consumer(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    first = await publish(peer, 1, 10)
    async with follow(reader(peer, follow=True)) as followed, StreamReader(peer) as plain:
        await followed.wait_count(10)
        (consumer,) = await plain.jetstream.consumers_info("WHALEBRIDGE_EVENTS")
        await plain.jetstream.delete_consumer("WHALEBRIDGE_EVENTS", consumer.name)
        second = await publish(peer, 11, 10)
        assert record_data(await followed.wait_count(20)) == first + second


async def test_nats_reader_fails_in_time_when_server_is_unresponsive(nats_factory: NatsFactory) -> None:
    peer = nats_factory(proxied=True)
    await publish(peer, 1, 10)
    peer.proxies[0].drop_traffic()
    started = time.monotonic()
    with raises_naming(TransientError, HOST, "2 s"):
        await read_to_end(reader(peer, timeout="2s", follow=True))
    assert time.monotonic() - started < 15
    peer.close()
    with raises_naming(TransientError, HOST):
        await read_to_end(reader(peer, timeout="2s", follow=True))


async def test_nats_reader_receives_core_nats_messages(nats: Nats) -> None:
    options = {"mode": "core"}
    async with follow(reader(nats, "read.core", start="end", follow=True, **options)) as followed:
        published = await publish(nats, 1, 300, "read.core", **options)
        assert record_data(await followed.wait_count(300)) == published
