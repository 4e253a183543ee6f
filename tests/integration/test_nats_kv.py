"""The KV bucket with the current state: after a completed snapshot, it contains exactly the running containers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from nats.js.kv import KeyValue

from bridge.core.records import Record, RecordType
from sinks.nats.errors import ApiResponseError
from tests.integration.nats_reading import NatsFactory, StreamReader, start_sink
from tests.integration.target_checks import publish_until_accepted
from tests.naming import raises_naming
from tests.sample_records import ENGINE, EPOCH, control_record, record, retirement
from tests.testbed.nats import Nats
from tests.testbed.server import HOST

SOURCE = f"node-1.{ENGINE.id}"
LATER = EPOCH + 1000


def started_records(*ids: tuple[RecordType, str], first: int = 1, epoch: int = EPOCH) -> list[Record]:
    return [record(first + number, type_, id_=id_, epoch=epoch) for number, (type_, id_) in enumerate(ids)]


def snapshot(
    *ids: str, first: int = 1, epoch: int = EPOCH, number: int = 1, failed: Sequence[str] = ()
) -> list[Record]:
    presents = started_records(*(("present", id_) for id_ in ids), first=first + 1, epoch=epoch)
    started = control_record(first, "snapshot_started", number, epoch=epoch)
    completed = control_record(first + len(ids) + 1, "snapshot_completed", number, epoch=epoch, failed=failed)
    return [started, *presents, completed]


async def bucket_entries(reader: StreamReader, bucket: str) -> dict[str, dict[str, Any]]:
    return {key: json.loads(value) for key, value in (await reader.read_bucket(bucket)).items()}


async def running_ids(reader: StreamReader, bucket: str) -> set[str]:
    return {key.rpartition(".")[2] for key in await bucket_entries(reader, bucket) if key != SOURCE}


async def test_kv_bucket_follows_records(nats: Nats) -> None:
    sink = await start_sink(nats, "b_state", kv_bucket={"name": "state"})
    async with StreamReader(nats) as reader:
        await sink.publish(snapshot("a", "b"))
        await sink.publish(started_records(("paused", "a"), ("exited", "b"), ("started", "c.d"), first=5))
        entries = await bucket_entries(reader, "state")
        assert set(entries) == {SOURCE, f"{SOURCE}.shop.a", f"{SOURCE}.shop.c=2Ed"}
        paused = entries[f"{SOURCE}.shop.a"]
        assert (paused["type"], paused["container"]["paused"]) == ("paused", True)
        assert (paused["epoch"], paused["sequence"], paused["snapshot_id"]) == (EPOCH, 5, f"{EPOCH}-1")
        assert entries[SOURCE]["type"] == "snapshot_completed"
        await sink.publish(started_records(("started", "b"), ("exited", "b"), ("started", "b"), first=8))
        assert await running_ids(reader, "state") == {"a", "b", "c=2Ed"}
        await sink.publish(started_records(("exited", "a"), ("exited", "b"), ("exited", "c.d"), first=11))
        assert await running_ids(reader, "state") == set()
    await sink.close()


async def test_kv_bucket_drops_entries_of_retired_source(nats: Nats) -> None:
    """The last record wrote the source's entry; its deletion, with the same position, is no duplicate of that."""
    async with StreamReader(nats) as reader:
        sink = await start_sink(nats, "b_retired", kv_bucket={"name": "retired"})
        await sink.publish([record(9, host="node-2", id_="foreign"), *snapshot("a", "b")])
        await sink.close()
        sink = await start_sink(nats, "b_retired", kv_bucket={"name": "retired"})
        await sink.publish([retirement(record(4))])
        assert set(await bucket_entries(reader, "retired")) == {f"node-2.{ENGINE.id}.shop.foreign"}
        await sink.publish(snapshot("b", epoch=LATER))
        assert await running_ids(reader, "retired") == {"b", "foreign"}
        await sink.close()


async def test_kv_bucket_drops_stale_entries_after_first_snapshot(nats: Nats) -> None:
    """The sink keeps the entries of other sources."""
    async with StreamReader(nats) as reader:
        sink = await start_sink(nats, "b_stale", kv_bucket={"name": "stale"})
        await sink.publish([*snapshot("a", "b", "c"), record(9, host="node-2", id_="foreign")])
        await sink.close()
        sink = await start_sink(nats, "b_stale", kv_bucket={"name": "stale"})
        await sink.publish(snapshot("b", epoch=LATER)[:1])
        assert await running_ids(reader, "stale") == {
            "a",
            "b",
            "c",
            "foreign",
        }  # the snapshot is not complete
        await sink.publish(snapshot("b", epoch=LATER)[1:])
        assert await running_ids(reader, "stale") == {"b", "foreign"}
        await sink.close()


