"""`make run` finds the right containerd, prints records, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.cli.socket_checks import WELL_KNOWN_SOCKETS
from tests.integration.leaks import find_leaks
from tests.naming import assert_names
from tests.testbed.containerd import Containerd
from tests.testbed.process import run

# The demo always installs this version.
pytestmark = pytest.mark.parametrize("engine", ["1.6"], indirect=True)


@pytest.fixture
def no_containerd(engine: Containerd) -> None:
    del engine  # requested because it requires the testbed
    if any(Path(path).exists() for path in WELL_KNOWN_SOCKETS):
        pytest.skip("this machine has a containerd, which the demo would use")


def start_demo(*args: str, **environment: str) -> subprocess.Popen[str]:
    """Start the demo in a new process group, like a terminal."""
    inherited = {name: value for name, value in os.environ.items() if name != "CONTAINERD_ADDRESS"}
    inherited["WHALEBRIDGE_HTTP__LISTEN"] = ""  # another test needs the default port
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", *args],
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def first_containerd_address(process: subprocess.Popen[str]) -> Path:
    """Return containerd's address from the first record."""
    assert process.stdout is not None
    return Path(json.loads(process.stdout.readline())["engine"]["api"])


@pytest.mark.usefixtures("no_containerd")
def test_demo_starts_private_containerd_when_none_is_available() -> None:
    with start_demo("--rounds=2", "--pause=0.3") as process:
        directory = first_containerd_address(process).parent
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.startswith("demo: ")
    records = [json.loads(line) for line in out.splitlines()]
    assert {"started", "paused", "unpaused", "exited"} <= {record["type"] for record in records}
    assert {"demo-web-1", "front", "demo-db-1"} <= {
        record["container"]["name"] for record in records if record["container"]
    }
    assert find_leaks(directory) == []


@pytest.mark.usefixtures("no_containerd")
def test_demo_leaves_nothing_behind_when_terminated() -> None:
    with start_demo("--pause=0.1") as process:
        directory = first_containerd_address(process).parent
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert find_leaks(directory) == []


@pytest.mark.usefixtures("no_containerd")
def test_demo_exits_quietly_when_reader_is_gone() -> None:
    with start_demo("--pause=0.1") as process:
        directory = first_containerd_address(process).parent
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(120) == 0, err
    assert "Traceback" not in err
    assert find_leaks(directory) == []


def test_demo_uses_available_containerd(engine: Containerd) -> None:
    with start_demo(CONTAINERD_ADDRESS=f"unix://{engine.address}") as process:
        assert str(first_containerd_address(process)) == engine.address
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert_names(err.splitlines()[0], "demo: ", engine.address)
    assert process.returncode == 0
    engine.ctr("version")


@pytest.mark.usefixtures("engine")
def test_demo_exits_3_when_containerd_address_is_missing(tmp_path: Path) -> None:
    with start_demo(CONTAINERD_ADDRESS=str(tmp_path / "missing.sock")) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, len(err.splitlines())) == (3, "", 1)
    assert "CONTAINERD_ADDRESS" in err
    assert "No such file" in err


def test_demo_suggests_sudo_when_socket_permission_is_denied(engine: Containerd) -> None:
    # Root has all permissions. The other user may not be able to read this checkout, hence the import before setuid.
    program = """
import os, sys
from examples.demo import main
os.setgroups([]), os.setgid(65534), os.setuid(65534)
sys.exit(main())
"""
    environment = {**os.environ, "CONTAINERD_ADDRESS": engine.address}
    process = run([sys.executable, "-c", program], env=environment, check=False)
    assert process.returncode == 3
    assert_names(process.stderr, "demo: ", engine.address, "sudo make run")
    assert process.stderr.count("\n") == 1
