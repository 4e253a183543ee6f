"""The image, built and run by a Docker engine: without privileges, shell, network or writable files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge import __version__
from tests.documentation import ROOT
from tests.eventually import eventually
from tests.testbed.bridge_image import CREATED, NAME, SOURCE
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
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert (labels["version"], labels["created"], labels["source"]) == (__version__, CREATED, SOURCE)
    assert set(labels) == {
        *("title", "description", "licenses", "vendor", "version", "revision", "created"),
        *("source", "url", "documentation"),
    }
    assert config["Healthcheck"]["Test"][0] == "CMD"  # no shell


def test_image_is_small(docker_with_image: Docker) -> None:
    (inspected,) = json.loads(docker_with_image.docker("image", "inspect", NAME).stdout)
    size = inspected["Size"] / 1024**2
    started_at = time.monotonic()
    docker_with_image.docker("run", "--rm", "--network=none", *CONFINED, NAME, "version")
    print(f"{size:.0f} MiB; {time.monotonic() - started_at:.1f} s for `version`")
    assert size < 200


def test_image_contains_no_build_or_test_tools(docker_with_image: Docker) -> None:
    script = "import importlib.metadata as m; print(*sorted(d.name.lower() for d in m.distributions()))"
    installed = set(python(docker_with_image, script).split())
    assert {"whalebridge", "aiokafka", "nats-py", "grpcio"} <= installed
    assert not {"pip", "hatchling", "pytest", "ruff", "mypy", "grpcio-tools"} & installed
    with pytest.raises(CommandError, match="no such file"):
        docker_with_image.docker("run", "--rm", "--network=none", "--entrypoint=/bin/sh", NAME)
    script = "import glob; print(*glob.glob('/usr/bin/*') + glob.glob('/usr/sbin/*') + glob.glob('/usr/local/*/*'))"
    assert python(docker_with_image, script).split() == ["/usr/bin/python3.13"]


def test_image_has_libraries_of_all_extension_modules(docker_with_image: Docker) -> None:
    script = """if True:
        import ctypes, pathlib
        for file in [*pathlib.Path("/usr/lib/python3.13").rglob("*.so"), *pathlib.Path("/opt").rglob("*.so")]:
            try:
                ctypes.CDLL(str(file))
            except OSError:
                print(file.name.partition(".")[0])
        print("checked")
    """
    # Modules for terminals and databases, which nothing imports.
    assert sorted(python(docker_with_image, script).split()) == sorted(
        ["_curses", "_curses_panel", "_dbm", "checked", "readline"]
    )


def test_image_trusts_public_certificate_authorities(docker_with_image: Docker) -> None:
    script = "import ssl; print(ssl.create_default_context().cert_store_stats()['x509_ca'])"
    assert int(python(docker_with_image, script)) > 100


def test_image_resolves_names_of_hosts_file(docker_with_image: Docker) -> None:
    script = "import socket; print(socket.gethostbyname('broker'))"
    options = ["--rm", "--network=none", "--add-host=broker:192.0.2.1", "--entrypoint=python3.13"]
    assert docker_with_image.docker("run", *options, NAME, "-Ic", script).stdout == "192.0.2.1\n"


def test_image_modules_are_compiled(docker_with_image: Docker) -> None:
    script = (
        "import json, os, bridge.app; print(os.path.exists(json.__cached__), os.path.exists(bridge.app.__cached__))"
    )
    assert python(docker_with_image, script) == "True True\n"


def test_image_sbom_lists_debian_packages(docker_with_image: Docker, tmp_path: Path) -> None:
    (recipe,) = re.findall(r"-ISc \"(.*?)\" \\\n", (ROOT / "Makefile").read_text(), re.DOTALL)
    packages = python(docker_with_image, recipe.replace("\\\n", ""))
    document = tmp_path / "sbom.json"
    document.write_text(json.dumps({"components": []}))
    script = [sys.executable, str(ROOT / "deploy" / "sbom.py"), str(document)]
    subprocess.run(script, input=packages, text=True, check=True)
    components = {each["name"]: each for each in json.loads(document.read_text())["components"]}
    assert {"base-files", "ca-certificates", "libc6", "libssl3t64", "python3.13-minimal"} <= set(components)
    assert re.fullmatch(
        r"pkg:deb/debian/libssl3t64@3\..+\?arch=amd64&distro=debian-13", components["libssl3t64"]["purl"]
    )
    subprocess.run([*script[:2], str(document)], input=packages, text=True, check=True)
    assert len(json.loads(document.read_text())["components"]) == len(components)


@pytest.fixture
def running(docker_with_image: Docker) -> Iterator[str]:
    """Run the image with the socket of the engine's containerd, which its group may open; return the container."""
    socket = Path(docker_with_image.engine.address)
    socket.parent.chmod(0o711)  # as /run/containerd is
    options = ["--detach", "--network=none", "--group-add=0", *CONFINED, f"--volume={socket.parent}:/run/containerd"]
    options.append("--health-interval=1s")  # instead of 30 s
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
