"""The examples in README.md and docs/events.md match real records, except for values that differ between runs."""

from __future__ import annotations

import asyncio
import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.bridge_process import BridgeProcess, RecordDict, check_stream
from tests.documentation import ROOT, code_blocks
from tests.integration.engines import one_engine_factory
from tests.integration.nats_reading import NatsFactory, StreamReader
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE

SERVICE = f"""
    image: {IMAGE}
    command: sleep 1000
    network_mode: host
    pull_policy: never
"""
COMPOSE = f"name: demo\nservices:\n  web:{SERVICE}  db:{SERVICE}"
CONFIG = """
sinks:
  stdout: {{type: stdout, heartbeats: true}}
  nats: {{type: nats, servers: {urls}, subject_prefix: containers}}
heartbeat: {{interval: 1s}}
containers: {{additional_events: [renamed]}}
"""
# Fields whose values differ between runs; whether they are null does not.
VARYING_FIELDS = {
    *("timestamp", "created_at", "at", "since", "until", "epoch", "sequence", "first", "last"),
    *("id", "pid", "incarnation", "api", "image_digest"),
}


@one_engine_factory
def test_documented_event_examples_match_real_records(
    engine_factory: Callable[[], Containerd], nats_factory: NatsFactory, tmp_path: Path
) -> None:
    engine, nats = engine_factory(), nats_factory(settings="max_payload: 8192\n")
    published = list(run_example(engine, nats, tmp_path))
    by_type = {"\n".join((each["type"], each["origin"])): format_record(each) for each in published}
    for page in (ROOT / "README.md", ROOT / "docs" / "events.md"):
        for example in map(json.loads, code_blocks(page.read_text(), "json")):
            assert mask(example) in map(mask, published), by_type


def run_example(engine: Containerd, nats: Any, directory: Path) -> Iterator[RecordDict]:
    """Run a compose project, rename one container, kill the other, and run one that is too large for NATS."""
    compose = engine.directory / "compose.yaml"
    compose.write_text(COMPOSE)
    up = ("compose", "--file", str(compose), "up", "--detach")
    engine.nerdctl(*up, "web")
    config = directory / "config.yaml"
    config.write_text(CONFIG.format(urls=[url.removeprefix("nats://") for url in nats.urls]))
    with BridgeProcess(engine.address, directory, "--config", str(config), state_dir=directory / "state") as bridge:
        bridge.wait_synced()
        bridge.wait(has_type("heartbeat"), "heartbeat")
        engine.nerdctl("rename", "demo-web-1", "front")
        bridge.wait(has_type("renamed"), "new name")
        engine.nerdctl(*up, "db")
        (started,) = [each for each in bridge.wait(has_type("started"), "start") if each["type"] == "started"]
        engine.ctr("tasks", "kill", "--signal=SIGKILL", started["container"]["id"])
        bridge.wait(has_type("exited"), "exit")
        engine.run("large", "sleep", "86400", labels={f"label-{number}": "x" * 4000 for number in range(3)})
        bridge.wait_logged("records_rejected")
        lost = asyncio.run(loss_records(nats))
    records = bridge.records()
    check_stream([each for each in records if each["type"] != "heartbeat"])
    yield from records
    yield from lost


def has_type(type_: str) -> Callable[[list[RecordDict]], bool]:
    return lambda records: any(each["type"] == type_ for each in records)


async def loss_records(nats: Any) -> list[RecordDict]:
    """Wait for `lost` records in the stream and return them."""
    async with StreamReader(nats) as reader, asyncio.timeout(30):
        while True:
            stored = [json.loads(each.data) for each in await reader.read_stored("WHALEBRIDGE_CONTAINERS")]
            if lost := [each for each in stored if each["type"] == "lost"]:
                return lost
            await asyncio.sleep(0.1)


def mask(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: mask(each, key) for key, each in value.items()}
    return "masked" if name in VARYING_FIELDS and value is not None else value


def format_record(record: RecordDict) -> str:
    """Format a record like the documents; its strings must not contain spaces."""
    text = json.dumps(record, separators=(", ", ":_"))  # so that lines break after commas only
    lines = textwrap.wrap(text, 116, subsequent_indent=" ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace(":_", ": ")
