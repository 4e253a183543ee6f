"""The testbed's servers start, serve, and leave nothing behind; the tests that use them prove the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.eventually import eventually
from tests.integration.engines import one_engine_factory
from tests.integration.leaks import find_leaks
from tests.testbed import nats as nats_peer
from tests.testbed.containerd import Containerd, busybox_path, components
from tests.testbed.debian_mirror import DebianMirror
from tests.testbed.dockerd import Docker
from tests.testbed.image import oci_archive
from tests.testbed.nats import Nats
from tests.testbed.sandbox import LINKS_FILE

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


@one_engine_factory
def test_testbed_docker_removes_network_on_close(
    engine_factory: ContainerdFactory, require: Callable[..., None]
) -> None:
    require("docker")
    engine = engine_factory()
    with Docker(engine, ports=True) as docker:
        docker.docker("run", "--detach", "--publish=127.0.0.1::80", "busybox:latest", "sleep", "86400")
        (bridge,) = (engine.directory / LINKS_FILE).read_text().split()
        assert len(list(Path("/sys/class/net", bridge, "brif").iterdir())) == 1
    engine.close()
    assert not Path("/sys/class/net", bridge).exists()
    assert find_leaks(engine.directory) == []


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


def test_testbed_debian_mirror_keeps_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices are refreshed while the upstream server responds; packages never change."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = ("debian/dists/trixie/InRelease", "debian/pool/main/a/a/a_1+1_amd64.deb")

    def write(text: str) -> None:
        for path in paths:
            (tmp_path / "upstream" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "upstream" / path).write_text(text)

    def fetch(mirror: DebianMirror, path: str) -> str:
        with urllib.request.urlopen(f"{mirror.url}/{path}", timeout=30) as response:  # noqa: S310 - our own server
            content: bytes = response.read()
        return content.decode()

    write("first")
    with DebianMirror((tmp_path / "upstream").as_uri()) as mirror:
        assert [fetch(mirror, path.replace("+", "%2b")) for path in paths] == ["first", "first"]
        write("second")
        assert [fetch(mirror, path.replace("+", "%2b")) for path in paths] == ["second", "first"]
        with pytest.raises(urllib.error.HTTPError, match=r"404|502"):
            fetch(mirror, "debian/../etc/passwd")
    with DebianMirror("http://127.0.0.1:1") as mirror:
        assert fetch(mirror, paths[0]) == "second"
