"""The files of a release, and the commands of docs/install.md that install them below a temporary directory.

Commands that need a running systemd (`systemctl`, `systemd-run`) are skipped: the test machines have none.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.bridge_process import BridgeProcess
from tests.documentation import ROOT, shell_commands
from tests.eventually import eventually
from tests.integration.engines import one_engine
from tests.testbed.containerd import Containerd
from tests.testbed.process import run

pytestmark = pytest.mark.timeout(900)

MAKE_DIST = "make dist"
COMMIT_TIME = 1_795_636_099
REPOSITORY = "https://code.example.org/whalebridge"
INSTALL = (ROOT / "docs" / "install.md").read_text()


def make_dist(checkout: Path) -> Path:
    """Build the files of a release in a git repository with the files of this checkout; return their directory."""
    files = run(["git", "ls-files", "-z"], directory=ROOT).stdout
    for name in filter(None, files.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    environment = os.environ | {"GIT_COMMITTER_DATE": f"@{COMMIT_TIME} +0000", "EMAIL": "tests@example.org"}
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=all"]):
        run(["git", *arguments], directory=checkout, env=environment)
    (checkout / "bridge" / "untracked.py").touch()
    # With the installed test tools, instead of a download of them, and without the arguments of `make test`.
    command = [*shlex.split(MAKE_DIST), "--old-file=setup", f"BIN={Path(sys.executable).parent}"]
    command.append(f"ARGS=--repository {REPOSITORY}")
    run(command, directory=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, timeout=300)
    return checkout / "dist"


class Machine:
    """A directory with the paths of the document, and one with the files of a release in dist/."""

    def __init__(self, directory: Path, release: Path) -> None:
        self.root = directory / "root"
        self.downloads = directory / "downloads"
        for path in ("opt", "etc/systemd/system", "etc/bash_completion.d", "usr/local/bin", "var/lib", "bin"):
            (self.root / path).mkdir(parents=True)
        (self.root / "bin" / "python3").symlink_to(sys.executable)
        shutil.copytree(release, self.downloads / "dist")

    def run_section(self, title: str) -> None:
        """Run the commands in the `sh` blocks of a section."""
        for line in documented(title):
            self.run_line(line)

    def run_line(self, line: str) -> str:
        command = re.sub(r"(?<![\w./])/(opt|etc|usr/local|var)/", rf"{self.root}/\1/", line)
        path = f"{self.root}/bin:{self.root}/usr/local/bin:/usr/bin:/bin"
        environment = {**_pip_settings(), "PATH": path, "HOME": str(self.root)}
        return run(["sh", "-ec", command], directory=self.downloads, env=environment, timeout=600).stdout


def documented(title: str = "") -> list[str]:
    """Return the commands in the `sh` blocks of a section, or of all, except those that need a running systemd.

    `make dist` is missing, too: see `make_dist`.
    """
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", INSTALL, re.MULTILINE | re.DOTALL) if title else [INSTALL]
    excluded = (MAKE_DIST, "systemctl", "systemd-run")
    return [line for line in shell_commands(text, "sh") if not line.startswith(excluded)]


def _pip_settings() -> dict[str, str]:
    """Return the environment variables that configure pip."""
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "CERT" in name}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the files of a release."""
    return make_dist(tmp_path_factory.mktemp("release"))


def test_release_files_depend_only_on_commit(release: Path, tmp_path: Path) -> None:
    (source,) = release.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        assert {entry.mtime for entry in archive} == {COMMIT_TIME}
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert not (unpacked / "bridge" / "untracked.py").exists()
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(COMMIT_TIME)}
    run(
        [sys.executable, "deploy/dist.py", "--repository", REPOSITORY], directory=unpacked, env=environment, timeout=300
    )
    assert {path.name for path in release.iterdir()} == {path.name for path in (unpacked / "dist").iterdir()}
    # A source distribution that was built from an unpacked one has its metadata twice.
    differing = {
        path.name for path in release.iterdir() if path.read_bytes() != (unpacked / "dist" / path.name).read_bytes()
    }
    assert differing == {source.name, "SHA256SUMS"}
    (chart,) = release.glob("whalebridge-*.tgz")
    with tarfile.open(chart) as archive:
        metadata = archive.extractfile("whalebridge/Chart.yaml")
        assert metadata is not None
        assert yaml.safe_load(metadata)["sources"] == [REPOSITORY]
    assert "sources" not in yaml.safe_load((unpacked / "deploy/helm/whalebridge/Chart.yaml").read_text())


def published(events: Path) -> list[tuple[str, str]]:
    """Return type and id of the records in a file."""
    lines = events.read_bytes().split(b"\n")[:-1]
    return [(record["type"], record["id"]) for record in map(json.loads, lines)]


@one_engine
def test_documented_install_upgrade_and_removal_work(release: Path, engine: Containerd, tmp_path: Path) -> None:
    machine = Machine(tmp_path, release)
    machine.run_section("Install")
    machine.run_section("As a systemd service")
    assert "complete " in (machine.root / "etc/bash_completion.d/whalebridge").read_text()
    assert (machine.root / "etc/systemd/system/whalebridge.service").exists()
    assert (machine.root / "opt/whalebridge/share/docs/proxy.md").exists()  # named in a unit
    machine.run_line("/opt/whalebridge/bin/pip check")
    assert f"ok        {engine.address}: " in machine.run_line(f"whalebridge doctor --containerd {engine.address}")
    assert "ok        state_dir: " in machine.run_line(
        f"whalebridge check --containerd {engine.address} --state-dir /var/lib/w"
    )
    machine.run_section("Upgrade")
    events = tmp_path / "events.jsonl"
    state = machine.root / "var/lib/whalebridge"
    bridge = BridgeProcess(engine.address, tmp_path, sinks=[f"file:{events}"], state_dir=state)
    bridge.command = [str(machine.root / "usr/local/bin/whalebridge"), *bridge.command[3:]]
    container = f"installed-{secrets.token_hex(4)}"
    with bridge:
        bridge.wait_logged("synced")
        engine.run(container, "true")
        eventually(lambda: ("exited", container) in published(events), "the container's exit", within=60)
    machine.run_section("Remove")
    assert not (machine.root / "opt/whalebridge").exists()
    assert not list((machine.root / "usr/local/bin").iterdir())
    remaining = {path.name for path in (machine.root / "var/lib/whalebridge").iterdir()}
    assert remaining >= {"outbox.db", "whalebridge.lock"}
