"""The bridge with a NATS sink: no record is missing after outages of the server or of the bridge."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec
from nats.js.errors import BucketNotFoundError, NoKeysError, NotFoundError

from tests.bridge_process import BridgeProcess, RecordDict, check_runs, check_stream, running_after, transitions
from tests.eventually import eventually
from tests.integration.commands import ContainerFactory
from tests.integration.nats_reading import NatsFactory, StreamReader
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE
from tests.testbed.nats import Nats


def stored_records(peer: Nats) -> list[RecordDict]:
    async def read() -> list[RecordDict]:
        async with StreamReader(peer) as reader:
            return [msgspec.json.decode(each.data) for each in await reader.read_stored()]

    try:
        return asyncio.run(read())
    except NotFoundError:  # the stream is not created yet
        return []


def bucket_entries(peer: Nats) -> set[str]:
    async def read() -> set[str]:
        async with StreamReader(peer) as reader:
            try:
                keys = await (await reader.jetstream.key_value("containers")).keys()
            except (BucketNotFoundError, NoKeysError):  # the sink stores records before entries
                return set()
            return {key.rpartition(".")[2] for key in keys if key.count(".") == 3}

    return asyncio.run(read())


def epochs(records: list[RecordDict]) -> list[list[RecordDict]]:
    by_epoch: dict[int, list[RecordDict]] = {}
    for record in records:
        by_epoch.setdefault(record["epoch"], []).append(record)
    return list(by_epoch.values())


def wait_stored(bridge: BridgeProcess, peer: Nats) -> None:
    """Wait until the stream has all records of standard output; the bridge retries its server only every 30 s."""
    bridge.wait(
        lambda records: record_positions(stored_records(peer)) == record_positions(records),
        "all records in the stream",
        90,
    )


def record_positions(records: list[RecordDict]) -> list[tuple[int, int]]:
    return [(each["epoch"], each["sequence"]) for each in records]


def test_nats_stream_is_complete_after_server_and_bridge_outages(
    engine: Containerd, container_factory: ContainerFactory, nats_factory: NatsFactory, tmp_path: Path
) -> None:
    peer = nats_factory()
    peer.kill()
    name = f"{engine.version.replace('.', '')}-{os.getpid()}"
    sink = f"nats://{peer.urls[0].partition('//')[2]}/events"
    flags = ["--sink", sink, "--sink", "stdout:", "--state-dir", str(tmp_path / "state")]
    # Heartbeats would go to the stream only.
    environment = {"WHALEBRIDGE_LOG__FORMAT": "json", "WHALEBRIDGE_HEARTBEAT__INTERVAL": "off"}
    with BridgeProcess(engine.address, tmp_path, *flags, environment=environment) as bridge:
        bridge.wait_synced()
        running_id = container_factory.run(prefix="running")
        for number in range(3):
            engine.ctr("run", "--rm", "--null-io", IMAGE, f"short-{name}-{number}", "true")
        bridge.wait(lambda records: len(transitions(records)) >= 7, "seven transitions", 90)
        peer.start()
        wait_stored(bridge, peer)
        peer.kill()
        engine.ctr("run", "--rm", "--null-io", IMAGE, f"late-{name}", "true")
        bridge.wait(lambda records: len(transitions(records)) >= 9, "nine transitions", 90)
        began = time.monotonic()
    assert time.monotonic() - began < 25  # the bridge waits 10 s for undelivered records
    assert [line for line in bridge.log_lines("sink_publish_failed") if peer.url.partition("//")[2] in line["error"]]
    peer.start()
    with BridgeProcess(engine.address, tmp_path, *flags, environment=environment) as bridge:
        eventually(lambda: len(epochs(stored_records(peer))) == 2, "the second epoch in the stream")
        bridge.wait_synced(2)
        wait_stored(bridge, peer)
        first, second = epochs(stored_records(peer))
        assert second[0]["snapshot"]["previous"] == {"epoch": first[-1]["epoch"], "sequence": first[-1]["sequence"]}
        check_stream(first)
        check_stream(second)
        check_runs([*first, *second])
        assert running_id in {container["id"] for container in running_after([*first, *second]).values()}


def test_kv_bucket_contains_running_containers(
    engine: Containerd, container_factory: ContainerFactory, nats_factory: NatsFactory, tmp_path: Path
) -> None:
    peer = nats_factory()
    server = peer.urls[0].partition("//")[2]
    environment = {
        "WHALEBRIDGE_SINKS__MAIN__TYPE": "nats",
        "WHALEBRIDGE_SINKS__MAIN__SERVERS": server,
        "WHALEBRIDGE_SINKS__MAIN__SUBJECT_PREFIX": "events",
        "WHALEBRIDGE_SINKS__MAIN__KV_BUCKET__NAME": "containers",
        "WHALEBRIDGE_LOG__FORMAT": "json",
    }
    before = container_factory.run(prefix="before")
    with BridgeProcess(engine.address, tmp_path, environment=environment):
        eventually(lambda: "nats_connected" in (tmp_path / "log.jsonl").read_text(), "a connection")
        eventually(lambda: stored_records(peer) and before in bucket_entries(peer), "the first entry")
        after = container_factory.run(prefix="after")
        eventually(lambda: after in bucket_entries(peer), "the second entry")
        engine.ctr("task", "kill", "--signal", "KILL", before)
        eventually(lambda: before not in bucket_entries(peer), "the removal of the first entry")
