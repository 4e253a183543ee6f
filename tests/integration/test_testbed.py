"""The testbed's servers start, serve, and leave nothing behind; the tests that use them prove the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.eventually import eventually
from tests.integration.leaks import find_leaks
from tests.testbed import nats as nats_peer
from tests.testbed.containerd import Containerd, busybox_path, components
from tests.testbed.image import oci_archive
from tests.testbed.nats import Nats

ContainerdFactory = Callable[[], Containerd]


def unique_id(prefix: str) -> str:
    """Return an id that is unique on the machine: runc names cgroups NAMESPACE/ID for all containerds."""
    return f"{prefix}-{os.getpid()}"


def test_testbed_containerd_leaves_nothing_behind(engine_factory: ContainerdFactory) -> None:
    engine = engine_factory()
    client, server = engine.ctr("version").stdout.split("Server:")
    assert all(f"Version:  {engine.version}." in text for text in (client, server))
    assert oci_archive(busybox_path()) == (engine.directory / "busybox.tar").read_bytes()
    names = [unique_id(f"left-{how}") for how in ("running", "paused", "without-shim", "with-stopped-shim")]
    for name in names:
        engine.run(name, "sleep", "86400")
    engine.ctr("tasks", "pause", names[1])
    shims = engine.shim_pids()
    engine.kill()
    engine.start()
    assert engine.shim_pids() == shims
    assert engine.tasks() == {name: "PAUSED" if name == names[1] else "RUNNING" for name in names}
    os.kill(engine.shim_pids("default", names[2])[0], signal.SIGKILL)
    os.kill(engine.shim_pids("default", names[3])[0], signal.SIGSTOP)
    engine.nerdctl("run", "--detach", "--pull=never", "--net=host", "busybox:latest", "sleep", "86400")
    assert find_leaks(engine.directory, unique_id("left-*"))
    engine.close()
    assert find_leaks(engine.directory, unique_id("left-*")) == []


def test_testbed_brokers_leave_nothing_behind(nats_factory: Callable[..., Nats]) -> None:
    """Kafka's brokers are the same kind of server, and start more slowly."""
    nats = nats_factory(3)
    nats.servers[0].suspend()
    assert find_leaks(nats.directory)
    nats.close()
    assert find_leaks(nats.directory) == []


CONTAINERD_PROGRAM = """
from tests.testbed.containerd import Containerd
server = Containerd("2.4")
server.start()
server.import_image()
server.run("{orphan}", "sleep", "86400")
print(server.directory, flush=True)
input()
"""
NATS_PROGRAM = """
from tests.testbed.nats import Nats
server = Nats()
server.start()
print(server.directory, flush=True)
input()
"""


@pytest.mark.parametrize(
    ("program", "required"),
    [
        pytest.param(CONTAINERD_PROGRAM, components("2.4"), id="containerd"),
        pytest.param(NATS_PROGRAM, nats_peer.COMPONENTS, id="nats"),
    ],
)
def test_testbed_server_is_cleaned_up_when_tests_are_killed(
    program: str, required: tuple[str, ...], require_as_root: Callable[..., None]
) -> None:
    require_as_root(*required)
    orphan = unique_id("orphan")
    program = program.format(orphan=orphan)
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tests:
        assert tests.stdout is not None
        directory = Path(tests.stdout.readline().decode().strip())
        assert find_leaks(directory, orphan)
        tests.kill()
    eventually(lambda: not find_leaks(directory, orphan), "the sandbox to clean up", within=120)
