"""The permissions and commands in docs/nats.md work as documented."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge.clock import SystemClock
from bridge.consumer.nats import NatsReader
from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import NatsFactory, StreamReader, retry_until_available, settings
from tests.integration.target_checks import publish_until_accepted
from tests.sample_records import control_record, records
from tests.testbed.install import search_path
from tests.testbed.nats import Nats
from tests.testbed.nats_auth import AUTH_TIMEOUT
from tests.testbed.process import run

PAGE = (Path(__file__).parents[2] / "docs" / "nats.md").read_text()
PERMISSIONS = re.findall(r"^```\n(publish: .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def users(*permissions: str) -> str:
    """Return a server configuration with the permissions on the page."""
    lists: dict[str, list[str]] = {"publish": [], "subscribe": []}
    for name, block in re.findall(r"(publish|subscribe): \[(.*?)\]", "\n".join(permissions), re.DOTALL):
        lists[name] += re.findall(r'^  (".*?")', block, re.MULTILINE)
    allowed = ", ".join(f"{name}: [{', '.join(subjects)}]" for name, subjects in lists.items())
    user = f"users [{{ user: a, password: a, permissions {{ {allowed} }} }}]"
    return f"authorization {{ timeout: {AUTH_TIMEOUT}, {user} }}\n"


async def check_publish(sink: NatsSink) -> None:
    await sink.start()
    await sink.publish(
        [control_record(1, "snapshot_started"), *records(3, first_sequence=2), control_record(5, "snapshot_completed")]
    )
    await sink.close()


@pytest.mark.parametrize("bucket", [False, True])
async def test_documented_nats_permissions_are_sufficient(nats_factory: NatsFactory, bucket: bool) -> None:
    peer = nats_factory(auth=users(*PERMISSIONS[: 2 if bucket else 1]))
    options: dict[str, Any] = {"kv_bucket": {"name": "containers"}} if bucket else {}
    await check_publish(
        NatsSink(settings(peer, "containers", auth={"user": "a", "password": "a"}, **options), SystemClock())
    )


async def test_documented_core_nats_permissions_are_sufficient(nats_factory: NatsFactory) -> None:
    peer = nats_factory(auth=users('publish: [\n  "containers.>"\n]\nsubscribe: [\n  "_INBOX.>"\n]'))
    await check_publish(
        NatsSink(settings(peer, "containers", mode="core", auth={"user": "a", "password": "a"}), SystemClock())
    )


def nats_commands() -> list[list[str]]:
    """Return the words of the commands on the page that create a stream: the one for records, and an aggregate."""
    return [shlex.split(line) for line in re.findall(r"^nats (stream add .*)$", PAGE, re.MULTILINE)]


async def run_nats(peer: Nats, arguments: list[str]) -> None:
    executable = shutil.which("nats", path=search_path("nats")) or "nats"
    # Three servers have to store the stream.
    command = [executable, "--server", peer.urls[0], "--timeout", "30s", *arguments]
    await asyncio.to_thread(run, command, env={"HOME": "/nonexistent"})


async def test_documented_nats_command_creates_usable_stream(
    nats_factory: NatsFactory, require: Callable[..., None]
) -> None:
    require("nats")
    peer = nats_factory(3)
    await run_nats(peer, nats_commands()[0])
    sink = NatsSink(settings(peer, "containers", timeout="5s", stream={"auto_create": False}), SystemClock())
    await publish_until_accepted(sink, records(3))  # if a server has stalled, the others have to elect a leader first
    await sink.close()
    async with StreamReader(peer) as reader:
        info = await retry_until_available(partial(reader.jetstream.stream_info, "WHALEBRIDGE_CONTAINERS"))
    config = info.config
    assert config.allow_atomic
    assert (config.num_replicas, config.max_age, config.duplicate_window) == (3, 7 * 86400, 3600)


async def test_documented_aggregate_stream_has_records_in_order(
    nats_factory: NatsFactory, require: Callable[..., None]
) -> None:
    require("nats")
    peer = nats_factory()
    published: dict[str, list[bytes]] = {}
    sinks = {zone: NatsSink(settings(peer, f"containers.zone-{zone}"), SystemClock()) for zone in "ab"}
    for number in range(3):
        for zone, sink in sinks.items():
            batch = records(100, first_sequence=1 + number * 100, host=f"node-{zone}")
            await sink.publish(batch)
            published.setdefault(f"node-{zone}", []).extend(each.data for each in batch)
        if number == 0:
            arguments = nats_commands()[1]
            arguments[arguments.index("--replicas") + 1] = "1"
            await run_nats(peer, arguments)
    for sink in sinks.values():
        await sink.close()
    async with StreamReader(peer) as stream_reader:
        assert await stream_reader.wait_count(600, "CONTAINERS") == 600
    reader = NatsReader(
        settings(peer, "containers", stream={"name": "CONTAINERS"}),
        SystemClock(),
        start_position="beginning",
        follow=False,
    )
    read: dict[str, list[bytes]] = {}
    async for messages in reader.batches():
        for message in messages:
            read.setdefault(msgspec.json.decode(message.data)["host"], []).append(message.data)
    assert read == published
