"""The bridge is killed while containers start, exit and restart; the next run continues the stream."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bridge_process import BridgeProcess, RecordDict, summary, transitions
from tests.eventually import eventually
from tests.integration.delivery import ContainerChurn, complete_records
from tests.integration.running import listed_containers, published_containers
from tests.scale import scaled
from tests.testbed.containerd import Containerd

KILLS = scaled(reduced=8, full=500)
# runc names cgroups NAMESPACE/ID, whichever containerd it serves: ids are unique on the machine.
EXITS, STOPS, RESTARTED, STAYS, PAUSES, CREATED = IDS = [
    f"{prefix}-{os.getpid()}" for prefix in ("exits", "stops", "restarts", "stays", "pauses", "created")
]


@pytest.fixture
def containerd(engine_factory: Callable[[], Containerd]) -> Containerd:
    return engine_factory()


def bridge(engine: Containerd, directory: Path, *flags: str) -> BridgeProcess:
    return BridgeProcess(engine.address, directory, *flags, state_dir=directory / "state")


def read_file(path: Path) -> list[RecordDict]:
    """Read a file of all runs by the rules for consumers; a line that a SIGKILL truncated precedes a complete one."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return complete_records([line[line.rfind(b'{"version":1,') :] for line in lines])


def published_about(records: list[RecordDict], id_: str) -> list[tuple[str, str, int | None]]:
    """Return type, origin and exit status of the records about a container."""
    return [(each["type"], each["origin"], (each["exit"] or {}).get("status")) for each in records if each["id"] == id_]


def test_changes_are_inferred_when_bridge_restarts(containerd: Containerd, tmp_path: Path) -> None:
    ids = IDS[:-1]
    with bridge(containerd, tmp_path) as first:
        first.wait_synced()
        for id_ in ids:
            containerd.run(id_, "sleep", "86400")
        first.wait(lambda records: len(transitions(records)) == len(ids), "all starts")
        first.process.kill()
        first.process.wait()
    for id_ in (EXITS, STOPS, RESTARTED):
        containerd.ctr("task", "kill", "--signal", "SIGKILL", id_)
        eventually(lambda id_=id_: containerd.tasks()[id_] == "STOPPED", f"{id_} to stop")  # type: ignore[misc]
    for id_ in (EXITS, RESTARTED):
        containerd.ctr("task", "rm", id_)
    containerd.ctr("task", "start", "--detach", "--null-io", RESTARTED)
    containerd.ctr("task", "pause", PAUSES)
    containerd.run(CREATED, "sleep", "86400")
    before = len(read_file(first.out))
    with bridge(containerd, tmp_path) as second:
        second.wait(
            lambda records: published_containers(records) == listed_containers(containerd), "the state of containerd"
        )
    records = read_file(second.out)[before:]
    assert published_about(records, EXITS) == [("exited", "inferred", None)]
    assert published_about(records, STOPS) == [("exited", "inferred", 137)]
    assert [each[:2] for each in published_about(records, RESTARTED)] == [
        ("exited", "inferred"),
        ("started", "inferred"),
        ("present", "snapshot"),
    ]
    assert [each[0] for each in published_about(records, STAYS)] == ["present"]
    assert [each[0] for each in published_about(records, PAUSES)] == ["paused", "present"]
    assert [each[0] for each in published_about(records, CREATED)] == ["started", "present"]
    assert records[0]["snapshot"]["reason"] == "start"
    assert records[0]["snapshot"]["since"] is not None


@pytest.mark.timeout(scaled(reduced=300, full=5400))
def test_bridge_agrees_with_containerd_after_kills_under_churn(engine: Containerd, tmp_path: Path) -> None:
    seed = os.environ.get("WHALEBRIDGE_TEST_SEED", "7")
    chance = random.Random(seed)  # noqa: S311 (reproducible by its seed)
    churn = ContainerChurn(engine, f"churn{os.getpid()}", seed)
    flags = ("--namespace", churn.namespace)
    with churn:
        for _ in range(KILLS):
            until = chance.choice(["nothing", "records", "synced", "synced"])
            with start_bridge_until(engine, tmp_path, until, *flags) as killed:
                time.sleep(chance.choice([0, chance.uniform(0, 0.1), chance.uniform(0, 2.0)]))
                killed.kill()
        eventually(lambda: churn.runs.total() > KILLS, "the churn")
    with start_bridge_until(engine, tmp_path, "synced", *flags) as last:  # earlier records may already match
        last.wait(
            lambda records: published_containers(records) == listed_containers(engine, churn.namespace),
            "the state of containerd",
            60,
        )
    records = read_file(last.out)
    assert len({each["epoch"] for each in records}) > KILLS // 4
    listed = listed_containers(engine, churn.namespace)
    assert published_containers(records) == listed, list(map(summary, records))
    churn.remove_all()


@contextmanager
def start_bridge_until(engine: Containerd, directory: Path, until: str, *flags: str) -> Iterator[BridgeProcess]:
    """Start the bridge, and wait for nothing, for records or until it is synced."""
    process = bridge(engine, directory, *flags)
    before = measure_progress(process, until)
    with process:
        eventually(lambda: until == "nothing" or measure_progress(process, until) > before, until)
        yield process


def measure_progress(bridge: BridgeProcess, progress: str) -> int:
    """Return the total progress of all runs: bytes of records, or number of synchronizations."""
    file = bridge.out if progress == "records" else bridge.log
    written = file.read_bytes() if file.exists() else b""
    return len(written) if progress == "records" else written.count(b'"event": "synced"')
