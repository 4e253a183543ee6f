"""Streams, subjects and core mode of the NATS sink: it creates streams as documented, or checks existing ones."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nats.js.api import StorageType

from bridge.clock import SystemClock
from bridge.core.errors import RejectedRecordError, TransientError
from sinks.nats.errors import ApiResponseError
from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import NatsFactory, StreamReader, record_positions, settings, start_sink
from tests.integration.target_checks import publish_until_accepted
from tests.naming import assert_names, raises_naming
from tests.sample_records import record, records
from tests.testbed import nats_auth
from tests.testbed.nats import Nats
from tests.testbed.nats_auth import AUTH_TIMEOUT, Permissions
from tests.testbed.server import HOST


async def start_error(peer: Nats, subject: str, **options: Any) -> str:
    sink = NatsSink(settings(peer, subject, **options), SystemClock())
    with pytest.raises(TransientError) as caught:
        await sink.start()
    with pytest.raises(TransientError):
        await sink.publish(records(1))
    await sink.close()
    return str(caught.value)


# --- streams ---


async def test_nats_sink_creates_stream_with_documented_defaults(nats: Nats) -> None:
    sink = await start_sink(nats, "pre.fix")
    await sink.close()
    sink = await start_sink(nats, "pre.fix")  # the stream exists
    await sink.close()
    async with StreamReader(nats) as reader:
        config = (await reader.jetstream.stream_info("WHALEBRIDGE_PRE_FIX")).config
    assert config.subjects == ["pre.fix.>"]
    assert config.storage == StorageType.FILE
    assert (config.num_replicas, config.duplicate_window, config.max_age) == (1, 3600, 7 * 86400)
    assert config.allow_atomic
    assert (config.max_msgs, config.max_bytes, config.max_msgs_per_subject) == (-1, -1, -1)


async def test_nats_sink_creates_stream_as_configured(nats: Nats) -> None:
    stream = {"name": "Mine", "max_age": None, "max_bytes": 10_000_000, "duplicate_window": "5m"}
    sink = await start_sink(nats, "configured", stream=stream)
    await sink.close()
    async with StreamReader(nats) as reader:
        config = (await reader.jetstream.stream_info("Mine")).config
    assert (config.max_age, config.max_bytes, config.duplicate_window) == (0, 10_000_000, 300)


async def test_nats_sinks_start_concurrently_when_stream_is_missing(nats: Nats) -> None:
    """The sinks have different stream settings; the first one creates the stream."""
    sinks = [
        NatsSink(settings(nats, "race", stream={"max_age": f"{1 + number % 2}h"}), SystemClock())
        for number in range(12)
    ]
    await asyncio.gather(*(sink.start() for sink in sinks))
    await asyncio.gather(*(sink.publish(records(3, host=f"h{number}")) for number, sink in enumerate(sinks)))
    for sink in sinks:
        await sink.close()


async def test_nats_sink_reports_missing_stream_without_auto_create(nats: Nats) -> None:
    text = await start_error(nats, "missing", stream={"auto_create": False})
    assert_names(text, HOST, "WHALEBRIDGE_MISSING", "docs/nats.md", "auto_create")


async def test_nats_sink_publishes_after_missing_stream_is_created(nats: Nats) -> None:
    sink = NatsSink(settings(nats, "by_hand", stream={"auto_create": False}), SystemClock())
    with pytest.raises(TransientError):
        await sink.start()
    async with StreamReader(nats) as reader:
        await reader.jetstream.add_stream(name="WHALEBRIDGE_BY_HAND", subjects=["by_hand.>"])
        await sink.publish(records(2))
        assert record_positions(await reader.read_stored("WHALEBRIDGE_BY_HAND")) == record_positions(records(2))
    await sink.close()


async def test_nats_sink_fails_when_stream_is_sealed(nats: Nats) -> None:
    async with StreamReader(nats) as reader:
        await reader.jetstream.add_stream(name="SEALED", subjects=["sealed.>"])
        info = await reader.jetstream.stream_info("SEALED")
        await reader.jetstream.update_stream(info.config.evolve(sealed=True))
    assert_names(await start_error(nats, "sealed", stream={"name": "SEALED"}), "SEALED", "sealed")


async def test_nats_sink_reports_stream_with_overlapping_subjects(nats: Nats) -> None:
    async with StreamReader(nats) as reader:
        await reader.jetstream.add_stream(name="THEIRS", subjects=["taken.*.>"])
    text = await start_error(nats, "taken")
    assert_names(text, HOST, "WHALEBRIDGE_TAKEN", "taken.>", "stream.name")
    sink = await start_sink(nats, "taken", stream={"name": "THEIRS"})
    await sink.publish(records(2))
    await sink.close()


async def test_nats_sink_recreates_deleted_stream(nats: Nats) -> None:
    sink = await start_sink(nats, "deleted")
    await sink.publish(records(2))
    async with StreamReader(nats) as reader:
        await reader.jetstream.delete_stream("WHALEBRIDGE_DELETED")
        with raises_naming(ApiResponseError, "WHALEBRIDGE_DELETED", "deleted.node-1."):
            await sink.publish(records(1, first_sequence=3))
        await sink.publish(records(1, first_sequence=3))
        assert record_positions(await reader.read_stored("WHALEBRIDGE_DELETED")) == record_positions(
            records(1, first_sequence=3)
        )
    await sink.close()


async def test_nats_sink_adapts_when_stream_config_changes(nats: Nats) -> None:
    """The stream stops allowing batches, becomes full, and is enlarged."""
    sink = await start_sink(nats, "changing")
    await sink.publish(records(5))
    async with StreamReader(nats) as reader:
        info = await reader.jetstream.stream_info("WHALEBRIDGE_CHANGING")
        await reader.jetstream.update_stream(info.config.evolve(allow_atomic=False))
        await sink.publish(records(5, first_sequence=6))
        full = info.config.evolve(allow_atomic=False, max_msgs=10, discard="new")
        await reader.jetstream.update_stream(full)
        with raises_naming(ApiResponseError, "WHALEBRIDGE_CHANGING", "10077"):
            await sink.publish(records(5, first_sequence=11))
        await reader.jetstream.update_stream(full.evolve(max_msgs=20))
        await sink.publish(records(5, first_sequence=11))
        assert record_positions(await reader.read_stored("WHALEBRIDGE_CHANGING")) == record_positions(records(15))
    await sink.close()


async def test_nats_sink_reports_server_without_jetstream(nats_factory: NatsFactory) -> None:
    peer = nats_factory(settings="jetstream: false\n")
    text = await start_error(peer, "events")
    assert_names(text, HOST, "JetStream", "WHALEBRIDGE_EVENTS", "mode: core")


async def test_nats_sink_reports_account_without_jetstream(nats_factory: NatsFactory) -> None:
    accounts = f"authorization {{ timeout: {AUTH_TIMEOUT} }}\naccounts {{ A {{ users [{{user: a, password: a}}] }} }}\n"
    text = await start_error(nats_factory(settings=accounts), "events", auth={"user": "a", "password": "a"})
    assert_names(text, HOST, "JetStream", "mode: core")


async def test_nats_sink_publishes_in_jetstream_domain(nats_factory: NatsFactory, tmp_path: object) -> None:
    peer = nats_factory(settings=f'jetstream {{ store_dir: "{tmp_path}", domain: hub }}\n')
    sink = await start_sink(peer, domain="hub", kv_bucket={"name": "state"})
    await sink.publish(records(3))
    await sink.close()
    assert_names(await start_error(peer, "events", domain="elsewhere"), HOST, "JetStream", "domain")


# --- subjects ---


# --- core mode ---


async def test_core_nats_sink_delivers_to_current_subscribers(
    nats_factory: NatsFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = nats_factory(settings="jetstream: false\n")
    all_records = records(1500)
    async with StreamReader(peer) as reader:
        subscription = await reader.client.subscribe("events.>")
        await reader.client.flush()
        sink = await start_sink(peer, mode="core")
        assert "the gap is not reported" in capsys.readouterr().out
        await sink.publish(all_records)
        messages = [await subscription.next_msg(timeout=30) for _ in all_records]
    assert [each.data for each in messages] == [each.data for each in all_records]
    assert messages[0].headers
    assert messages[0].headers["ce-id"] == all_records[0].id
    with raises_naming(RejectedRecordError, "max_payload"):
        await sink.publish([record(1, labels={"size": "x" * 2_000_000})])
    await sink.publish(all_records)  # without a subscriber
    await asyncio.to_thread(peer.kill)
    with pytest.raises(TransientError):
        await sink.publish(all_records)
    await asyncio.to_thread(peer.start)
    await publish_until_accepted(sink, all_records)
    await sink.close()


async def test_core_nats_sink_reports_missing_permission(nats_factory: NatsFactory) -> None:
    allowed = Permissions(publish=["other.>"])
    peer = nats_factory(auth=nats_auth.users_config({"a": "a"}, {"a": allowed}))
    sink = await start_sink(peer, mode="core", auth={"user": "a", "password": "a"})
    with raises_naming(TransientError, 'permissions violation for publish to "events'):
        await sink.publish(records(1))
    await sink.close()
