"""Reading the streams of real NATS servers."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime
from typing import Any

from bridge.core.errors import NotFoundError, TransientError
from bridge.fleet.messages import Begin
from bridge.fleet.nats import WAIT_SECONDS, NatsReader
from tests.eventually import eventually_async
from tests.integration.fleet_reading import data, following, whole
from tests.integration.nats_reading import FreshNats, Reader, record, records, settings, started
from tests.integration.test_nats_docs import PERMISSIONS
from tests.integration.test_nats_login import SECRET
from tests.naming import assert_names, raises_naming
from tests.testbed import nats_auth
from tests.testbed.nats import Nats
from tests.testbed.nats_auth import Permissions
from tests.testbed.server import HOST

LEAST = Permissions(
    publish=["$JS.API.CONSUMER.CREATE.WHALEBRIDGE_EVENTS.*.events.>", "$JS.API.CONSUMER.MSG.NEXT.WHALEBRIDGE_EVENTS.*"],
    subscribe=["_INBOX.>"],
)
LOGIN = {"user": "reader", "password": SECRET}


def reader(
    peer: Nats, subject: str = "events", *, begin: Begin = "beginning", follow: bool = False, **options: Any
) -> NatsReader:
    return NatsReader(settings(peer, subject, **options), begin=begin, follow=follow)


async def publish(peer: Nats, first: int, count: int, subject: str = "events", **options: Any) -> list[bytes]:
    batch = records(count, first)
    sink = await started(peer, subject, **options)
    await sink.publish(batch)
    await sink.close()
    return data(batch)


async def test_a_stream_is_read_to_its_end_in_its_order(nats: Nats) -> None:
    wanted = await publish(nats, 1, 1000, "read.order")
    found = await whole(reader(nats, "read.order"))
    assert data(found) == wanted
    assert [each.number for each in found] == list(range(1, 1001))
    assert found[0].place == "read.order.node-1.shop.started"


async def test_an_empty_stream_has_an_end(nats: Nats) -> None:
    await publish(nats, 1, 0, "read.empty")
    assert await whole(reader(nats, "read.empty")) == []


async def test_reading_begins_at_a_moment_or_at_the_end(nats: Nats) -> None:
    await publish(nats, 1, 10, "read.since")
    await asyncio.sleep(0.05)
    moment = datetime.now(UTC)
    later = await publish(nats, 11, 10, "read.since")
    assert data(await whole(reader(nats, "read.since", begin=moment))) == later
    assert await whole(reader(nats, "read.since", begin="end")) == []
    async with following(reader(nats, "read.since", begin="end", follow=True)) as found:
        newest = await publish(nats, 21, 3, "read.since")
        assert data(await found.count(3)) == newest


async def test_what_comes_slowly_comes_at_once(nats: Nats) -> None:
    await publish(nats, 1, 0, "read.slowly")
    sink = await started(nats, "read.slowly")
    async with following(reader(nats, "read.slowly", follow=True)) as found:
        lasted = []
        for number in range(1, 4):
            await asyncio.sleep(0.3)
            began = time.monotonic()
            await sink.publish([record(number)])
            await found.count(number)
            lasted.append(time.monotonic() - began)
        assert sorted(lasted)[1] < WAIT_SECONDS - 1  # not with the end of a request; a machine may stall once
        await asyncio.sleep(WAIT_SECONDS + 1)  # longer than the server keeps a request
        await sink.publish([record(4)])
        await found.count(4)
        assert found.told == []
    await sink.close()


async def test_a_stream_of_any_name_is_found(nats: Nats) -> None:
    wanted = await publish(nats, 1, 10, "read.named", stream={"name": "SOMETHING"})
    assert data(await whole(reader(nats, "read.named"))) == wanted


async def test_no_stream_has_these_subjects(nats: Nats) -> None:
    with raises_naming(NotFoundError, "read.nothing.>"):
        await whole(reader(nats, "read.nothing"))


async def test_only_the_subjects_that_were_asked_for_are_read(fresh_nats: FreshNats) -> None:
    peer = fresh_nats()
    async with Reader(peer) as plain:
        await plain.jetstream.add_stream(name="ALL", subjects=[">"], no_ack=True)
        await plain.client.publish("other.subject", b"{}")
        await plain.client.publish("events.node-1.shop.started", b"1")
        async with asyncio.timeout(30):  # that a server has read it does not say that it is stored
            while True:
                if (await plain.jetstream.stream_info("ALL", subjects_filter="events.>")).state.subjects:
                    break
                await asyncio.sleep(0.02)
        assert data(await whole(reader(peer))) == [b"1"]


async def test_nothing_lasting_is_left_behind(fresh_nats: FreshNats) -> None:
    peer = fresh_nats()
    await publish(peer, 1, 10)
    async with following(reader(peer, follow=True)) as found, Reader(peer) as plain:
        await found.count(10)
        (consumer,) = await plain.jetstream.consumers_info("WHALEBRIDGE_EVENTS")
        config = consumer.config
        assert (config.durable_name, config.ack_policy, config.inactive_threshold, config.mem_storage) == (
            None,
            "none",
            30.0,
            True,
        )


async def test_the_least_that_a_server_must_allow(fresh_nats: FreshNats) -> None:
    peer = fresh_nats(login=nats_auth.users({"reader": SECRET, "admin": SECRET}, {"reader": LEAST}))
    wanted = await publish(peer, 1, 300, auth=LOGIN | {"user": "admin"})
    assert data(await whole(reader(peer, auth=LOGIN))) == wanted
    with raises_naming(TransientError, "permissions violation for publish to ", "docs/nats.md"):
        await whole(reader(peer, "other", auth=LOGIN))
    with raises_naming(TransientError, "Authorization Violation", "auth.password"):
        await whole(reader(peer, auth=LOGIN | {"password": "wrong"}))


def test_that_is_what_the_documentation_says() -> None:
    (page,) = (each for each in PERMISSIONS if "CONSUMER" in each)
    documented = page.replace("WHALEBRIDGE_WHALEBRIDGE", "WHALEBRIDGE_EVENTS").replace("whalebridge.>", "events.>")
    assert re.findall(r'"(.*?)"', documented) == [*(LEAST.publish or ()), *(LEAST.subscribe or ())]


async def test_a_reader_that_follows_outlives_the_server(fresh_nats: FreshNats) -> None:
    peer = fresh_nats()
    first = await publish(peer, 1, 10)
    async with following(reader(peer, follow=True)) as found:
        await found.count(10)
        await asyncio.to_thread(peer.stop)
        await eventually_async(lambda: bool(found.told))
        await asyncio.to_thread(peer.start)
        second = await publish(peer, 11, 10)
        assert data(await found.count(20)) == first + second
        lost, _ = found.told
        assert_names(lost, "NATS", "127.0.0.1:")


async def test_what_comes_before_a_reader_is_back_is_read(fresh_nats: FreshNats) -> None:
    """Also by one that has begun at the end, and has read nothing yet."""
    peer = fresh_nats(proxied=True)
    await publish(peer, 1, 10)
    async with following(reader(peer, begin="end", follow=True)) as found:
        peer.proxies[0].cut()
        await eventually_async(lambda: bool(found.told))
        async with Reader(peer) as plain:  # past the proxy
            await plain.jetstream.publish("events.node-1.shop.started", b"1")
        peer.proxies[0].heal()
        assert data(await found.count(1)) == [b"1"]


async def test_a_consumer_that_somebody_deletes_is_made_anew(fresh_nats: FreshNats) -> None:
    peer = fresh_nats()
    first = await publish(peer, 1, 10)
    async with following(reader(peer, follow=True)) as found, Reader(peer) as plain:
        await found.count(10)
        (consumer,) = await plain.jetstream.consumers_info("WHALEBRIDGE_EVENTS")
        await plain.jetstream.delete_consumer("WHALEBRIDGE_EVENTS", consumer.name)
        second = await publish(peer, 11, 10)
        assert data(await found.count(20)) == first + second


async def test_a_server_that_is_silent_or_away_is_not_waited_for(fresh_nats: FreshNats) -> None:
    peer = fresh_nats(proxied=True)
    await publish(peer, 1, 10)
    peer.proxies[0].silence()
    began = time.monotonic()
    with raises_naming(TransientError, HOST, "2 s"):
        await whole(reader(peer, timeout="2s", follow=True))
    assert time.monotonic() - began < 15
    peer.close()
    with raises_naming(TransientError, HOST):
        await whole(reader(peer, timeout="2s", follow=True))


async def test_core_nats_is_listened_to(nats: Nats) -> None:
    options = {"mode": "core"}
    async with following(reader(nats, "read.core", begin="end", follow=True, **options)) as found:
        wanted = await publish(nats, 1, 300, "read.core", **options)
        assert data(await found.count(300)) == wanted
