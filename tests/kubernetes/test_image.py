"""The image, built and run by a Docker engine: without rights, shell, network or a place to write to."""

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


def test_it_runs_as_nobody_with_a_file_system_that_is_read_only(image_docker: Docker) -> None:
    said = image_docker.docker("run", "--rm", "--network=none", *CONFINED, NAME, "version").stdout
    assert said == f"whalebridge {__version__}\n"
    script = "import os; print(os.getuid(), os.getgid(), *(os.access(path, os.W_OK) for path in ('/', '/opt', '/tmp')))"
    assert python(image_docker, script) == "65532 65532 False False False\n"


def test_it_says_what_it_is(image_docker: Docker) -> None:
    (document,) = json.loads(image_docker.docker("image", "inspect", NAME).stdout)
    config = document["Config"]
    assert config["User"] == "65532:65532"
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    assert config["Healthcheck"]["Test"][0] == "CMD"  # no shell


def test_it_has_what_runs_and_nothing_that_builds_or_tests(image_docker: Docker) -> None:
    script = "import importlib.metadata as m; print(*sorted(d.name.lower() for d in m.distributions()))"
    there = set(python(image_docker, script).split())
    assert {"whalebridge", "aiokafka", "nats-py", "grpcio"} <= there
    assert not {"pip", "hatchling", "pytest", "ruff", "mypy", "grpcio-tools"} & there
    for program in ("/bin/sh", "/usr/bin/gcc"):
        with pytest.raises(CommandError, match="no such file"):
            image_docker.docker("run", "--rm", "--network=none", f"--entrypoint={program}", NAME)


@pytest.fixture
def running(image_docker: Docker) -> Iterator[str]:
    """The image as it watches the engine's own containerd, whose socket its group may open."""
    socket = Path(image_docker.engine.address)
    socket.parent.chmod(0o711)  # as /run/containerd is
    options = ["--detach", "--network=host", "--group-add=0", *CONFINED, f"--volume={socket.parent}:/run/containerd"]
    command = ["run", "--containerd", f"/run/containerd/{socket.name}", "--namespace", "default"]
    container = image_docker.docker("run", *options, NAME, *command).stdout.strip()
    yield container
    image_docker.docker("rm", "--force", container)


def test_it_tells_of_containers_and_ends_in_time(image_docker: Docker, running: str) -> None:
    def told() -> list[tuple[str, str | None]]:
        lines = image_docker.docker("logs", running).stdout.splitlines()
        documents = [json.loads(line) for line in lines if line.startswith('{"version"')]
        return [(document["type"], document["id"]) for document in documents]

    eventually(lambda: ("snapshot_completed", None) in told(), "the first snapshot")
    image_docker.engine.run("imaged", "sleep", "60")
    eventually(lambda: ("started", "imaged") in told(), "the start to be told")
    image_docker.docker("stop", "--time=20", running)
    assert json.loads(image_docker.docker("inspect", running).stdout)[0]["State"]["ExitCode"] == 0


def test_it_is_healthy(image_docker: Docker, running: str) -> None:
    def health() -> str:
        document = json.loads(image_docker.docker("inspect", running).stdout)[0]
        return str(document["State"]["Health"]["Status"])

    eventually(lambda: health() == "healthy", "the health check to pass", within=90)


def python(docker: Docker, script: str) -> str:
    entry = "--entrypoint=/opt/whalebridge/bin/python"
    return docker.docker("run", "--rm", "--network=none", *CONFINED, entry, NAME, "-Ic", script).stdout
