"""The systemd unit, checked by systemd's tools; the bridge as the unit runs it, with a real notify socket."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bridge_process import BridgeProcess
from tests.documentation import ROOT, code_blocks
from tests.testbed import systemd
from tests.testbed.containerd import Containerd
from tests.testbed.process import suspend_process

UNIT = ROOT / "deploy" / "systemd" / "whalebridge.service"
EXPOSURE = 20  # tenths; systemd rates up to 30 as good for a service with external communication
one_engine = pytest.mark.parametrize("engine", ["2.4"], indirect=True)


@pytest.fixture
def analyze(require: Callable[..., None]) -> Callable[..., subprocess.CompletedProcess[str]]:
    require(*systemd.COMPONENTS)

    def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["systemd-analyze", *arguments],
            env=systemd.environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    return analyze


def test_systemd_unit_passes_verification(
    analyze: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/whalebridge/bin/whalebridge", sys.executable))
    result = analyze("verify", "--man=no", str(unit))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    unit.write_text(unit.read_text() + "\n[Service]\nFrob=1\n")
    assert "Frob" in analyze("verify", "--man=no", str(unit)).stderr  # verify reports errors


def test_documented_proxy_unit_passes_systemd_verification(
    analyze: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (text,) = code_blocks((ROOT / "docs" / "proxy.md").read_text(), "ini")
    unit = tmp_path / "proxy.service"
    unit.write_text(text.replace("/opt/whalebridge/bin/whalebridge", sys.executable))
    result = analyze("verify", "--man=no", str(unit))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_systemd_unit_is_hardened(analyze: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    result = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", str(UNIT))
    assert result.returncode == 0, result.stdout
    assert re.search(r"Overall exposure level for whalebridge.service: [01]\.\d", result.stdout), result.stdout


class NotifySocket:
    """A notify socket like systemd's, read by a thread: the kernel queues only ten messages."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        self._socket.sendto(b"", str(self.path))
        self._reader.join(30)
        self._socket.close()

    def wait(self, text: str, seconds: float = 30) -> None:
        """Read messages until a line starts with ``text``."""
        lines: list[str] = []
        deadline = time.monotonic() + seconds
        while not (lines and lines[-1].startswith(text)):
            try:
                lines.append(self._messages.get(timeout=max(deadline - time.monotonic(), 0)))
            except queue.Empty:
                raise AssertionError(f"no {text}: {lines}") from None

    def is_silent(self, seconds: float, within: float = 30) -> bool:
        """Return whether no message arrives for that long, after the messages in flight."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            try:
                self._messages.get(timeout=seconds)
            except queue.Empty:
                return True
        return False

    def _read(self) -> None:
        while message := self._socket.recv(4096):
            for line in message.decode().splitlines():
                self._messages.put(line)


@pytest.fixture
def notify_socket(tmp_path: Path) -> Iterator[NotifySocket]:
    notify_socket = NotifySocket(tmp_path)
    yield notify_socket
    notify_socket.close()


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


@one_engine
def test_bridge_runs_unprivileged_with_socket_group(engine: Containerd, tmp_path: Path) -> None:
    """As in the unit: not as root, without capabilities, and without writable executable memory."""
    dropped = ["--reuid=65534", "--regid=65534", "--groups=0", "--bounding-set=-all", "--inh-caps=-all"]
    socket_directory = Path(engine.address).parent
    mode = socket_directory.stat().st_mode
    socket_directory.chmod(0o711)  # as /run/containerd is
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory) / "state"
        state.mkdir()
        for path in (directory, state):
            os.chown(path, 65534, 65534)
        bridge = BridgeProcess(engine.address, tmp_path, state_dir=state)
        bridge.command = ["setpriv", *dropped, "--no-new-privs", sys.executable, "-c", CONFINED, *bridge.command[3:]]
        with bridge:
            bridge.wait_synced()
            status = Path(f"/proc/{bridge.process.pid}/status").read_text()
            assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
            assert re.search(r"^Uid:\s+65534", status, re.MULTILINE)
    socket_directory.chmod(mode)
