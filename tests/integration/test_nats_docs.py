"""What docs/nats.md tells people to type works as it stands there."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import FreshNats, Reader, frame, insist, records, settings
from tests.testbed.install import search_path
from tests.testbed.nats_auth import PATIENCE
from tests.testbed.process import run

PAGE = (Path(__file__).parents[2] / "docs" / "nats.md").read_text()
PERMISSIONS = re.findall(r"^```\n(publish: .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def users(*permissions: str) -> str:
    """A server's configuration with the permissions of the page."""
    lists: dict[str, list[str]] = {"publish": [], "subscribe": []}
    for name, block in re.findall(r"(publish|subscribe): \[(.*?)\]", "\n".join(permissions), re.DOTALL):
        lists[name] += re.findall(r'^  (".*?")', block, re.MULTILINE)
    allowed = ", ".join(f"{name}: [{', '.join(subjects)}]" for name, subjects in lists.items())
    known = f"users [{{ user: a, password: a, permissions {{ {allowed} }} }}]"
    return f"authorization {{ timeout: {PATIENCE}, {known} }}\n"


async def publishes(sink: NatsSink) -> None:
    await sink.start()
    await sink.publish([frame(1, "snapshot_started"), *records(3, first=2), frame(5, "snapshot_completed")])
    await sink.close()


@pytest.mark.parametrize("bucket", [False, True])
async def test_the_permissions_are_enough(fresh_nats: FreshNats, bucket: bool) -> None:
    peer = fresh_nats(login=users(*PERMISSIONS[: 2 if bucket else 1]))
    more: dict[str, Any] = {"kv_bucket": {"name": "containers"}} if bucket else {}
    await publishes(NatsSink(settings(peer, "whalebridge", auth={"user": "a", "password": "a"}, **more)))


async def test_the_permissions_of_core_mode(fresh_nats: FreshNats) -> None:
    peer = fresh_nats(login=users('publish: [\n  "whalebridge.>"\n]\nsubscribe: [\n  "_INBOX.>"\n]'))
    await publishes(NatsSink(settings(peer, "whalebridge", mode="core", auth={"user": "a", "password": "a"})))


async def test_the_stream_that_is_created_by_hand(fresh_nats: FreshNats, require: Callable[..., None]) -> None:
    require("nats")
    program = shutil.which("nats", path=search_path("nats")) or "nats"
    peer = fresh_nats(3)
    [command] = re.findall(r"^nats (stream add .*)$", PAGE, re.MULTILINE)
    patiently = [program, "--server", peer.urls[0], "--timeout", "30s"]  # three servers write it down
    await asyncio.to_thread(run, [*patiently, *shlex.split(command)], env={"HOME": "/nonexistent"})
    sink = NatsSink(settings(peer, "whalebridge", timeout="5s", stream={"auto_create": False}))
    await insist(sink, records(3))  # where a server has stalled, another leader has to be elected first
    await sink.close()
    async with Reader(peer) as reader:
        config = (await reader.jetstream.stream_info("WHALEBRIDGE_WHALEBRIDGE")).config
    assert config.allow_atomic
    assert (config.num_replicas, config.max_age, config.duplicate_window) == (3, 7 * 86400, 3600)
