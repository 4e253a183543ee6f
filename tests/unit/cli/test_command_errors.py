"""Test that closed descriptors, missing permissions and early signals end in one error line, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.eventually import eventually

WHALEBRIDGE = [sys.executable, "-m", "bridge"]
# No HTTP listener: another test occupies the default port.
ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "WHALEBRIDGE_HTTP__LISTEN": ""}
NO_SOCKET = "/nonexistent/c.sock"


def run_command(command: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which `whalebridge` stands for the program."""
    line = command.replace("whalebridge", '"$@"')
    options = {"env": ENVIRONMENT, "capture_output": True} | options
    return subprocess.run(["sh", "-c", line, "sh", *WHALEBRIDGE], text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("command", ["version", "doctor", "schema event", "run --help", "--show-completion"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_descriptors_cause_no_traceback(command: str, closed: str) -> None:
    process = run_command(f"whalebridge {command} {closed}")
    assert process.returncode in (0, 1)
    assert "Traceback" not in process.stderr + process.stdout


@pytest.mark.parametrize(
    "command", ["doctor", "doctor --json", f"check --containerd {NO_SOCKET}", "--help", "version", "schema event"]
)
def test_closed_pipe_exits_1_without_output(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = run_command(f"whalebridge {command}", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (process.returncode, process.stderr) == (1, "")


def test_missing_permission_is_reported(tmp_path: Path) -> None:
    """Run as an unprivileged user if root runs the tests."""
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir(0o700)
    as_unprivileged = "setpriv --reuid 65534 --regid 65534 --clear-groups " if os.geteuid() == 0 else ""
    if not as_unprivileged:
        forbidden.chmod(0)
    for command, status in (
        (f"list --containerd {forbidden}/c.sock", 3),
        (f"run --containerd {forbidden}/c.sock", 3),
        (f"run --state-dir {forbidden}/state", 1),
    ):
        process = run_command(f"{as_unprivileged}whalebridge {command}")
        assert (process.returncode, "Traceback" in process.stderr) == (status, False), process.stderr
        assert str(forbidden) in process.stderr
    process = run_command(f"{as_unprivileged}whalebridge doctor --containerd {forbidden}/c.sock")
    assert process.returncode == 1
    assert f"error     {forbidden}/c.sock: " in process.stdout
    assert "Permission denied" in process.stdout


# --- signals before the handlers are installed ---


def sigterm_blocked(process: subprocess.Popen[bytes]) -> bool:
    """Return whether the process blocks SIGTERM."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("SigBlk:"):
            return bool(int(line.split()[1], 16) & 1 << (signal.SIGTERM - 1))
    return False


# Python runs sitecustomize before the program: the imports of the bridge last until a signal is pending.
SLOW = """
import signal, sys, time

class Slow:
    def find_spec(self, name, path, target=None):
        end = time.monotonic() + 60
        while name == "bridge.cli" and not signal.sigpending() and time.monotonic() < end:
            time.sleep(0.01)

sys.meta_path.insert(0, Slow())
"""


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Return a function that starts the program and returns during the program's imports."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
        process = subprocess.Popen(
            [*WHALEBRIDGE, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        eventually(lambda: sigterm_blocked(process), "the signals to be blocked")
        return process

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_exits_0_when_signaled_during_imports(
    number: signal.Signals, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    with started("run", "--containerd", NO_SOCKET) as process:
        process.send_signal(number)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b'"shutdown_started"' in log
    assert b"Traceback" not in log


def test_ctrl_c_during_imports_exits_130_without_traceback(started: Callable[..., subprocess.Popen[bytes]]) -> None:
    with started("doctor") as process:
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=30)
    assert (process.returncode, log) == (130, b"")


def test_sigterm_ends_other_commands_by_signal(started: Callable[..., subprocess.Popen[bytes]]) -> None:
    with started("doctor") as process:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert (process.returncode, log) == (-signal.SIGTERM, b"")
