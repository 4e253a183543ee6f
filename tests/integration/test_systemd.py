"""The systemd unit, checked by systemd's tools; the bridge as the unit runs it, with a real notify socket."""

from __future__ import annotations

import grp
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bridge_process import BridgeProcess
from tests.documentation import ROOT, code_blocks
from tests.integration.engines import one_engine
from tests.integration.notify_socket import NotifySocket
from tests.proxy_process import ProxyProcess
from tests.testbed import systemd
from tests.testbed.containerd import Containerd
from tests.testbed.process import run, suspend_process

DIRECTORY = ROOT / "deploy" / "systemd"
UNIT = DIRECTORY / "whalebridge.service"
UNITS = (UNIT, DIRECTORY / "whalebridge-proxy.service")
EXPOSURE = 20  # tenths; systemd rates up to 30 as good for a service with external communication


@pytest.fixture
def analyze(require: Callable[..., None]) -> Callable[..., subprocess.CompletedProcess[str]]:
    require(*systemd.COMPONENTS)

    def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(["systemd-analyze", *arguments], env=systemd.environment(), check=False)

    return analyze


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_unit_passes_verification(
    unit: Path, analyze: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/whalebridge/bin/whalebridge", sys.executable))
    result = analyze("verify", "--man=no", str(copy))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    copy.write_text(copy.read_text() + "\n[Service]\nFrob=1\n")
    assert "Frob" in analyze("verify", "--man=no", str(copy)).stderr  # verify reports errors


@pytest.mark.parametrize("page", ["install.md", "proxy.md"])
def test_documented_drop_in_passes_systemd_verification(
    page: str, analyze: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    blocks = code_blocks((ROOT / "docs" / page).read_text(), "ini")
    (drop_in,) = [block for block in blocks if "[Service]" in block]
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/whalebridge/bin/whalebridge", sys.executable) + drop_in)
    result = analyze("verify", "--man=no", str(unit))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_unit_is_hardened(unit: Path, analyze: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    result = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", str(unit))
    assert result.returncode == 0, result.stdout
    assert re.search(rf"Overall exposure level for {unit.name}: [01]\.\d", result.stdout), result.stdout


def test_systemd_unit_has_no_journal_rate_limit() -> None:
    """journald drops lines beyond its limit, which a snapshot of 10,000 containers exceeds."""
    assert "\nLogRateLimitIntervalSec=0\n" in UNIT.read_text()


@one_engine
def test_bridge_notifies_systemd_of_status_and_watchdog(
    engine: Containerd, notify_socket: NotifySocket, tmp_path: Path
) -> None:
    address = tmp_path / "c.sock"
    environment = {"NOTIFY_SOCKET": str(notify_socket.path), "WATCHDOG_USEC": "500000"}
    with BridgeProcess(str(address), tmp_path, environment=environment) as bridge:
        notify_socket.wait("READY=1")  # even without containerd
        notify_socket.wait("STATUS=waiting for containerd: socket ")
        address.symlink_to(engine.address)
        notify_socket.wait("STATUS=synced")
        notify_socket.wait("WATCHDOG=1")
        suspend_process(bridge.process.pid)
        assert notify_socket.is_silent(1.0)
        bridge.process.send_signal(signal.SIGCONT)
        notify_socket.wait("WATCHDOG=1")
        bridge.stop()
        notify_socket.wait("STOPPING=1")


CONFINED = """
import ctypes, runpy
MEMORY_DENY_WRITE_EXECUTE = 65  # PR_SET_MDWE, Linux 6.3
ctypes.CDLL(None).prctl(MEMORY_DENY_WRITE_EXECUTE, 1, 0, 0, 0)
runpy.run_module("bridge", run_name="__main__", alter_sys=True)
"""


def confined(command: list[str], user: int, *groups: int) -> list[str]:
    """Return a `python -m bridge` command as the units run it, in these groups."""
    ids = [f"--reuid={user}", f"--regid={user}", f"--groups={','.join(map(str, groups))}"]
    dropped = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    return ["setpriv", *ids, *dropped, sys.executable, "-c", CONFINED, *command[3:]]


def assert_confined(process: int, user: int) -> None:
    status = Path(f"/proc/{process}/status").read_text()
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(rf"^Uid:\s+{user}\t", status, re.MULTILINE)


@pytest.fixture
def socket_group(engine: Containerd) -> Iterator[int]:
    """Let the group of containerd's socket reach it, as in /run/containerd; return the group."""
    directory = Path(engine.address).parent
    mode = directory.stat().st_mode
    directory.chmod(0o711)
    yield Path(engine.address).stat().st_gid
    directory.chmod(mode)


@pytest.fixture
def state() -> Iterator[Path]:
    """Return a directory that every user can reach; user 65534 owns it."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        state = Path(directory) / "state"
        state.mkdir(0o711)
        os.chown(state, 65534, 65534)
        yield state


@one_engine
def test_bridge_runs_unprivileged_with_socket_group(
    engine: Containerd, socket_group: int, state: Path, tmp_path: Path
) -> None:
    """As in the unit: not as root, without capabilities, and without writable executable memory."""
    bridge = BridgeProcess(engine.address, tmp_path, state_dir=state)
    bridge.command = confined(bridge.command, 65534, socket_group)
    with bridge:
        bridge.wait_synced()
        assert_confined(bridge.process.pid, 65534)


@one_engine
def test_bridge_runs_without_socket_group_behind_proxy(
    engine: Containerd, socket_group: int, state: Path, tmp_path: Path
) -> None:
    """As in the units: only the proxy has the group of containerd's socket."""
    shared = grp.getgrnam("daemon")
    proxy = ProxyProcess(engine.address, state, f"--socket-group={shared.gr_name}")
    proxy.command = confined(proxy.command, 65534, socket_group, shared.gr_gid)
    with proxy:
        assert_confined(proxy.process.pid, 65534)
        bridge = BridgeProcess(proxy.address, tmp_path)
        bridge.command = confined(bridge.command, 65533, shared.gr_gid)
        with bridge:
            bridge.wait_synced()
            assert_confined(bridge.process.pid, 65533)
