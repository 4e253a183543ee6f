"""What the NATS sink has published is in the stream, in order and once, whatever is sent again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.js.api import StreamConfig

from bridge.core.encode import heartbeat
from bridge.core.errors import RefusedRecordError, TransientError
from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import FreshNats, Reader, batches, positions, record, records, started
from tests.naming import raises_naming
from tests.testbed.nats import Nats

ATOMIC = [True, False]


async def prepare(reader: Reader, subject: str, *, atomic: bool, **config: Any) -> None:
    await reader.jetstream.add_stream(
        StreamConfig(
            name=f"WHALEBRIDGE_{subject.upper()}",
            subjects=[f"{subject}.>"],
            duplicate_window=3600,
            allow_atomic=atomic,
            **config,
        )
    )


@pytest.mark.parametrize("atomic", ATOMIC)
async def test_records_are_stored_in_order_and_byte_for_byte(nats: Nats, atomic: bool) -> None:
    subject = f"order{atomic}"
    all_ = records(4500)
    async with Reader(nats) as reader:
        await prepare(reader, subject, atomic=atomic)
        sink = await started(nats, subject)
        for batch in batches(all_, 1700):
            await sink.publish(batch)
        await sink.close()
        stored = await reader.stored(f"WHALEBRIDGE_{subject.upper()}")
    assert [each.data for each in stored] == [each.data for each in all_]
    assert [each.subject for each in stored] == [f"{subject}.node-1.shop.started"] * len(all_)
    assert len({each.headers["Nats-Msg-Id"] for each in stored}) == len(all_)
    assert all(("Nats-Batch-Id" in each.headers) == atomic for each in stored)


@pytest.mark.parametrize("atomic", ATOMIC)
async def test_what_is_sent_again_is_stored_once_however_batches_are_cut(nats: Nats, atomic: bool) -> None:
    """Another sink knows nothing of the first: a restart, with acknowledgements that never came."""
    subject = f"again{atomic}"
    all_ = records(2000)
    async with Reader(nats) as reader:
        await prepare(reader, subject, atomic=atomic)
        for start, end in [(0, 700), (0, 700), (300, 1300), (1299, 1301), (0, 2000), (1999, 2000)]:
            sink = await started(nats, subject)
            await sink.publish(all_[start:end])
            await sink.close()
        stored = await reader.stored(f"WHALEBRIDGE_{subject.upper()}")
    assert positions(stored) == positions(all_)


async def test_holes_that_a_window_left_are_filled_by_a_batch(nats: Nats) -> None:
    """The stream came to allow batches after some records of the batch had been stored without their order."""
    all_ = records(50)
    async with Reader(nats) as reader:
        await prepare(reader, "holes", atomic=False)
        sink = await started(nats, "holes")
        await sink.publish([all_[3], all_[30]])
        await sink.close()
        info = await reader.jetstream.stream_info("WHALEBRIDGE_HOLES")
        await reader.jetstream.update_stream(info.config.evolve(allow_atomic=True))
        sink = await started(nats, "holes")
        await sink.publish(all_)
        await sink.close()
        stored = await reader.stored("WHALEBRIDGE_HOLES")
    assert positions(stored) == positions([all_[3], all_[30], *[x for x in all_ if x not in (all_[3], all_[30])]])


@pytest.mark.parametrize("atomic", ATOMIC)
async def test_an_acknowledgement_that_is_lost_is_made_up_for(fresh_nats: FreshNats, atomic: bool) -> None:
    peer = fresh_nats(proxied=True)
    all_ = records(300)
    async with Reader(peer) as reader:
        await prepare(reader, "events", atomic=atomic)
    sink = await started(peer, timeout="60s")
    await sink.publish(all_[:10])
    peer.proxies[0].swallow_answers()
    publishing = asyncio.ensure_future(sink.publish(all_[10:30]))
    async with Reader(peer) as reader:
        await reader.until(30)
        peer.proxies[0].heal()  # which resets the connection
        with pytest.raises(TransientError):
            await publishing
        await sink.publish(all_[10:300])
        await sink.close()
        assert positions(await reader.stored()) == positions(all_)


async def test_a_record_that_comes_twice_in_a_batch_is_stored_once(nats: Nats) -> None:
    one, two = records(2)
    sink = await started(nats, "twice")
    await sink.publish([one, two, one])
    await sink.close()
    async with Reader(nats) as reader:
        assert positions(await reader.stored("WHALEBRIDGE_TWICE")) == positions([one, two])


async def test_a_lost_record_is_told_beside_the_one_it_stands_for(nats: Nats) -> None:
    one = record(1)
    sink = await started(nats, "lost")
    await sink.publish([one, msgspec.structs.replace(one, type="lost"), record(2)])
    await sink.close()
    async with Reader(nats) as reader:
        assert positions(await reader.stored("WHALEBRIDGE_LOST")) == [(one.epoch, 1), (one.epoch, 1), (one.epoch, 2)]


async def test_heartbeats_have_ids_of_their_own_and_get_through(nats: Nats) -> None:
    one = record(1)
    sink = await started(nats, "beats")
    for batch in ([one], *([heartbeat(one, number, number)] for number in range(1, 5)), [heartbeat(one, 1, 1)]):
        await sink.publish(batch)
    await sink.close()
    async with Reader(nats) as reader:
        stored = await reader.stored("WHALEBRIDGE_BEATS")
    assert [each.subject.rpartition(".")[2] for each in stored] == ["started", *["heartbeat"] * 4]


async def test_large_records_go_in_several_batches(nats: Nats) -> None:
    all_ = records(30, labels={"size": "x" * 500_000})
    sink = await started(nats, "large")
    await sink.publish(all_)
    await sink.close()
    async with Reader(nats) as reader:
        stored = await reader.stored("WHALEBRIDGE_LARGE")
    assert positions(stored) == positions(all_)
    assert 1 < len({each.headers.get("Nats-Batch-Id") for each in stored}) < 10


async def test_a_server_that_takes_small_batches_only_gets_small_batches(fresh_nats: FreshNats, tmp_path: Path) -> None:
    peer = fresh_nats(settings=f'jetstream {{ store_dir: "{tmp_path}", limits {{ batch {{ max_msgs: 10 }} }} }}\n')
    all_ = records(100)
    sink = await started(peer)
    await sink.publish(all_)
    await sink.close()
    async with Reader(peer) as reader:
        assert positions(await reader.stored()) == positions(all_)


async def test_many_sinks_at_once_keep_each_its_order(nats: Nats) -> None:
    hosts = [f"node-{number}" for number in range(10)]
    sinks: list[NatsSink] = [await started(nats, "many") for _ in hosts]
    all_ = {host: records(600, host=host) for host in hosts}

    async def publish(sink: NatsSink, host: str) -> None:
        for batch in batches(all_[host], 50):
            await sink.publish(batch)
        await sink.close()

    await asyncio.gather(*map(publish, sinks, hosts))
    async with Reader(nats) as reader:
        stored = await reader.stored("WHALEBRIDGE_MANY")
    for host in hosts:
        assert positions([each for each in stored if f".{host}." in each.subject]) == positions(all_[host])


@pytest.mark.parametrize("atomic", ATOMIC)
async def test_a_record_that_is_too_large_is_named_and_the_others_pass(nats: Nats, atomic: bool) -> None:
    subject = f"too_large_{atomic}"
    small, large = records(3), record(4, labels={"size": "x" * 10_000})
    async with Reader(nats) as reader:
        await prepare(reader, subject, atomic=atomic, max_msg_size=4000)
        sink = await started(nats, subject)
        with raises_naming(RefusedRecordError, f"WHALEBRIDGE_{subject.upper()}", "4000 bytes") as caught:
            await sink.publish([*small, large])
        assert caught.value.positions == {(large.epoch, 4)}
        with raises_naming(RefusedRecordError, "4000 bytes"):
            await sink.publish([record(5, labels={"size": "x" * 2_000_000})])
        await sink.publish(small)
        await sink.close()
        assert positions(await reader.stored(f"WHALEBRIDGE_{subject.upper()}")) == positions(small)


async def test_a_record_above_the_servers_own_limit_is_refused_before_it_ends_the_connection(nats: Nats) -> None:
    sink = await started(nats, "above")
    limit = nats.monitor("varz")["max_payload"]
    almost = record(1, labels={"size": "x" * (limit - 3000)})
    with raises_naming(RefusedRecordError, f"{limit} bytes", "max_payload"):
        await sink.publish([record(2, labels={"size": "x" * (limit - 400)})])
    before = nats.monitor("varz")["total_connections"]
    await sink.publish([almost])
    await sink.close()
    assert nats.monitor("varz")["total_connections"] == before


@pytest.mark.parametrize("atomic", ATOMIC)
async def test_a_limit_that_comes_later_is_noticed(nats: Nats, atomic: bool) -> None:
    subject = f"later_{atomic}"
    small, large = record(1), record(2, labels={"size": "x" * 10_000})
    async with Reader(nats) as reader:
        await prepare(reader, subject, atomic=atomic)
        sink = await started(nats, subject)
        info = await reader.jetstream.stream_info(f"WHALEBRIDGE_{subject.upper()}")
        await reader.jetstream.update_stream(info.config.evolve(max_msg_size=4000))
        refused: list[RefusedRecordError] = []
        for _ in range(2):
            try:
                await sink.publish([small, large])
            except RefusedRecordError as error:
                refused.append(error)
            except TransientError:
                pass
        assert refused[-1].positions == {(large.epoch, 2)}
        await sink.publish([small])
        await sink.close()
        assert positions(await reader.stored(f"WHALEBRIDGE_{subject.upper()}")) == positions([small])
