"""Streams and buckets that lose what was published: the sink notices it, and forgets what they held."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from bridge.core.records import Record
from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import NatsFactory, StreamReader, record_positions, start_sink
from tests.integration.target_checks import check_until_reset, publish_until_accepted
from tests.integration.test_nats_kv import running_ids, snapshot, started_records
from tests.testbed.nats import Nats

STREAM, BUCKET = "WHALEBRIDGE_EVENTS", "state"
Loss = Callable[[StreamReader], Awaitable[object]]


async def delete_stream(reader: StreamReader) -> None:
    await reader.jetstream.delete_stream(STREAM)


async def replace_stream(reader: StreamReader) -> None:
    """Create it again before the sink notices, with more records than before."""
    await reader.jetstream.delete_stream(STREAM)
    await reader.jetstream.add_stream(name=STREAM, subjects=["events.>"], allow_atomic=True)
    for _ in range(50):
        await reader.jetstream.publish("events.other", b"of another bridge")


async def purge_stream(reader: StreamReader) -> None:
    await reader.jetstream.purge_stream(STREAM)


async def expire_records(reader: StreamReader) -> None:
    """Let the retention remove everything; a record of another bridge is newer."""
    config = (await reader.jetstream.stream_info(STREAM)).config
    await reader.jetstream.update_stream(config, max_age=0.1, duplicate_window=0.1)
    async with asyncio.timeout(60):
        while (await reader.jetstream.stream_info(STREAM)).state.messages:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.02)
    await reader.jetstream.update_stream(config, max_age=3600, duplicate_window=60)
    await reader.jetstream.publish("events.other", b"of another bridge")


async def delete_bucket(reader: StreamReader) -> None:
    await reader.jetstream.delete_key_value(BUCKET)


async def replace_bucket(reader: StreamReader) -> None:
    await reader.jetstream.delete_key_value(BUCKET)
    await reader.jetstream.create_key_value(bucket=BUCKET)


async def purge_bucket(reader: StreamReader) -> None:
    await reader.jetstream.purge_stream(f"KV_{BUCKET}")


LOSSES: list[Loss] = [
    delete_stream,
    replace_stream,
    purge_stream,
    expire_records,
    delete_bucket,
    replace_bucket,
    purge_bucket,
]


async def publish_snapshot(sink: NatsSink, first: int, number: int = 1) -> list[Record]:
    published = snapshot("a", "b", "c", first=first, number=number)
    await publish_until_accepted(sink, published)
    return published


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
async def test_nats_sink_detects_loss_while_idle(nats_factory: NatsFactory, loss: Loss) -> None:
    peer = nats_factory()
    sink = await start_sink(peer, kv_bucket={"name": BUCKET})
    await publish_snapshot(sink, 1)
    await sink.check_target()
    assert sink.resets == 0
    async with StreamReader(peer) as reader:
        await loss(reader)
        with capture_logs() as logs:
            await check_until_reset(sink)
        assert sink.resets == 1
        target = f"bucket {BUCKET}" if "bucket" in loss.__name__ else f"stream {STREAM}"
        assert [line["target"] for line in logs if line["event"] == "target_reset"] == [target]
        await publish_snapshot(sink, 6, 2)
        assert await running_ids(reader, BUCKET) == {"a", "b", "c"}
        stored = [each for each in await reader.read_stored() if each.data != b"of another bridge"]
        assert record_positions(stored)[-5:] == [(stored[-1].position[0], number) for number in range(6, 11)]
        await sink.check_target()
        assert sink.resets == 1
    await sink.close()


@pytest.mark.parametrize("loss", [delete_stream, replace_stream, delete_bucket], ids=lambda loss: loss.__name__)
async def test_nats_sink_detects_loss_while_publishing(nats_factory: NatsFactory, loss: Loss) -> None:
    peer = nats_factory()
    sink = await start_sink(peer, kv_bucket={"name": BUCKET})
    for number in range(20):
        await publish_snapshot(sink, 1 + 5 * number, 1 + number)
    async with StreamReader(peer) as reader:
        await loss(reader)
        await publish_until_accepted(sink, started_records(("started", "d"), first=101))
        assert sink.resets == 1
        await publish_snapshot(sink, 102, 21)
        assert await running_ids(reader, BUCKET) == {"a", "b", "c"}
    await sink.close()


async def test_nats_sink_detects_server_restarted_with_empty_store(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    sink = await start_sink(peer, kv_bucket={"name": BUCKET})
    await publish_snapshot(sink, 1)
    await asyncio.to_thread(restart_with_empty_store, peer)
    await publish_until_accepted(sink, started_records(("started", "d"), first=6))
    assert sink.resets == 2  # stream and bucket
    async with StreamReader(peer) as reader:
        await publish_snapshot(sink, 7, 2)
        assert await running_ids(reader, BUCKET) == {"a", "b", "c"}
    await sink.close()


def restart_with_empty_store(peer: Nats) -> None:
    """Restart all servers without their streams."""
    peer.kill()
    for node in peer.nodes:
        shutil.rmtree(node.directory / "jetstream")
    peer.start()


async def test_nats_sink_counts_no_reset_for_first_creation(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    sink = await start_sink(peer, kv_bucket={"name": BUCKET})
    async with StreamReader(peer) as reader:
        await delete_stream(reader)
        await delete_bucket(reader)
        await publish_until_accepted(sink, snapshot("a"))
    await asyncio.to_thread(peer.stop)
    await asyncio.to_thread(peer.start)
    await publish_until_accepted(sink, started_records(("exited", "a"), first=4))
    await sink.check_target()
    assert sink.resets == 0
    await sink.close()


async def test_nats_sink_counts_no_reset_when_consumers_empty_work_queue(nats_factory: NatsFactory) -> None:
    peer = nats_factory()
    async with StreamReader(peer) as reader:
        await reader.jetstream.add_stream(name=STREAM, subjects=["events.>"], retention="workqueue")
        sink = await start_sink(peer)
        await publish_snapshot(sink, 1)
        subscription = await reader.jetstream.pull_subscribe(">", durable="worker", stream=STREAM)
        for message in await subscription.fetch(5, timeout=10):
            await message.ack_sync()
        assert (await reader.jetstream.stream_info(STREAM)).state.messages == 0
        await sink.check_target()
    assert sink.resets == 0
    await sink.close()
