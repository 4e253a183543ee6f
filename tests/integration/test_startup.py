"""The start of the bridge while its outbox cannot be opened yet: it responds, says why, and can be stopped."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

from bridge.core.containerd_model import ContainerKey
from tests.bridge_process import BridgeProcess, check_stream
from tests.eventually import eventually
from tests.integration.commands import assert_one_line, whalebridge
from tests.integration.engines import one_engine
from tests.integration.http_client import LOCAL, HttpClient, assert_not_ready
from tests.integration.notify_socket import NotifySocket
from tests.integration.test_disk_faults import fill_up, small_disk
from tests.simulator.containerd import SimulatedContainerd
from tests.testbed.containerd import Containerd

NOT_NEEDED_FOR_FIRST_RECORD = {
    "aiohttp": "imported with the first connection to the HTTP endpoint",
    "markupsafe": "imported with the first connection to the HTTP endpoint",
    "prometheus_client": "imported with the first connection to the HTTP endpoint",
    "aiokafka": "imported for Kafka",
    "nats": "imported for NATS",
    "rich.text": "imported for tables, not for the log",
    "pygments": "imported by rich",
    "attr": "imported by rich",
    "jsonschema": "imported to validate documents",
}
MAX_MODULES = 640  # 596 were counted with Python 3.11


def subdirectory(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir()
    return path


@one_engine
def test_bridge_responds_while_disk_is_full_at_start(
    engine: Containerd, notify_socket: NotifySocket, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        state = disk / "state"
        with BridgeProcess(engine.address, tmp_path, state_dir=state) as bridge:
            bridge.wait_synced()
        filler = fill_up(disk)
        environment = LOCAL | {"NOTIFY_SOCKET": str(notify_socket.path)}
        with BridgeProcess(engine.address, tmp_path, state_dir=state, environment=environment) as bridge:
            client = HttpClient(bridge)
            assert_not_ready(client, state)
            bridge.wait_logged("outbox_write_failed")
            assert_not_ready(client, state, "database or disk is full")
            assert_one_line(whalebridge("snapshot", "--state-dir", str(state)), 3, "database or disk is full")
            notify_socket.wait("READY=1")  # a boot does not wait for disk space
            notify_socket.wait("STATUS=waiting for the outbox: ")
            filler.unlink()
            eventually(client.ready, "the bridge to be ready")
            bridge.wait_logged("outbox_recovered")
            notify_socket.wait("STATUS=synced")
            bridge.wait_synced(2)


def test_bridge_starts_when_full_disk_has_space_again(tmp_path: Path) -> None:
    """The first start, which has to create all files."""
    with small_disk(tmp_path / "disk") as disk:
        state = subdirectory(disk, "state")
        filler = fill_up(disk)
        with BridgeProcess("/nowhere.sock", tmp_path, state_dir=state, environment=LOCAL) as bridge:
            client = HttpClient(bridge)
            bridge.wait_logged("outbox_open_failed")
            assert_not_ready(client, state, "disk is full")
            filler.unlink()
            bridge.wait_logged("outbox_recovered")
            bridge.wait_logged("containerd_unavailable")
            assert client.metrics()["whalebridge_outbox_writable"] == 1


SLOW_OPENING = """
import pathlib, runpy, sys, time
from bridge.outbox.database import Database

gate = pathlib.Path(sys.argv.pop(1))

def check_integrity(self, seconds):
    while not gate.exists():
        time.sleep(0.05)
    return True

Database.check_integrity = check_integrity
runpy.run_module("bridge", run_name="__main__", alter_sys=True)
"""


def slow_bridge(
    address: str, directory: Path, gate: Path, state: Path, notify_socket: NotifySocket | None = None
) -> BridgeProcess:
    """Return a bridge that opens its outbox when ``gate`` exists."""
    environment = LOCAL | ({"NOTIFY_SOCKET": str(notify_socket.path)} if notify_socket else {})
    bridge = BridgeProcess(address, directory, state_dir=state, environment=environment)
    bridge.command = [sys.executable, "-c", SLOW_OPENING, str(gate), *bridge.command[3:]]
    return bridge


@one_engine
def test_bridge_responds_while_outbox_opens_slowly(
    engine: Containerd, notify_socket: NotifySocket, tmp_path: Path
) -> None:
    gate, state = tmp_path / "gate", tmp_path / "state"
    with slow_bridge(engine.address, tmp_path, gate, state, notify_socket) as bridge:
        client = HttpClient(bridge)
        assert_not_ready(client, state / "outbox.db", "is being opened")
        eventually((state / "control.sock").is_socket)
        assert_one_line(whalebridge("snapshot", "--state-dir", str(state)), 3, "is being opened")
        bridge.process.send_signal(signal.SIGHUP)
        notify_socket.wait("STATUS=waiting for the outbox: ")
        for _ in range(3):
            notify_socket.wait("EXTEND_TIMEOUT_USEC=")
        assert not bridge.log_lines("settings_reloaded")
        gate.touch()
        notify_socket.wait("READY=1")
        bridge.wait_logged("settings_reloaded")
        bridge.wait_synced()
        eventually(client.ready, "the bridge to be ready")
        assert whalebridge("snapshot", "--state-dir", str(state)).returncode == 0


def test_bridge_stops_on_signal_while_outbox_opens_slowly(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with slow_bridge("/nowhere.sock", tmp_path, tmp_path / "gate", state) as bridge:
        assert_not_ready(HttpClient(bridge), "is being opened")
        eventually((state / "control.sock").is_socket)
        assert bridge.stop() < 20  # the deadline is 10 s
        bridge.wait_logged("shutdown_started")  # all lines are log lines
        assert not (state / "control.sock").exists()
    with BridgeProcess("/nowhere.sock", tmp_path, state_dir=state) as bridge:
        bridge.wait_logged("containerd_unavailable")


@one_engine
def test_fault_23_two_bridges_share_state_dir(engine: Containerd, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first, second, third = (
        BridgeProcess(engine.address, subdirectory(tmp_path, name), state_dir=state, environment=LOCAL)
        for name in ("first", "second", "third")
    )
    with first:
        first.wait_synced()
        with second:
            third.start()
            for waiting in (second, third):
                waiting.wait_logged("outbox_open_failed")
                assert_not_ready(HttpClient(waiting), state, f"another whalebridge (process {first.process.pid})")
            third.stop()
            assert whalebridge("snapshot", "--state-dir", str(state)).returncode == 0, "the first one responds"
            first.wait_synced(2)
            first.stop()
            second.wait_synced()
            eventually(HttpClient(second).ready, "the second bridge to be ready")
            assert whalebridge("snapshot", "--state-dir", str(state)).returncode == 0
            second.wait_synced(2)
    check_stream(first.records())
    check_stream(second.records())


async def test_first_record_needs_few_modules(tmp_path: Path) -> None:
    async with SimulatedContainerd(tmp_path / "c.sock") as containerd:
        containerd.state.run(ContainerKey("default", "web"))
        environment = {"PYTHONPROFILEIMPORTTIME": "1"}
        with BridgeProcess(
            containerd.address, tmp_path, state_dir=tmp_path / "state", environment=environment
        ) as bridge:
            await asyncio.to_thread(bridge.wait_synced)
            modules = re.findall(r"^import time: .*\| +(\S+)$", bridge.log.read_text(), re.MULTILINE)
    assert {name: reason for name, reason in NOT_NEEDED_FOR_FIRST_RECORD.items() if name in modules} == {}
    assert 300 < len(modules) < MAX_MODULES
