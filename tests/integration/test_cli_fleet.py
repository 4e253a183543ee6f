"""`whalebridge fleet` on real brokers: the histories of two containerds, live pages, credentials and permissions."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bridge.cli import execute
from bridge.consumer.conformance import SampleBridge as Bridge
from tests.bridge_process import BridgeProcess
from tests.certificates import Authority
from tests.conformance.vectors import flat
from tests.eventually import eventually
from tests.integration.commands import ENVIRONMENT, WHALEBRIDGE, assert_one_line, whalebridge
from tests.integration.delivery import BrokerTargets, ContainerChurn
from tests.integration.running import listed_containers
from tests.integration.terminal import Terminal
from tests.testbed.containerd import VERSIONS, Containerd, Version, components
from tests.testbed.kafka import USERS, Kafka
from tests.testbed.nats import Nats

MOMENTS = 10
OUTAGES: dict[int, Version] = {
    1: "1.6",
    3: "2.4",
}  # before these moments, the bridge of this node is killed and started again
SETTLED_SECONDS = 0.5  # until shims have published what containerd lists already

Listing = dict[tuple[str, str], str]


class Node(NamedTuple):
    """A containerd with its bridge, and what happens on it."""

    host: str
    engine: Containerd
    bridge: BridgeProcess
    churn: ContainerChurn

    def listing(self) -> Listing:
        listed = listed_containers(self.engine, self.churn.namespace)
        return {(self.host, id_): "paused" if paused else "running" for id_, paused in listed.items()}


@pytest.fixture
def nodes(
    require_as_root: Callable[..., None], targets: BrokerTargets, tmp_path: Path
) -> Iterator[dict[Version, Node]]:
    """A node with each version of containerd; their bridges publish to the same topic and stream.

    The bridge of the older one sends no heartbeats, so that it can be retired before it is stale, after a minute.
    """
    with ExitStack() as stack:
        nodes: dict[Version, Node] = {}
        for version in VERSIONS:
            require_as_root(*components(version))
            engine = stack.enter_context(Containerd(version))
            host, name = f"node-{version}", f"fleet{version.replace('.', '')}x{os.getpid()}"
            (directory := tmp_path / name).mkdir()
            interval = "off" if version == "1.6" else "1s"
            environment = {"WHALEBRIDGE_HOST": host, "WHALEBRIDGE_HEARTBEAT__INTERVAL": interval}
            churn = ContainerChurn(engine, name, seed=version)
            bridge = targets.bridge(engine, directory, "--namespace", name, environment=environment)
            nodes[version] = Node(host, engine, stack.enter_context(bridge), churn)
        for node in nodes.values():
            node.bridge.wait_logged("synced")
        yield nodes


@pytest.fixture
def targets(kafka: Kafka, nats: Nats) -> BrokerTargets:
    return BrokerTargets(kafka, nats)


@pytest.fixture
def read_fleet(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the command, and returns its JSON document."""

    def read(url: str, *options: str) -> dict[str, Any]:
        capsys.readouterr()
        assert execute(["fleet", url, *options, "--json"]) == 0
        out, error = capsys.readouterr()
        assert error == ""
        return dict(json.loads(out))

    return read


def containers(document: dict[str, Any]) -> Listing:
    return {(each["host"], each["id"]): each["status"] for each in document["containers"]}


def all_listed(nodes: dict[Version, Node]) -> Listing:
    return {key: value for node in nodes.values() for key, value in node.listing().items()}


