"""containerd is killed and restarted while containers start and exit: each exit is published exactly once."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from tests.bridge_process import BridgeProcess, RecordDict, check_stream, summary, transitions
from tests.eventually import eventually
from tests.integration.engines import one_engine_factory
from tests.integration.running import (
    assert_short_containers_published,
    exits,
    init_pid,
    listed_containers,
    published_containers,
    run_short_containers,
    suspended,
)
from tests.scale import scaled
from tests.testbed.containerd import Containerd
from tests.testbed.flood import COMPONENTS as FLOOD
from tests.testbed.flood import create_containers, flood

ROUNDS = scaled(reduced=3, full=100)
CONVERGENCE_SECONDS = scaled(reduced=15, full=5)  # the few rounds of a usual run may meet a busy machine
# runc names cgroups NAMESPACE/ID, whichever containerd it serves: ids are unique on the machine.
HUNG, RESPONSIVE, RESTARTED, STAYS, SLEEPER = (
    f"{prefix}-{os.getpid()}" for prefix in ("hangs", "responds", "restarted", "stays", "sleeper")
)


@pytest.fixture
def containerd(engine_factory: Callable[[], Containerd]) -> Containerd:
    return engine_factory()


def start_containers(containerd: Containerd, bridge: BridgeProcess, *ids: str) -> None:
    bridge.wait_synced()
    for id_ in ids:
        containerd.run(id_, "sleep", "86400")
    bridge.wait(lambda records: len(transitions(records)) == len(ids), "all starts")


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie; a hung shim does not reap its children."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def last_control_record(records: list[RecordDict]) -> RecordDict:
    return next(each for each in reversed(records) if each["snapshot"])


def test_fault_02_containers_exit_while_containerd_is_down(containerd: Containerd, tmp_path: Path) -> None:
    check_kill_while_containerd_is_down(containerd, tmp_path, lambda id_: [init_pid(containerd, id_)])


def test_fault_03_shims_are_killed_while_containerd_is_down(containerd: Containerd, tmp_path: Path) -> None:
    """containerd kills the containers of these shims as soon as it starts."""
    check_kill_while_containerd_is_down(containerd, tmp_path, lambda id_: containerd.shim_pids("default", id_))


def check_kill_while_containerd_is_down(
    containerd: Containerd, tmp_path: Path, find_pids: Callable[[str], Sequence[int]]
) -> None:
    """Kill the processes that `find_pids` returns for a container while containerd is down; three containers stay."""
    ids = [f"gap{number}-{os.getpid()}" for number in range(6)]
    with BridgeProcess(containerd.address, tmp_path) as bridge:
        start_containers(containerd, bridge, *ids)
        containerd.ctr("task", "pause", ids[5])
        bridge.wait(lambda records: len(transitions(records)) == 7, "the pause")
        killed = [pid for id_ in ids[:3] for pid in find_pids(id_)]
        down = time.time()
        containerd.kill()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        containerd.start()
        restarted = time.time()
        bridge.wait_synced(2)
        assert time.time() - restarted < 15  # about 5 s on an idle machine
        records = bridge.wait(
            lambda records: published_containers(records) == listed_containers(containerd), "the state of containerd"
        )
    check_stream(records)
    for id_ in ids[:3]:
        assert len(exits(records, id_)) == 1, list(map(summary, records))
    for id_ in ids[3:]:
        assert exits(records, id_) == []
    started = next(each for each in records if each["type"] == "snapshot_started" and each["sequence"] > 1)["snapshot"]
    assert started["reason"] == "reconnect"
    assert _seconds(started["since"]) < down < _seconds(started["until"])
    assert published_containers(records) == {ids[3]: False, ids[4]: False, ids[5]: True}


def test_fault_13_container_restarts_within_gap(containerd: Containerd, tmp_path: Path) -> None:
    """While the bridge is suspended (SIGSTOP), a container exits and restarts, and containerd is killed."""
    with BridgeProcess(containerd.address, tmp_path) as bridge:
        start_containers(containerd, bridge, RESTARTED, STAYS)
        with suspended(bridge.process.pid):
            containerd.ctr("task", "kill", "--signal", "SIGKILL", RESTARTED)
            eventually(lambda: containerd.tasks()[RESTARTED] == "STOPPED", "the exit")
            containerd.ctr("task", "rm", RESTARTED)
            containerd.kill()  # its queue of events for the bridge is lost
            containerd.start()
            containerd.ctr("task", "start", "--detach", "--null-io", RESTARTED)
        records = bridge.wait(
            lambda records: (
                published_containers(records) == listed_containers(containerd) and len(exits(records, RESTARTED)) == 1
            ),
            "the second incarnation",
        )
    check_stream(records)
    changes = [each for each in transitions(records) if each["id"] == RESTARTED]
    assert [each["type"] for each in changes] == ["started", "exited", "started"]
    assert len({each["container"]["incarnation"] for each in changes}) == 2


@pytest.mark.parametrize("method", [Containerd.stop, Containerd.kill], ids=["SIGTERM", "SIGKILL"])
def test_fault_43_containerd_ends_with_unread_events(
    containerd: Containerd, tmp_path: Path, method: Callable[[Containerd], None]
) -> None:
    """When the suspended bridge resumes, its socket has the events, but containerd and the containers are gone."""
    ids = [f"short{number}-{os.getpid()}" for number in range(6)]
    with BridgeProcess(containerd.address, tmp_path) as bridge:
        bridge.wait_synced()
        with suspended(bridge.process.pid):
            run_short_containers(containerd, ids)
            method(containerd)
        containerd.start()
        records = bridge.wait_synced(2)
    check_stream(records)
    assert_short_containers_published(records, ids)


@one_engine_factory
def test_fault_43_containerd_ends_in_flood(
    containerd: Containerd, tmp_path: Path, require: Callable[..., None]
) -> None:
    """The socket has room for some 250 of 400 events, whose first 100 are starts; containerd queues the others."""
    require(*FLOOD)
    create_containers(containerd, 100)
    with BridgeProcess(containerd.address, tmp_path) as bridge:
        bridge.wait_synced()
        with suspended(bridge.process.pid):
            flood(containerd, events=400, containers=100, workers=1)
            containerd.kill()
        containerd.start()
        records = bridge.wait_synced(2)
    check_stream(records)
    starts = [each["id"] for each in transitions(records) if each["type"] == "started"]
    assert starts == [f"flooded/flood-{number}" for number in range(100)]


def test_fault_15_containerd_and_shim_hang(containerd: Containerd, tmp_path: Path) -> None:
    """containerd hangs until the bridge reconnects, and then one shim does not respond."""
    with BridgeProcess(containerd.address, tmp_path) as bridge:
        start_containers(containerd, bridge, HUNG, RESPONSIVE)
        pid = init_pid(containerd, HUNG)
        shims = containerd.shim_pids("default", HUNG)
        assert shims
        with suspended(*shims):
            containerd.suspend()
            eventually(lambda: bridge.log_lines("containerd_unavailable"), "detection of the hang", within=30)
            containerd.resume()
            records = bridge.wait_synced(2)
            assert last_control_record(records)["snapshot"]["partial"]
            assert not [each for each in records if each["type"] == "exited"]
            assert published_containers(records) == {HUNG: False, RESPONSIVE: False}
        os.kill(pid, signal.SIGKILL)
        records = bridge.wait(lambda records: exits(records, HUNG), "the exit", seconds=60)
    check_stream(records)
    assert [each["exit"]["status"] for each in exits(records, HUNG)] == [137]
    assert exits(records, RESPONSIVE) == []


# The first audit comes after 5 s, not 30 s.
FREQUENT_AUDITS = """
import functools, runpy
from bridge import app
app.WatchSettings = functools.partial(app.WatchSettings, first_audit_delay=5, audit_interval=5)
runpy.run_module("bridge", run_name="__main__", alter_sys=True)
"""


def test_fault_08_shim_hangs_when_bridge_starts(containerd: Containerd, tmp_path: Path) -> None:
    """The state of the container is unknown: the snapshot omits it and is partial; an audit finds it."""
    containerd.run(HUNG, "sleep", "86400")
    bridge = BridgeProcess(containerd.address, tmp_path)
    bridge.command = [sys.executable, "-c", FREQUENT_AUDITS, *bridge.command[3:]]
    with suspended(*containerd.shim_pids("default", HUNG)), bridge:
        records = bridge.wait_synced()
        assert last_control_record(records)["snapshot"]["partial"]
        assert published_containers(records) == {}
        for pid in containerd.shim_pids("default", HUNG):
            os.kill(pid, signal.SIGCONT)
        records = bridge.wait(
            lambda records: published_containers(records) == {HUNG: False}, "the container found by the audit", 60
        )
        assert last_control_record(records)["snapshot"]["reason"] == "audit"
        check_stream(records)
    assert transitions(records) == []


def test_fault_08_shim_hangs_when_containerd_restarts(containerd: Containerd, tmp_path: Path) -> None:
    """containerd abandons the shim and kills its container: the bridge publishes this exit and no other."""
    with BridgeProcess(containerd.address, tmp_path) as bridge:
        start_containers(containerd, bridge, HUNG, RESPONSIVE)
        pid = init_pid(containerd, HUNG)
        with suspended(*containerd.shim_pids("default", HUNG)):
            containerd.kill()
            containerd.start()
            bridge.wait_synced(2)
            records = bridge.wait(
                lambda records: published_containers(records) == listed_containers(containerd),
                "the state of containerd",
                60,
            )
            eventually(lambda: not is_running(pid), "the exit of the container")
    check_stream(records)
    assert len(exits(records, HUNG)) == 1
    assert exits(records, RESPONSIVE) == []


@pytest.mark.timeout(scaled(reduced=300, full=3600))
def test_fault_01_containerd_restarts_at_random_moments(containerd: Containerd, tmp_path: Path) -> None:
    """Kill and start containerd at random times while containers start and exit."""
    chance = random.Random(os.environ.get("WHALEBRIDGE_TEST_SEED", "7"))  # noqa: S311 (reproducible by its seed)
    killed: set[str] = set()
    delays: list[float] = []
    with BridgeProcess(containerd.address, tmp_path) as bridge:
        bridge.wait_synced()
        for round_ in range(ROUNDS):
            names = [f"r{round_}-{number}-{os.getpid()}" for number in range(5)]
            for id_ in names:
                containerd.run(id_, "sleep", "86400")
            killed_ids = chance.sample(sorted(listed_containers(containerd).keys() - {names[-1]}), 3)
            pids = [init_pid(containerd, id_) for id_ in killed_ids]
            fraction = chance.random()
            for pid in pids[: int(fraction * 3)]:
                os.kill(pid, signal.SIGKILL)
            time.sleep(fraction * 0.2)
            containerd.kill()
            for pid in pids[int(fraction * 3) :]:
                os.kill(pid, signal.SIGKILL)
            killed |= set(killed_ids)
            containerd.start()
            bridge.wait_synced(2 + round_)
            synced = bridge.wait_logged("synced", 2 + round_)[-1]["timestamp"]
            delays.append(_seconds(synced) - Path(containerd.host_path(containerd.address)).stat().st_mtime)
            bridge.wait(
                lambda records: published_containers(records) == listed_containers(containerd),
                "the state of containerd",
                seconds=60,
            )
        records = bridge.records()
    check_stream(records)
    for id_ in {each["id"] for each in transitions(records)}:
        assert len(exits(records, id_)) == (id_ in killed), (id_, list(map(summary, records)))
    delays.sort()
    median, p99, longest = delays[len(delays) // 2], delays[-1 - len(delays) // 100], delays[-1]
    print(f"{ROUNDS} restarts: synced after {median:.1f} s (median), {p99:.1f} s (p99), {longest:.1f} s (longest)")
    assert p99 < CONVERGENCE_SECONDS, delays


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
