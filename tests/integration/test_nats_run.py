"""The whole program with NATS as its sink: nothing is missing, whenever the server or the program is away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
from nats.js.errors import NotFoundError

from tests.bridge_process import BridgeProcess, Document, check_lives, check_stream, fold, transitions
from tests.integration.nats_reading import FreshNats, Reader
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE
from tests.testbed.nats import Nats
from tests.testbed.process import wait_until


def stored(peer: Nats) -> list[Document]:
    async def read() -> list[Document]:
        async with Reader(peer) as reader:
            return [msgspec.json.decode(each.data) for each in await reader.stored()]

    try:
        return asyncio.run(read())
    except NotFoundError:  # the stream is not created yet
        return []


def in_bucket(peer: Nats) -> set[str]:
    async def read() -> set[str]:
        async with Reader(peer) as reader:
            keys = await (await reader.jetstream.key_value("containers")).keys()
            return {key.rpartition(".")[2] for key in keys if key.count(".") == 3}

    return asyncio.run(read())


def epochs(records: list[Document]) -> list[list[Document]]:
    found: dict[int, list[Document]] = {}
    for record in records:
        found.setdefault(record["epoch"], []).append(record)
    return list(found.values())


def test_a_server_that_is_away_misses_nothing(engine: Containerd, fresh_nats: FreshNats, tmp_path: Path) -> None:
    peer = fresh_nats()
    peer.kill()
    name = engine.version.replace(".", "")
    sink = f"nats://{peer.urls[0].partition('//')[2]}/events"
    flags = ["--sink", sink, "--sink", "stdout:", "--state-dir", str(tmp_path / "state")]
    environment = {"WHALEBRIDGE_LOG__FORMAT": "json"}
    with BridgeProcess(engine.address, tmp_path, *flags, environment=environment) as bridge:
        bridge.wait_live()
        engine.run(f"lives-{name}", "sleep", "600")
        for number in range(3):
            engine.ctr("run", "--rm", "--null-io", IMAGE, f"short-{name}-{number}", "true")
        bridge.wait(lambda records: len(transitions(records)) >= 7, "seven transitions")
        peer.start()
        bridge.wait(lambda records: len(stored(peer)) == len(records), "all of it in the stream")
        assert [each["sequence"] for each in stored(peer)] == [each["sequence"] for each in bridge.records()]
        peer.kill()
        engine.ctr("run", "--rm", "--null-io", IMAGE, f"late-{name}", "true")
        bridge.wait(lambda records: len(transitions(records)) >= 9, "nine transitions")
        began = time.monotonic()
    assert time.monotonic() - began < 14  # it has 10 s to hand over what nobody takes
    assert "cannot be reached" in bridge.log.read_text()
    peer.start()
    with BridgeProcess(engine.address, tmp_path, *flags, environment=environment) as bridge:
        wait_until(lambda: len(epochs(stored(peer))) == 2, "the second epoch in the stream")
        bridge.wait_live(2)
        bridge.wait(lambda records: len(stored(peer)) == len(records), "all of it in the stream")
        first, second = epochs(stored(peer))
        assert second[0]["snapshot"]["previous"] == {"epoch": first[-1]["epoch"], "sequence": first[-1]["sequence"]}
        check_stream(first)
        check_stream(second)
        check_lives([*first, *second])
        assert f"lives-{name}" in {container["id"] for container in fold([*first, *second]).values()}


def test_the_bucket_has_what_lives(engine: Containerd, fresh_nats: FreshNats, tmp_path: Path) -> None:
    peer = fresh_nats()
    name = engine.version.replace(".", "")
    server = peer.urls[0].partition("//")[2]
    environment = {
        "WHALEBRIDGE_SINKS__0__TYPE": "nats",
        "WHALEBRIDGE_SINKS__0__SERVERS": server,
        "WHALEBRIDGE_SINKS__0__SUBJECT": "events",
        "WHALEBRIDGE_SINKS__0__BUCKET__NAME": "containers",
        "WHALEBRIDGE_LOG__FORMAT": "json",
    }
    engine.run(f"before-{name}", "sleep", "600")
    with BridgeProcess(engine.address, tmp_path, environment=environment):
        wait_until(lambda: "connected" in (tmp_path / "log.jsonl").read_text(), "a connection")
        wait_until(lambda: stored(peer) and f"before-{name}" in in_bucket(peer), "the first row")
        engine.run(f"after-{name}", "sleep", "600")
        wait_until(lambda: f"after-{name}" in in_bucket(peer), "the second row")
        engine.ctr("task", "kill", "--signal", "KILL", f"before-{name}")
        wait_until(lambda: f"before-{name}" not in in_bucket(peer), "the first row to go")
