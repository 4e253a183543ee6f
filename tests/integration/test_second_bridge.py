"""Two bridges publish for one source: consumers that follow the newest epoch end right, and both bridges say so."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from tests.bridge_process import BridgeProcess, RecordDict
from tests.documentation import documented_fold
from tests.eventually import eventually
from tests.integration.commands import ContainerFactory
from tests.integration.delivery import read_stream
from tests.integration.engines import one_engine
from tests.integration.http_client import LOCAL, HttpClient
from tests.testbed.containerd import Containerd
from tests.testbed.nats import Nats

pytestmark = one_engine

TAKEOVER_SECONDS = 180.0  # three probes of 10 s, then a snapshot; longer on a machine that is busy
_numbers = itertools.count()


class Consumer:
    """Read the stream of a subject that is used by one test only."""

    def __init__(self, peer: Nats, engine: Containerd) -> None:
        name = f"voice{os.getpid()}x{next(_numbers)}"
        self.namespace = name
        self.sink = f"nats://{peer.urls[0].partition('//')[2]}/{name}"
        self._stream = f"WHALEBRIDGE_{name.upper()}"
        self._peer = peer
        self._engine = engine
        self._fold = documented_fold()

    def records(self) -> list[RecordDict]:
        return [msgspec.json.decode(each.data) for each in read_stream(self._peer, self._stream)]

    def running(self) -> dict[str, set[str]]:
        """Return the ids of the running containers by host, as docs/events.md computes them."""
        folded = self._fold(self.records())
        return {host: {each["id"] for each in by_id.values()} for (host, _), by_id in folded.items()}

    def listed(self) -> set[str]:
        """Return the ids of the running containers that containerd lists."""
        return {id_ for id_, status in self._engine.tasks(self.namespace).items() if status == "RUNNING"}

    def wait_right(self, host: str, within: float = 60) -> None:
        """Wait until the consumer has the containers that containerd lists."""
        eventually(lambda: self.running().get(host) == self.listed(), f"the state of {host}", within=within)


@pytest.fixture
def consumer(nats: Nats, engine: Containerd) -> Consumer:
    return Consumer(nats, engine)


def bridge(
    engine: Containerd, consumer: Consumer, directory: Path, host: str, state_dir: Path | None = None
) -> BridgeProcess:
    directory.mkdir(exist_ok=True)
    return BridgeProcess(
        engine.address,
        directory,
        f"--namespace={consumer.namespace}",
        sinks=[consumer.sink],
        state_dir=state_dir,
        environment={**LOCAL, "WHALEBRIDGE_HOST": host},
    )


def stop_container(engine: Containerd, namespace: str, id_: str) -> None:
    engine.ctr("tasks", "kill", "--signal", "SIGKILL", id_, namespace=namespace)


def test_fault_40_second_bridge_for_a_moment(
    engine: Containerd, consumer: Consumer, container_factory: ContainerFactory, tmp_path: Path
) -> None:
    host = consumer.namespace
    exits = container_factory.run(consumer.namespace)
    with bridge(engine, consumer, tmp_path / "service", host, tmp_path / "state") as service:
        consumer.wait_right(host)
        with bridge(engine, consumer, tmp_path / "second", host) as second:
            eventually(lambda: len({each["epoch"] for each in consumer.records()}) == 2, "the second epoch")
            for process in (service, second):
                (line, *_) = process.wait_logged("second_bridge_detected")
                assert (line["level"], line["host"]) == ("warning", host)
                document = HttpClient(process).get("/readyz").document
                assert (document["ready"], document["degraded"], document["second_bridges"]) == (True, True, 1)
                assert f"another whalebridge publishes for host {host}" in document["reasons"][0]
            assert HttpClient(service).metrics()["whalebridge_second_bridges"] == 1
        stop_container(engine, consumer.namespace, exits)
        container_factory.run(consumer.namespace)
        consumer.wait_right(host, TAKEOVER_SECONDS)
        assert service.wait_logged("second_bridge_gone")
        eventually(lambda: not HttpClient(service).get("/readyz").document["degraded"], "full readiness")
        assert HttpClient(service).metrics()["whalebridge_second_bridges"] == 0
        last = container_factory.run(consumer.namespace)
        consumer.wait_right(host)
    records = consumer.records()
    first, others, newest = sorted({each["epoch"] for each in records})
    assert {each["id"] for each in records if each["epoch"] == newest} > {None, f"{consumer.namespace}/{last}"}
    begin = next(each for each in records if each["epoch"] == newest)
    second_start = next(each for each in records if each["epoch"] == others)
    assert (begin["type"], begin["snapshot"]["reason"]) == ("snapshot_started", "second_bridge")
    assert begin["snapshot"]["since"] < second_start["timestamp"] < begin["snapshot"]["until"]
    assert begin["snapshot"]["previous"] is None
    assert first < others < newest


def test_bridges_with_different_hosts_do_not_disturb_each_other(
    engine: Containerd, consumer: Consumer, tmp_path: Path
) -> None:
    hosts = (f"{consumer.namespace}-a", f"{consumer.namespace}-b")
    with bridge(engine, consumer, tmp_path / "a", hosts[0]) as one, bridge(engine, consumer, tmp_path / "b", hosts[1]):
        for host in hosts:
            consumer.wait_right(host)
        eventually(
            lambda: HttpClient(one).metrics()["whalebridge_ignored_events_total foreign_marker"],
            "a marker of the second bridge",
        )
        assert HttpClient(one).get("/readyz").document["second_bridges"] == 0
    assert len({each["epoch"] for each in consumer.records()}) == 2


def test_fault_40_state_dir_is_copied(
    engine: Containerd, consumer: Consumer, container_factory: ContainerFactory, tmp_path: Path
) -> None:
    """As on a clone of a machine, which gets a host name of its own."""
    original, clone = f"{consumer.namespace}-a", f"{consumer.namespace}-b"
    container_factory.run(consumer.namespace)
    with bridge(engine, consumer, tmp_path / "a", original, tmp_path / "state"):
        consumer.wait_right(original)
        shutil.copytree(tmp_path / "state", tmp_path / "copy", ignore=shutil.ignore_patterns("control.sock"))
        with bridge(engine, consumer, tmp_path / "b", clone, tmp_path / "copy") as copied:
            consumer.wait_right(clone)
            (line,) = copied.wait_logged("state_dir_copied")
            assert (line["level"], line["host"]) == ("warning", original)
        container_factory.run(consumer.namespace)
        consumer.wait_right(original)
    epochs = {(each["host"], each["epoch"]) for each in consumer.records()}
    assert sorted(host for host, _ in epochs) == [original, clone]