@pytest.mark.timeout(240)
def test_fleet_equals_containerds_now_and_at_past_moments(
    nodes: dict[Version, Node], targets: BrokerTargets, read_fleet: Callable[..., dict[str, Any]]
) -> None:
    recorded: list[tuple[str, Listing]] = []
    for number in range(MOMENTS):
        if version := OUTAGES.get(number):
            nodes[version].bridge.kill()
        for node in nodes.values():
            for _ in range(2):
                node.churn.step()
        if version:
            nodes[version].bridge.start()
            nodes[version].bridge.wait_logged("synced", 2)
        time.sleep(SETTLED_SECONDS)
        recorded.append((datetime.now(UTC).isoformat(), all_listed(nodes)))
    assert len({tuple(sorted(listing)) for _, listing in recorded}) > MOMENTS // 2
    assert any("paused" in listing.values() for _, listing in recorded)

    for url in targets.urls:
        eventually(lambda url=url: containers(read_fleet(url, "--once")) == recorded[-1][1], "the present state")  # type: ignore[misc] # the url of this round
        for number, (at, listing) in enumerate(recorded):
            document = read_fleet(url, "--at", at)
            assert [each["complete"] for each in document["sources"]] == [True, True]
            unknown = [text for each in document["sources"] for text in each["unknown"]]
            if number >= max(OUTAGES):
                assert unknown == [], at
            # What changed in an outage may have changed since the last watermark, up to 10 s before.
            actual, uncertain = (
                containers(document),
                {key for key in listing if any(key[1] in each for each in unknown)},
            )
            assert {key: actual[key] for key in actual if actual[key] != "unknown" or key not in uncertain} == {
                key: listing[key] for key in listing if actual.get(key) != "unknown" or key not in uncertain
            }, at

    gone, stays = nodes["1.6"], nodes["2.4"]
    before = datetime.now(UTC).isoformat()
    gone.bridge.kill()
    gone.engine.kill()
    time.sleep(1.1)
    for url in targets.urls:
        retired = whalebridge("retire", gone.host, "--sink", url, "--stale-for", "1s")
        assert (retired.returncode, retired.stderr) == (0, "")
        document = read_fleet(url)
        assert containers(document) == stays.listing()
        assert [(each["host"], each["retired"] is not None) for each in document["sources"]] == [
            (gone.host, True),
            (stays.host, False),
        ]
        assert containers(read_fleet(url, "--at", before)) == recorded[-1][1]
        ended = read_fleet(url, "--diff", before, datetime.now(UTC).isoformat())
        assert {(each["host"], each["id"]) for each in ended["ended"]} == {
            key for key in recorded[-1][1] if key[0] == gone.host
        }
        assert ended["started"] == []


def test_fleet_redraws_page_when_records_arrive(tmp_path: Path) -> None:
    """Read a file, which needs no broker; the readers of brokers have tests of their own."""
    node = Bridge()
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in flat(node.snapshot(("web", 101)))))
    with Terminal([*WHALEBRIDGE, "fleet", f"file:{path}", "--project", "demo"], ENVIRONMENT) as terminal:
        page = terminal.wait(lambda page: "web" in page, "container")
        assert page.splitlines()[0].strip() == f"1 container of 1 source at file:{path}"
        with path.open("ab") as file:
            file.writelines(line + b"\n" for line in flat(node.start("db", 102), node.exit("web", 101)))
        page = terminal.wait(lambda page: "db" in page and "web" not in page, "change")
        terminal.resize(60, 20)
        terminal.wait(lambda page: "IMAGE" not in page and "HOST" in page, "smaller page")
        assert terminal.stop(signal.SIGINT) == 0


def test_fleet_of_configured_sink_uses_its_credentials(kafka: Kafka, authority: Authority, tmp_path: Path) -> None:
    kafka.admin.create_topic("fleet.restricted")
    config = tmp_path / "config.yaml"

    def configure(password: str) -> tuple[str, ...]:
        settings = {
            "type": "kafka",
            "bootstrap_servers": [kafka.bootstrap_for("sasl_ssl")],
            "topic": "fleet.restricted",
            "tls": {"enabled": True, "ca_file": str(authority.certificate)},
            "auth": {"username": "reader", "password": password},
        }
        config.write_text(json.dumps({"sinks": {"main": settings}}))
        return ("fleet", "main", "--config", str(config), "--once")

    assert_one_line(whalebridge(*configure(USERS["reader"])), 1, "there are no records")
    process = whalebridge(*configure("wr0ng"))
    assert_one_line(process, 3, "user reader", "scram-sha-512")
    assert "wr0ng" not in process.stderr
    assert_one_line(whalebridge("fleet", f"kafka://{kafka.bootstrap}/fleet.nowhere", "--once"), 1, "fleet.nowhere")
