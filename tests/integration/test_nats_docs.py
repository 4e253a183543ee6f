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

import pytest

from bridge.clock import SystemClock
from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import NatsFactory, StreamReader, retry_until_available, settings
from tests.integration.target_checks import publish_until_accepted
from tests.sample_records import control_record, records
from tests.testbed.install import search_path
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


async def test_documented_nats_command_creates_usable_stream(
    nats_factory: NatsFactory, require: Callable[..., None]
) -> None:
    require("nats")
    executable = shutil.which("nats", path=search_path("nats")) or "nats"
    peer = nats_factory(3)
    [command] = re.findall(r"^nats (stream add .*)$", PAGE, re.MULTILINE)
    nats_command = [executable, "--server", peer.urls[0], "--timeout", "30s"]  # three servers have to store the stream
    await asyncio.to_thread(run, [*nats_command, *shlex.split(command)], env={"HOME": "/nonexistent"})
    sink = NatsSink(settings(peer, "containers", timeout="5s", stream={"auto_create": False}), SystemClock())
    await publish_until_accepted(sink, records(3))  # if a server has stalled, the others have to elect a leader first
    await sink.close()
    async with StreamReader(peer) as reader:
        info = await retry_until_available(partial(reader.jetstream.stream_info, "WHALEBRIDGE_CONTAINERS"))
    config = info.config
    assert config.allow_atomic
    assert (config.num_replicas, config.max_age, config.duplicate_window) == (3, 7 * 86400, 3600)
