"""The image, built and run by a Docker engine: without privileges, shell, network or writable files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge import __version__
from tests.eventually import eventually
from tests.testbed.bridge_image import NAME
from tests.testbed.dockerd import Docker
from tests.testbed.process import CommandError

CONFINED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")


def test_image_runs_unprivileged_on_read_only_filesystem(docker_with_image: Docker) -> None:
    output = docker_with_image.docker("run", "--rm", "--network=none", *CONFINED, NAME, "version").stdout
    assert output == f"whalebridge {__version__}\n"
    script = "import os; print(os.getuid(), os.getgid(), *(os.access(path, os.W_OK) for path in ('/', '/opt', '/tmp')))"
    assert python(docker_with_image, script) == "65532 65532 False False False\n"


def test_image_declares_user_version_and_health_check(docker_with_image: Docker) -> None:
    (inspected,) = json.loads(docker_with_image.docker("image", "inspect", NAME).stdout)
    config = inspected["Config"]
    assert config["User"] == "65532:65532"
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    assert config["Healthcheck"]["Test"][0] == "CMD"  # no shell


def test_image_contains_no_build_or_test_tools(docker_with_image: Docker) -> None:
    script = "import importlib.metadata as m; print(*sorted(d.name.lower() for d in m.distributions()))"
    installed = set(python(docker_with_image, script).split())
    assert {"whalebridge", "aiokafka", "nats-py", "grpcio"} <= installed
    assert not {"pip", "hatchling", "pytest", "ruff", "mypy", "grpcio-tools"} & installed
    for program in ("/bin/sh", "/usr/bin/gcc"):
        with pytest.raises(CommandError, match="no such file"):
            docker_with_image.docker("run", "--rm", "--network=none", f"--entrypoint={program}", NAME)


@pytest.fixture
def running(docker_with_image: Docker) -> Iterator[str]:
    """Run the image with the socket of the engine's containerd, which its group may open; return the container."""
    socket = Path(docker_with_image.engine.address)
    socket.parent.chmod(0o711)  # as /run/containerd is
    options = ["--detach", "--network=host", "--group-add=0", *CONFINED, f"--volume={socket.parent}:/run/containerd"]
    command = ["run", "--containerd", f"/run/containerd/{socket.name}", "--namespace", "default"]
    container = docker_with_image.docker("run", *options, NAME, *command).stdout.strip()
    yield container
    docker_with_image.docker("rm", "--force", container)


def test_image_publishes_events_and_stops_in_time(docker_with_image: Docker, running: str) -> None:
    def published_events() -> list[tuple[str, str | None]]:
        lines = docker_with_image.docker("logs", running).stdout.splitlines()
        records = [json.loads(line) for line in lines if line.startswith('{"version"')]
        return [(record["type"], record["id"]) for record in records]

    eventually(lambda: ("snapshot_completed", None) in published_events(), "the first snapshot")
    docker_with_image.engine.run("imaged", "sleep", "60")
    eventually(lambda: ("started", "imaged") in published_events(), "the start")
    docker_with_image.docker("stop", "--time=20", running)
    assert json.loads(docker_with_image.docker("inspect", running).stdout)[0]["State"]["ExitCode"] == 0


def test_image_health_check_passes(docker_with_image: Docker, running: str) -> None:
    def health() -> str:
        inspected = json.loads(docker_with_image.docker("inspect", running).stdout)[0]
        return str(inspected["State"]["Health"]["Status"])

    eventually(lambda: health() == "healthy", "the health check to pass", within=90)


def python(docker: Docker, script: str) -> str:
    entry = "--entrypoint=/opt/whalebridge/bin/python"
    return docker.docker("run", "--rm", "--network=none", *CONFINED, entry, NAME, "-Ic", script).stdout