async def test_kv_bucket_is_usable_by_standard_clients(nats: Nats) -> None:
    sink = await start_sink(nats, "b_watch", kv_bucket={"name": "watch"})
    async with StreamReader(nats) as reader:
        store = await reader.jetstream.key_value("watch")
        watcher = await store.watch(f"{SOURCE}.>")
        assert await watcher.updates(30) is None  # type: ignore[no-untyped-call] # the bucket is empty
        entries: list[KeyValue.Entry] = []
        for batch in (
            [*snapshot("a"), *started_records(("exited", "a"), first=4)],
            started_records(("started", "a"), first=5),
            started_records(("exited", "a"), first=6),
        ):
            await sink.publish(batch)
            # Read each update before the next: the bucket keeps only the last value of a key.
            entries.append(await watcher.updates(30))  # type: ignore[no-untyped-call]
        await watcher.stop()  # type: ignore[no-untyped-call]
        status = await store.status()
        assert [(entry.key, entry.operation) for entry in entries] == [
            (f"{SOURCE}.shop.a", operation) for operation in ("DEL", None, "DEL")
        ]
        assert status.history == 1
        [marker] = [each for each in await reader.read_stored("KV_watch") if each.headers.get("KV-Operation") == "DEL"]
        assert marker.headers["Nats-TTL"] == "3600"
    await sink.close()


async def test_kv_bucket_is_unchanged_when_batch_is_republished(nats_factory: NatsFactory) -> None:
    peer = nats_factory(proxied=True)
    sink = await start_sink(peer, kv_bucket={"name": "state"})
    batch = [*snapshot("a", "b", "c"), *started_records(("exited", "b"), ("started", "d"), first=6)]
    for budget in range(2000, 30_000, 3000):
        await asyncio.to_thread(peer.proxies[0].reset_after, budget)
        await publish_until_accepted(sink, batch)
        async with StreamReader(peer) as reader:
            assert await running_ids(reader, "state") == {"a", "c", "d"}
            assert len(await reader.read_stored()) == len(batch)
    await sink.close()


async def test_nats_sink_reports_missing_or_invalid_kv_bucket(nats: Nats) -> None:
    sink_settings: dict[str, Any] = {"kv_bucket": {"name": "none", "auto_create": False}}
    with raises_naming(ApiResponseError, HOST, "KV_none", "auto_create"):
        await start_sink(nats, "b_missing", **sink_settings)
    async with StreamReader(nats) as reader:
        await reader.jetstream.add_stream(name="KV_foreign", subjects=["foreign.>"])
    with raises_naming(ApiResponseError, HOST, "KV_foreign", "kv_bucket.name"):
        await start_sink(nats, "b_foreign", kv_bucket={"name": "foreign"})


async def test_nats_sink_uses_existing_kv_bucket(nats: Nats) -> None:
    async with StreamReader(nats) as reader:
        await reader.jetstream.create_key_value(bucket="existing", history=3)
        sink = await start_sink(nats, "b_existing", kv_bucket={"name": "existing", "auto_create": False})
        await sink.publish(snapshot("a", "b"))
        await sink.publish(started_records(("exited", "b"), first=5))
        assert await running_ids(reader, "existing") == {"a"}
    await sink.close()


async def test_kv_bucket_handles_ten_thousand_containers(nats: Nats) -> None:
    sink = await start_sink(nats, "b_many", kv_bucket={"name": "many"})
    names = [f"c{number}" for number in range(10_000)]
    await sink.publish(snapshot(*names))
    await sink.close()
    sink = await start_sink(nats, "b_many", kv_bucket={"name": "many"})
    await sink.publish(snapshot(*names[:5], epoch=LATER))
    await sink.close()
    async with StreamReader(nats) as reader:
        assert await running_ids(reader, "many") == set(names[:5])


async def test_kv_bucket_skips_and_logs_oversized_entry(nats: Nats, capsys: pytest.CaptureFixture[str]) -> None:
    """The bucket limits the value size, or the server would close the connection for a message of that size."""
    limit = nats.monitor("varz")["max_payload"]
    large = record(3, id_="b", labels={"size": "x" * (limit - 2400)})
    async with StreamReader(nats) as reader:
        await reader.jetstream.create_key_value(bucket="bounded", max_value_size=5000)
        for bucket, oversized in (("bounded", record(2, id_="b", labels={"size": "x" * 5000})), ("large", large)):
            sink = await start_sink(nats, f"b_{bucket}", kv_bucket={"name": bucket})
            await sink.publish([record(1, id_="a"), oversized, record(4, id_="c")])
            await sink.close()
            assert await running_ids(reader, bucket) == {"a", "c"}
            assert len(await reader.read_stored(f"WHALEBRIDGE_B_{bucket.upper()}")) == 3
    assert capsys.readouterr().out.count("kv_entry_too_large") == 2
