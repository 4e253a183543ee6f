"""A table of mistakes, made with the real command: each ends with its status and one clear line, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.testbed.process import wait_until

WHALEBRIDGE = [sys.executable, "-m", "bridge"]
# The default port is one, and another test needs it taken.
ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "WHALEBRIDGE_HTTP__LISTEN": ""}
NO_SOCKET = "/nonexistent/c.sock"


def call(command: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Call it by a shell, in which `whalebridge` is the program."""
    line = command.replace("whalebridge", '"$@"')
    options = {"env": ENVIRONMENT, "capture_output": True} | options
    return subprocess.run(["sh", "-c", line, "sh", *WHALEBRIDGE], text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("whalebridge", 2, ""),
        ("whalebridge frob", 2, "No such command 'frob'"),
        ("whalebridge run --frob", 2, "No such option: --frob"),
        ("whalebridge doctor --containerd", 2, "requires an argument"),
        ("whalebridge doctor --containerd tcp://h:1", 2, "invalid containerd address"),
        ("whalebridge completion tcsh", 2, "'tcsh' is not one of"),
        ("whalebridge completion", 2, "Missing argument 'SHELL'"),
        ("whalebridge schema", 2, ""),
        ("whalebridge schema frob", 2, "No such command 'frob'"),
        ("whalebridge inspect", 2, "Missing argument 'NAME_OR_ID'"),
        ("whalebridge run --sink frob:", 2, "sinks.frob: unknown scheme 'frob'"),
        ("whalebridge run --log-level loud", 2, "log.level"),
        ("whalebridge run --state-dir /proc/x", 1, "state_dir /proc/x"),
        ("whalebridge run --state-dir https://h/x", 2, "state_dir: invalid directory"),
        ("whalebridge run --sink file:/proc", 1, "/proc cannot be written"),
        ("whalebridge run --containerd /etc/passwd", 3, "/etc/passwd is not a socket"),
        (f"whalebridge list --containerd {NO_SOCKET}", 3, f"socket {NO_SOCKET} does not exist"),
        (f"whalebridge inspect x --containerd {NO_SOCKET}", 3, f"socket {NO_SOCKET} does not exist"),
        ("WHALEBRIDGE_FROB__X=1 whalebridge list", 2, "frob: unknown setting"),
        ("WHALEBRIDGE_SINKS=kafka://u:hunter2@h/t whalebridge run", 2, "credentials are not allowed in a URL"),
        ("whalebridge version >&-", 1, "standard output is closed"),
        ("whalebridge version >/dev/full", 1, "No space left on device"),
        ("whalebridge run --help >/dev/full", 1, "No space left on device"),
        ("WHALEBRIDGE_NAMESPACES__INCLUDE= whalebridge list", 2, "namespaces.include: must not be empty"),
        ("whalebridge completion bash >/dev/full", 1, "No space left on device"),
        ("whalebridge doctor >&-", 1, "standard output is closed"),
        (f"whalebridge check --containerd {NO_SOCKET} >/dev/full", 1, "No space left on device"),
        ("whalebridge run >&-", 1, "standard output is closed"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(command: str, status: int, said: str) -> None:
    done = call(command)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    own = [line for line in done.stderr.splitlines() if line.startswith("whalebridge: ")]
    assert len(own) <= 1
    assert said in (own[0] if own else "")
    assert "hunter2" not in done.stderr + done.stdout


@pytest.mark.parametrize("command", ["version", "doctor", "schema event", "run --help", "completion bash"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_descriptors_are_no_traceback(command: str, closed: str) -> None:
    done = call(f"whalebridge {command} {closed}")
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("command", ["doctor", "doctor --json", f"check --containerd {NO_SOCKET}", "completion zsh"])
def test_a_reader_that_has_seen_enough_is_nothing_to_speak_of(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = call(f"whalebridge {command}", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_without_permission(tmp_path: Path) -> None:
    """As somebody else than root, where root runs the tests."""
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir(0o700)
    as_nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups " if os.geteuid() == 0 else ""
    if not as_nobody:
        forbidden.chmod(0)
    for command, status in (
        (f"list --containerd {forbidden}/c.sock", 3),
        (f"run --containerd {forbidden}/c.sock", 3),
        (f"run --state-dir {forbidden}/state", 1),
        (f"run --sink file:{forbidden}/events", 1),
    ):
        done = call(f"{as_nobody}whalebridge {command}")
        assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
        assert str(forbidden) in done.stderr
    done = call(f"{as_nobody}whalebridge doctor --containerd {forbidden}/c.sock")
    assert done.returncode == 1
    assert f"error     {forbidden}/c.sock: cannot be read: Permission denied; run as root" in done.stdout


# --- signals before there is anybody to hear them ---


def held(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process lets SIGTERM wait."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("SigBlk:"):
            return bool(int(line.split()[1], 16) & 1 << (signal.SIGTERM - 1))
    return False


# Python runs it before any program: the imports of ours last until there is a signal.
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
    """Starts it, and returns in the midst of its imports."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
        process = subprocess.Popen(
            [*WHALEBRIDGE, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        wait_until(lambda: held(process), "the signals to be held")
        return process

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_imports_of_run_is_a_clean_end(
    number: signal.Signals, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    with started("run", "--containerd", NO_SOCKET) as process:
        process.send_signal(number)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b'"shutdown_started"' in log
    assert b"Traceback" not in log


def test_ctrl_c_during_the_imports_of_another_command_is_no_traceback(
    started: Callable[..., subprocess.Popen[bytes]],
) -> None:
    with started("doctor") as process:
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=30)
    assert (process.returncode, log) == (130, b"")


def test_sigterm_ends_other_commands_as_it_ends_any_program(started: Callable[..., subprocess.Popen[bytes]]) -> None:
    with started("doctor") as process:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert (process.returncode, log) == (-signal.SIGTERM, b"")
