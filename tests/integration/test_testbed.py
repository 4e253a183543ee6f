"""The testbed's containerd: versions, containers, failures and cleanup."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.eventually import eventually
from tests.integration.leaks import find_leaks
from tests.testbed import flood
from tests.testbed.containerd import Containerd, busybox_path
from tests.testbed.dockerd import Docker
from tests.testbed.image import LABELS, NAME, oci_archive
from tests.testbed.process import CommandError
from tests.testbed.sandbox import LINKS_FILE

ContainerdFactory = Callable[[], Containerd]

NERDCTL_RUN = ("run", "--detach", "--pull=never", "--net=host")


def unique_id(prefix: str) -> str:
    """Return an id that is unique on the machine: runc names cgroups NAMESPACE/ID for all containerds."""
    return f"{prefix}-{os.getpid()}"


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").exists() and bool(Path(f"/proc/{pid}/cmdline").read_bytes())


def test_testbed_containerd_has_requested_version(engine: Containerd) -> None:
    client, server = engine.ctr("version").stdout.split("Server:")
    assert f"Version:  {engine.version}." in client
    assert f"Version:  {engine.version}." in server


def test_testbed_image_is_reproducible(engine: Containerd) -> None:
    assert oci_archive(busybox_path()) == (engine.directory / "busybox.tar").read_bytes()


def test_testbed_container_runs_pauses_and_exits(engine: Containerd) -> None:
    id_ = unique_id("lifecycle")
    engine.run(id_, "sleep", "86400", labels={"color": "blue"})
    assert engine.tasks()[id_] == "RUNNING"
    assert len(engine.shim_pids("default", id_)) == 1
    info = engine.ctr("containers", "info", id_).stdout
    assert '"color": "blue"' in info
    assert all(value in info for value in LABELS.values())
    assert engine.ctr("tasks", "exec", "--exec-id", "one", id_, "echo", "hello").stdout == "hello\n"
    with pytest.raises(CommandError, match="exit status 3"):
        engine.ctr("tasks", "exec", "--exec-id", "two", id_, "sh", "-c", "exit 3")
    engine.ctr("tasks", "pause", id_)
    assert engine.tasks()[id_] == "PAUSED"
    engine.ctr("tasks", "resume", id_)
    engine.ctr("tasks", "kill", "--signal", "KILL", id_)
    eventually(lambda: engine.tasks()[id_] == "STOPPED", "the container to stop")
    engine.ctr("tasks", "delete", id_, check=False)  # exits with the status of the container
    engine.ctr("containers", "delete", id_)
    assert id_ not in engine.tasks()


def test_testbed_namespace_may_contain_dot(engine: Containerd) -> None:
    engine.import_image("a.b")
    dotted = unique_id("dotted")
    engine.run(dotted, "sleep", "86400", namespace="a.b")
    assert engine.tasks("a.b") == {dotted: "RUNNING"}


def test_testbed_nerdctl_manages_containers_and_compose_project(engine: Containerd, tmp_path: Path) -> None:
    engine.nerdctl(*NERDCTL_RUN, "--name=web", "busybox:latest", "sleep", "86400")
    engine.nerdctl("rename", "web", "front")
    engine.nerdctl("pause", "front")
    assert "PAUSED" in engine.tasks().values()
    engine.nerdctl("unpause", "front")
    engine.nerdctl("rm", "--force", "front")
    short = engine.nerdctl("run", "--rm", "--pull=never", "--net=host", "busybox:latest", "echo", "hello")
    assert short.stdout == "hello\n"
    service = f"{{image: {NAME}, command: sleep 1000, network_mode: host, pull_policy: never}}"
    compose = tmp_path / "compose.yaml"
    compose.write_text(f"name: shop\nservices:\n  web: {service}\n  db: {service}\n")
    engine.nerdctl("compose", "--file", str(compose), "up", "--detach")
    names = engine.nerdctl("ps", "--format", "{{.Names}}").stdout.split()
    assert {"shop-web-1", "shop-db-1"} <= set(names)
    engine.nerdctl("compose", "--file", str(compose), "kill")
    engine.nerdctl("compose", "--file", str(compose), "down")


def test_testbed_docker_containers_are_in_namespace_moby(engine: Containerd, docker: Docker) -> None:
    container = docker.docker("run", "--detach", "--network=host", "busybox:latest", "sleep", "86400").stdout.strip()
    assert engine.tasks("moby")[container] == "RUNNING"
    docker.stop()
    assert container not in engine.tasks("moby")


def test_testbed_flood_passes_containerd_in_order(engine: Containerd, require: Callable[..., None]) -> None:
    require(*flood.COMPONENTS)
    reader = engine.popen(engine.ctr_command("events"))
    try:
        assert reader.stdout is not None
        while not select.select([reader.stdout], [], [], 0.2)[
            0
        ]:  # wait for the subscription, which nothing else reports
            engine.ctr("namespaces", "label", "default", "flooded=soon")
        report = flood.flood(engine, events=80, containers=10, rate=400, prefix="ordered-")
        seen = [next(line for line in reader.stdout if " flooded /tasks/" in line).split() for _ in range(80)]
    finally:
        reader.kill()
        reader.communicate()
    assert (report.events, report.containers) == (80, 10)
    assert report.seconds > 0.1  # the rate is limited
    topics = ["/tasks/start", "/tasks/paused", "/tasks/resumed", "/tasks/exit"] * 2
    assert [line[5] for line in seen if '"ordered-7"' in line[6]] == topics
    names = engine.ctr("containers", "ls", "--quiet", namespace="flooded").stdout.split()
    flooded = sorted(name for name in names if name.startswith("ordered-"))  # other tests flood this engine as well
    assert flooded == [f"ordered-{number}" for number in range(10)]


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


@pytest.mark.parametrize("stop", [Containerd.kill, Containerd.stop])
def test_testbed_containers_survive_containerd_stop(
    engine_factory: ContainerdFactory, stop: Callable[[Containerd], None]
) -> None:
    engine = engine_factory()
    survivor = unique_id("survivor")
    engine.run(survivor, "sleep", "86400")
    shims = engine.shim_pids()
    first = engine.pid
    stop(engine)
    assert not is_running(first)
    assert engine.shim_pids() == shims
    engine.start()
    assert engine.pid != first
    assert engine.tasks() == {survivor: "RUNNING"}


def test_testbed_containerd_is_unresponsive_while_suspended(engine_factory: ContainerdFactory) -> None:
    engine = engine_factory()
    engine.suspend()
    with pytest.raises(subprocess.TimeoutExpired):
        engine.ctr("version", timeout=1)
    engine.resume()
    engine.wait_ready()


def test_testbed_containerd_instances_are_isolated(engine_factory: ContainerdFactory) -> None:
    first, second = engine_factory(), engine_factory()
    id_ = unique_id("isolated")
    first.run(id_, "sleep", "86400")
    assert first.tasks() == {id_: "RUNNING"}
    assert second.tasks() == {}
    assert second.shim_pids() == []


def test_testbed_containerd_leaves_nothing_behind(engine_factory: ContainerdFactory) -> None:
    engine = engine_factory()
    names = [unique_id(f"left-{how}") for how in ("running", "paused", "without-shim", "with-stopped-shim")]
    for name in names:
        engine.run(name, "sleep", "86400")
    engine.ctr("tasks", "pause", names[1])
    os.kill(engine.shim_pids("default", names[2])[0], signal.SIGKILL)
    os.kill(engine.shim_pids("default", names[3])[0], signal.SIGSTOP)
    engine.nerdctl(*NERDCTL_RUN, "busybox:latest", "sleep", "86400")
    assert find_leaks(engine.directory, unique_id("left-*"))
    engine.close()
    assert find_leaks(engine.directory, unique_id("left-*")) == []


def test_testbed_containerd_is_cleaned_up_when_tests_are_killed(engine: Containerd) -> None:
    orphan = unique_id("orphan")
    program = f"""
from tests.testbed import flood
from tests.testbed.containerd import Containerd
engine = Containerd("{engine.version}")
engine.start()
engine.import_image()
engine.run("{orphan}", "sleep", "86400")
print(engine.directory, flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tests:
        assert tests.stdout is not None
        directory = Path(tests.stdout.readline().decode().strip())
        assert find_leaks(directory, orphan)
        tests.kill()
    eventually(lambda: not find_leaks(directory, orphan), "the sandbox to clean up", within=120)
