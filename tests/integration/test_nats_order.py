"""Records of the NATS sink are in the stream in order and exactly once, even if they are sent again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.js.api import StreamConfig

from bridge.core.errors import RejectedRecordError, TransientError
from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import NatsFactory, StreamReader, record_positions, start_sink
from tests.naming import raises_naming
from tests.sample_records import batches, record, records
from tests.testbed.nats import Nats

ATOMIC = [True, False]


async def prepare(reader: StreamReader, subject: str, *, atomic: bool, **config: Any) -> None:
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
async def test_nats_sink_stores_resent_records_once(nats: Nats, atomic: bool) -> None:
    """A new sink has no state of the first one, as after a restart without acknowledgments."""
    subject = f"again{atomic}"
    all_records = records(2000)
    async with StreamReader(nats) as reader:
        await prepare(reader, subject, atomic=atomic)
        for start, end in [(0, 700), (0, 700), (300, 1300), (1299, 1301), (0, 2000), (1999, 2000)]:
            sink = await start_sink(nats, subject)
            await sink.publish(all_records[start:end])
            await sink.close()
        stored = await reader.read_stored(f"WHALEBRIDGE_{subject.upper()}")
    assert [each.data for each in stored] == [each.data for each in all_records]
    assert {each.subject for each in stored} == {f"{subject}.node-1.shop.started"}
    assert all(("Nats-Batch-Id" in each.headers) == atomic for each in stored[:700])


@pytest.mark.parametrize("atomic", ATOMIC)
async def test_fault_26_nats_acknowledgment_is_lost(nats_factory: NatsFactory, atomic: bool) -> None:
    peer = nats_factory(proxied=True)
    all_records = records(300)
    async with StreamReader(peer) as reader:
        await prepare(reader, "events", atomic=atomic)
    sink = await start_sink(peer, timeout="60s")
    await sink.publish(all_records[:10])
    peer.proxies[0].drop_responses()
    publishing = asyncio.ensure_future(sink.publish(all_records[10:30]))
    async with StreamReader(peer) as reader:
        await reader.wait_count(30)
        peer.proxies[0].restore()  # resets the connection
        with pytest.raises(TransientError):
            await publishing
        await sink.publish(all_records[10:300])
        await sink.close()
        assert record_positions(await reader.read_stored()) == record_positions(all_records)


async def test_nats_sink_stores_record_repeated_in_batch_once(nats: Nats) -> None:
    first, second = records(2)
    sink = await start_sink(nats, "twice")
    await sink.publish([first, second, first])
    await sink.close()
    async with StreamReader(nats) as reader:
        assert record_positions(await reader.read_stored("WHALEBRIDGE_TWICE")) == record_positions([first, second])


async def test_nats_sink_stores_lost_record_beside_original(nats: Nats) -> None:
    first = record(1)
    sink = await start_sink(nats, "lost")
    await sink.publish([first, msgspec.structs.replace(first, type="lost"), record(2)])
    await sink.close()
    async with StreamReader(nats) as reader:
        assert record_positions(await reader.read_stored("WHALEBRIDGE_LOST")) == [
            (first.epoch, 1),
            (first.epoch, 1),
            (first.epoch, 2),
        ]


async def test_nats_sink_splits_large_records_into_batches(nats: Nats) -> None:
    all_records = records(30, labels={"size": "x" * 500_000})
    sink = await start_sink(nats, "large")
    await sink.publish(all_records)
    await sink.close()
    async with StreamReader(nats) as reader:
        stored = await reader.read_stored("WHALEBRIDGE_LARGE")
    assert record_positions(stored) == record_positions(all_records)
    assert 1 < len({each.headers.get("Nats-Batch-Id") for each in stored}) < 10


async def test_nats_sink_respects_server_batch_limit(nats_factory: NatsFactory, tmp_path: Path) -> None:
    peer = nats_factory(settings=f'jetstream {{ store_dir: "{tmp_path}", limits {{ batch {{ max_msgs: 10 }} }} }}\n')
    all_records = records(100)
    sink = await start_sink(peer)
    await sink.publish(all_records)
    await sink.close()
    async with StreamReader(peer) as reader:
        assert record_positions(await reader.read_stored()) == record_positions(all_records)


async def test_nats_sinks_keep_order_when_publishing_concurrently(nats: Nats) -> None:
    hosts = [f"node-{number}" for number in range(10)]
    sinks: list[NatsSink] = [await start_sink(nats, "many") for _ in hosts]
    all_records = {host: records(600, host=host) for host in hosts}

    async def publish(sink: NatsSink, host: str) -> None:
        for batch in batches(all_records[host], 50):
            await sink.publish(batch)
        await sink.close()

    await asyncio.gather(*map(publish, sinks, hosts))
    async with StreamReader(nats) as reader:
        stored = await reader.read_stored("WHALEBRIDGE_MANY")
    for host in hosts:
        assert record_positions([each for each in stored if f".{host}." in each.subject]) == record_positions(
            all_records[host]
        )


async def test_nats_sink_identifies_record_above_stream_limit(nats: Nats) -> None:
    subject = "too_large"
    small, large = records(3), record(4, size=10_000)
    async with StreamReader(nats) as reader:
        await prepare(reader, subject, atomic=True, max_msg_size=4000)
        sink = await start_sink(nats, subject)
        with raises_naming(RejectedRecordError, f"WHALEBRIDGE_{subject.upper()}", "4000 bytes") as caught:
            await sink.publish([*small, large])
        assert caught.value.positions == {(large.epoch, 4)}
        await sink.publish(small)
        await sink.close()
        assert record_positions(await reader.read_stored(f"WHALEBRIDGE_{subject.upper()}")) == record_positions(small)


@pytest.mark.parametrize("atomic", ATOMIC)
async def test_nats_sink_detects_stream_limit_added_later(nats: Nats, atomic: bool) -> None:
    subject = f"later_{atomic}"
    small, large = record(1), record(2, labels={"size": "x" * 10_000})
    async with StreamReader(nats) as reader:
        await prepare(reader, subject, atomic=atomic)
        sink = await start_sink(nats, subject)
        info = await reader.jetstream.stream_info(f"WHALEBRIDGE_{subject.upper()}")
        await reader.jetstream.update_stream(info.config.evolve(max_msg_size=4000))
        rejections: list[RejectedRecordError] = []
        for _ in range(2):
            try:
                await sink.publish([small, large])
            except RejectedRecordError as error:
                rejections.append(error)
            except TransientError:
                pass
        assert rejections[-1].positions == {(large.epoch, 2)}
        await sink.publish([small])
        await sink.close()
        assert record_positions(await reader.read_stored(f"WHALEBRIDGE_{subject.upper()}")) == record_positions([small])
