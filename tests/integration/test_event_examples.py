"""The examples of README.md and docs/events.md are records of a run: of this one, but for what differs in each run."""

from __future__ import annotations

import asyncio
import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bridge_process import BridgeProcess, Document, check_stream
from tests.documents import ROOT, blocks
from tests.integration.nats_reading import FreshNats, Reader
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
# What is another in each run. (Whether there is something is the same.)
DIFFERENT = {
    *("timestamp", "created_at", "at", "since", "until", "epoch", "sequence", "first", "last"),
    *("id", "pid", "incarnation", "api"),
}


@pytest.mark.parametrize("fresh_engine", ["2.4"], indirect=True)
def test_the_examples_are_records_of_a_run(
    fresh_engine: Callable[[], Containerd], fresh_nats: FreshNats, tmp_path: Path
) -> None:
    engine, nats = fresh_engine(), fresh_nats(settings="max_payload: 8192\n")
    told = list(story(engine, nats, tmp_path))
    by_type = {"\n".join((each["type"], each["origin"])): shown(each) for each in told}
    for page in (ROOT / "README.md", ROOT / "docs" / "events.md"):
        for example in map(json.loads, blocks(page.read_text(), "json")):
            assert masked(example) in map(masked, told), by_type


def story(engine: Containerd, nats: Any, folder: Path) -> Iterator[Document]:
    """A compose project, of which one container is renamed and the other killed; and one that is too large for NATS."""
    compose = engine.directory / "compose.yaml"
    compose.write_text(COMPOSE)
    up = ("compose", "--file", str(compose), "up", "--detach")
    engine.nerdctl(*up, "web")
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(urls=[url.removeprefix("nats://") for url in nats.urls]))
    with BridgeProcess(engine.address, folder, "--config", str(config), state_dir=folder / "state") as bridge:
        bridge.wait_live()
        bridge.wait(has("heartbeat"), "heartbeat")
        engine.nerdctl("rename", "demo-web-1", "front")
        bridge.wait(has("renamed"), "new name")
        engine.nerdctl(*up, "db")
        (started,) = [each for each in bridge.wait(has("started"), "start") if each["type"] == "started"]
        engine.ctr("tasks", "kill", "--signal=SIGKILL", started["container"]["id"])
        bridge.wait(has("exited"), "exit")
        engine.run("large", "sleep", "86400", labels={f"label-{number}": "x" * 4000 for number in range(3)})
        bridge.wait_said("records_rejected")
        lost = asyncio.run(losses(nats))
    records = bridge.records()
    check_stream([each for each in records if each["type"] != "heartbeat"])
    yield from records
    yield from lost


def has(type_: str) -> Callable[[list[Document]], bool]:
    return lambda records: any(each["type"] == type_ for each in records)


async def losses(nats: Any) -> list[Document]:
    """The `lost` records of the stream, once there is one."""
    async with Reader(nats) as reader, asyncio.timeout(30):
        while True:
            stored = [json.loads(each.data) for each in await reader.stored("WHALEBRIDGE_CONTAINERS")]
            if lost := [each for each in stored if each["type"] == "lost"]:
                return lost
            await asyncio.sleep(0.1)


def masked(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: masked(each, key) for key, each in value.items()}
    return "different" if name in DIFFERENT and value is not None else value


def shown(record: Document) -> str:
    """A record as the documents show it; in none of its texts is a blank."""
    text = json.dumps(record, separators=(", ", ":_"))  # lines end after commas only
    lines = textwrap.wrap(text, 116, subsequent_indent=" ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace(":_", ": ")
