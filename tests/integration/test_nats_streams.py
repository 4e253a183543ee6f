"""Streams of the NATS sink: created as promised, or checked, with a text that says what to do; subjects; core mode."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nats.js.api import RetentionPolicy, StorageType, StreamConfig, StreamSource

from bridge.core.errors import RefusedRecordError, TransientError
from sinks.nats.failures import AnsweredError
from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import (
    FreshNats,
    Reader,
    frame,
    insist,
    positions,
    record,
    records,
    settings,
    started,
)
from tests.naming import assert_names, raises_naming
from tests.testbed import nats_auth
from tests.testbed.nats import Nats
from tests.testbed.nats_auth import PATIENCE, Permissions
from tests.testbed.server import HOST

HOSTILE = [
    "*",
    ">",
    "a.b",
    "a b",
    "a\r\nPUB x 0\r\n",
    "größe",
    "..",
    "$JS.API.>",
    "=41",
    "",
    "_",
    "\x00",
    "a\tb",
    "容器",
]


async def complaint(peer: Nats, subject: str, **options: Any) -> str:
    sink = NatsSink(settings(peer, subject, **options))
    with pytest.raises(TransientError) as caught:
        await sink.start()
    with pytest.raises(TransientError):
        await sink.publish(records(1))
    await sink.close()
    return str(caught.value)


# --- created or checked ---


async def test_a_stream_is_created_as_promised(nats: Nats) -> None:
    sink = await started(nats, "pre.fix")
    await sink.close()
    sink = await started(nats, "pre.fix")  # it is there already
    await sink.close()
    async with Reader(nats) as reader:
        config = (await reader.jetstream.stream_info("WHALEBRIDGE_PRE_FIX")).config
    assert config.subjects == ["pre.fix.>"]
    assert config.storage == StorageType.FILE
    assert (config.num_replicas, config.duplicate_window, config.max_age) == (1, 3600, 7 * 86400)
    assert config.allow_atomic
    assert (config.max_msgs, config.max_bytes, config.max_msgs_per_subject) == (-1, -1, -1)


async def test_a_stream_is_created_as_asked_for(nats: Nats) -> None:
    asked = {"name": "Mine", "max_age": None, "max_bytes": 10_000_000, "duplicate_window": "5m"}
    sink = await started(nats, "asked", stream=asked)
    await sink.close()
    async with Reader(nats) as reader:
        config = (await reader.jetstream.stream_info("Mine")).config
    assert (config.max_age, config.max_bytes, config.duplicate_window) == (0, 10_000_000, 300)


async def test_many_start_at_once_where_nothing_is_there(nats: Nats) -> None:
    """Some of them want other streams than the one that wins."""
    sinks = [NatsSink(settings(nats, "race", stream={"max_age": f"{1 + number % 2}h"})) for number in range(12)]
    await asyncio.gather(*(sink.start() for sink in sinks))
    await asyncio.gather(*(sink.publish(records(3, host=f"h{number}")) for number, sink in enumerate(sinks)))
    for sink in sinks:
        await sink.close()


async def test_a_missing_stream_is_named_with_what_to_do(nats: Nats) -> None:
    text = await complaint(nats, "missing", stream={"auto_create": False})
    assert_names(text, HOST, "WHALEBRIDGE_MISSING", "docs/nats.md", "auto_create")


async def test_a_missing_stream_is_created_when_someone_gets_to_it(nats: Nats) -> None:
    sink = NatsSink(settings(nats, "by_hand", stream={"auto_create": False}))
    with pytest.raises(TransientError):
        await sink.start()
    async with Reader(nats) as reader:
        await reader.jetstream.add_stream(name="WHALEBRIDGE_BY_HAND", subjects=["by_hand.>"])
        await sink.publish(records(2))
        assert positions(await reader.stored("WHALEBRIDGE_BY_HAND")) == positions(records(2))
    await sink.close()


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "other_subjects": ({"subjects": ["something.else.>"]}, "something.else.>"),
    "unfit_1": ({"no_ack": True}, "no_ack"),
    "unfit_2": ({"max_msgs_per_subject": 5}, "max_msgs_per_subject"),
    "unfit_3": ({"retention": RetentionPolicy.INTEREST}, "retention interest"),
    "unfit_4": ({"subjects": None, "mirror": StreamSource(name="NOWHERE")}, "mirror"),
}


@pytest.mark.parametrize("name", UNFIT)
async def test_a_stream_that_is_not_fit_is_refused(nats: Nats, name: str) -> None:
    config, told = UNFIT[name]
    async with Reader(nats) as reader:
        await reader.jetstream.add_stream(StreamConfig(**{"name": name, "subjects": ["unfit.>"], **config}))
        text = await complaint(nats, "unfit", stream={"name": name})
        await reader.jetstream.delete_stream(name)
    assert_names(text, f"stream {name}", HOST, told, f"nats stream edit {name}", "stream.name")


async def test_a_sealed_stream_is_refused(nats: Nats) -> None:
    async with Reader(nats) as reader:
        await reader.jetstream.add_stream(name="SEALED", subjects=["sealed.>"])
        info = await reader.jetstream.stream_info("SEALED")
        await reader.jetstream.update_stream(info.config.evolve(sealed=True))
    assert_names(await complaint(nats, "sealed", stream={"name": "SEALED"}), "SEALED", "sealed")


async def test_another_stream_with_our_subjects_is_named(nats: Nats) -> None:
    async with Reader(nats) as reader:
        await reader.jetstream.add_stream(name="THEIRS", subjects=["taken.*.>"])
    text = await complaint(nats, "taken")
    assert_names(text, HOST, "WHALEBRIDGE_TAKEN", "taken.>", "stream.name")
    sink = await started(nats, "taken", stream={"name": "THEIRS"})
    await sink.publish(records(2))
    await sink.close()


async def test_a_stream_that_is_deleted_is_created_again(nats: Nats) -> None:
    sink = await started(nats, "deleted")
    await sink.publish(records(2))
    async with Reader(nats) as reader:
        await reader.jetstream.delete_stream("WHALEBRIDGE_DELETED")
        with raises_naming(AnsweredError, "WHALEBRIDGE_DELETED", "deleted.node-1."):
            await sink.publish(records(1, first=3))
        await sink.publish(records(1, first=3))
        assert positions(await reader.stored("WHALEBRIDGE_DELETED")) == positions(records(1, first=3))
    await sink.close()


async def test_a_stream_whose_settings_change_is_looked_at_again(nats: Nats) -> None:
    """It allows batches no more; then it is full; then there is room."""
    sink = await started(nats, "changing")
    await sink.publish(records(5))
    async with Reader(nats) as reader:
        info = await reader.jetstream.stream_info("WHALEBRIDGE_CHANGING")
        await reader.jetstream.update_stream(info.config.evolve(allow_atomic=False))
        await sink.publish(records(5, first=6))
        full = info.config.evolve(allow_atomic=False, max_msgs=10, discard="new")
        await reader.jetstream.update_stream(full)
        with raises_naming(AnsweredError, "WHALEBRIDGE_CHANGING", "10077"):
            await sink.publish(records(5, first=11))
        await reader.jetstream.update_stream(full.evolve(max_msgs=20))
        await sink.publish(records(5, first=11))
        assert positions(await reader.stored("WHALEBRIDGE_CHANGING")) == positions(records(15))
    await sink.close()


async def test_a_server_without_jetstream_is_told_from_a_missing_stream(fresh_nats: FreshNats) -> None:
    peer = fresh_nats(settings="jetstream: false\n")
    text = await complaint(peer, "events")
    assert_names(text, HOST, "JetStream", "WHALEBRIDGE_EVENTS", "mode: core")


async def test_an_account_without_jetstream(fresh_nats: FreshNats) -> None:
    accounts = f"authorization {{ timeout: {PATIENCE} }}\naccounts {{ A {{ users [{{user: a, password: a}}] }} }}\n"
    text = await complaint(fresh_nats(settings=accounts), "events", auth={"user": "a", "password": "a"})
    assert_names(text, HOST, "JetStream", "mode: core")


async def test_a_domain(fresh_nats: FreshNats, tmp_path: object) -> None:
    peer = fresh_nats(settings=f'jetstream {{ store_dir: "{tmp_path}", domain: hub }}\n')
    sink = await started(peer, domain="hub", kv_bucket={"name": "state"})
    await sink.publish(records(3))
    await sink.close()
    assert_names(await complaint(peer, "events", domain="elsewhere"), HOST, "JetStream", "domain")


# --- subjects ---


@pytest.mark.parametrize("value", HOSTILE)
async def test_whatever_something_is_called_it_stays_in_its_token(nats: Nats, value: str) -> None:
    subject = f"hostile{HOSTILE.index(value)}"
    sink = await started(nats, subject, subject_template="{host}.{namespace}.{project}.{type}")
    one = record(
        1, host="node-1" if value in ("", "\x00") else value, namespace=value or "x", project=value, id_=value or "x"
    )
    await sink.publish([one, record(2)])
    await sink.close()
    async with Reader(nats) as reader:
        stored, _ = await reader.stored(f"WHALEBRIDGE_{subject.upper()}")
    assert stored.data == one.data
    assert len(stored.subject.split(".")) == 5
    assert all(character.isalnum() or character in "_=-." for character in stored.subject)
    assert set(stored.headers) >= {"Nats-Msg-Id", "ce-id", "ce-source", "ce-subject"}


async def test_a_project_of_4_kib_harms_nobody(nats: Nats) -> None:
    sink = await started(nats, "long", subject_template="{project}.{type}")
    long = [record(number, project="größe " * 700 + str(number)) for number in (1, 2)]
    await sink.publish([*long, record(3)])
    await sink.close()
    async with Reader(nats) as reader:
        stored = await reader.stored("WHALEBRIDGE_LONG")
    assert positions(stored) == positions(records(3))
    assert len({each.subject for each in stored}) == 3


async def test_frames_have_no_namespace(nats: Nats) -> None:
    sink = await started(nats, "frames")
    await sink.publish([frame(1, "snapshot_started"), frame(2, "snapshot_completed")])
    await sink.close()
    async with Reader(nats) as reader:
        stored = await reader.stored("WHALEBRIDGE_FRAMES")
    assert [each.subject for each in stored] == [
        "frames.node-1._.snapshot_started",
        "frames.node-1._.snapshot_completed",
    ]


async def test_the_whalewatcher_encoding_has_no_frames(nats: Nats) -> None:
    sink = await started(nats, "go", encoding="whalewatcher")
    await sink.publish([frame(1, "snapshot_started")])
    await sink.publish([record(2, "present"), frame(3, "snapshot_completed"), record(4, "exited")])
    await sink.close()
    async with Reader(nats) as reader:
        stored = await reader.stored("WHALEBRIDGE_GO")
    assert [each.headers["ce-id"].rpartition("-")[2] for each in stored] == ["2", "4"]
    assert b'"Type":0' in stored[0].data


# --- core mode ---


async def test_core_mode_tells_who_listens(fresh_nats: FreshNats, capsys: pytest.CaptureFixture[str]) -> None:
    peer = fresh_nats(settings="jetstream: false\n")
    all_ = records(1500)
    async with Reader(peer) as reader:
        subscription = await reader.client.subscribe("events.>")
        await reader.client.flush()
        sink = await started(peer, mode="core")
        assert "the gap is not reported" in capsys.readouterr().out
        await sink.publish(all_)
        heard = [await subscription.next_msg(timeout=30) for _ in all_]
    assert [each.data for each in heard] == [each.data for each in all_]
    assert heard[0].headers
    assert heard[0].headers["ce-id"] == all_[0].id
    with raises_naming(RefusedRecordError, "max_payload"):
        await sink.publish([record(1, labels={"size": "x" * 2_000_000})])
    await sink.publish(all_)  # nobody listens
    await asyncio.to_thread(peer.kill)
    with pytest.raises(TransientError):
        await sink.publish(all_)
    await asyncio.to_thread(peer.start)
    await insist(sink, all_)
    await sink.close()


async def test_core_mode_hears_of_a_missing_permission(fresh_nats: FreshNats) -> None:
    allowed = Permissions(publish=["other.>"])
    peer = fresh_nats(login=nats_auth.users({"a": "a"}, {"a": allowed}))
    sink = await started(peer, mode="core", auth={"user": "a", "password": "a"})
    with raises_naming(TransientError, 'permissions violation for publish to "events'):
        await sink.publish(records(1))
    await sink.close()
