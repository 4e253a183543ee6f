"""The commands of docs/install.md, run on a copy of the checkout with a temporary directory as the root.

Commands that need a running systemd (`systemctl`, `systemd-run`) are skipped: the test machines have none.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.bridge_process import BridgeProcess
from tests.documentation import ROOT, shell_commands
from tests.integration.engines import one_engine
from tests.testbed.containerd import Containerd
from tests.testbed.process import run

pytestmark = pytest.mark.timeout(900)

INSTALL = (ROOT / "docs" / "install.md").read_text()


class InstallSandbox:
    """A directory with the paths of the document, and a copy of the checkout."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.checkout = directory / "checkout"
        for path in ("opt", "etc/systemd/system", "etc/bash_completion.d", "usr/local/bin", "var/lib", "bin"):
            (self.root / path).mkdir(parents=True)
        files = run(["git", "ls-files", "-z"], directory=ROOT).stdout
        for name in filter(None, files.split("\0")):
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.checkout / name)
        (self.root / "bin" / "python3").symlink_to(sys.executable)

    def run_section(self, title: str) -> None:
        """Run the commands in the `sh` blocks of a section."""
        for line in documented(title):
            self.run_line(line)

    def run_line(self, line: str) -> str:
        command = re.sub(r"(?<![\w./])/(opt|etc|usr/local|var)/", rf"{self.root}/\1/", line)
        path = f"{self.root}/bin:{self.root}/usr/local/bin:/usr/bin:/bin"
        environment = {**_pip_settings(), "PATH": path, "HOME": str(self.root)}
        return run(["sh", "-ec", command], directory=self.checkout, env=environment, timeout=600).stdout


def documented(title: str = "") -> list[str]:
    """Return the commands in the `sh` blocks of a section, or of all, except those that need a running systemd."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", INSTALL, re.MULTILINE | re.DOTALL) if title else [INSTALL]
    return [line for line in shell_commands(text, "sh") if not line.startswith(("systemctl", "systemd-run"))]


def _pip_settings() -> dict[str, str]:
    """Return the environment variables that configure pip."""
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "CERT" in name}


@one_engine
def test_documented_install_upgrade_and_removal_work(engine: Containerd, tmp_path: Path) -> None:
    machine = InstallSandbox(tmp_path)
    machine.run_section("Install")
    machine.run_section("As a systemd service")
    program = machine.root / "opt/whalebridge/bin/whalebridge"
    assert "complete " in (machine.root / "etc/bash_completion.d/whalebridge").read_text()
    assert (machine.root / "etc/systemd/system/whalebridge.service").exists()
    assert f"ok        {engine.address}: " in machine.run_line(f"whalebridge doctor --containerd {engine.address}")
    assert "ok        state_dir: " in machine.run_line(
        f"whalebridge check --containerd {engine.address} --state-dir /var/lib/w"
    )
    machine.run_section("Upgrade")
    bridge = BridgeProcess(engine.address, tmp_path, state_dir=machine.root / "var/lib/whalebridge")
    bridge.command = [str(program), *bridge.command[3:]]
    with bridge:
        bridge.wait_synced()
    machine.run_section("Remove")
    assert not (machine.root / "opt/whalebridge").exists()
    assert not list((machine.root / "usr/local/bin").iterdir())
    remaining = {path.name for path in (machine.root / "var/lib/whalebridge").iterdir()}
    assert remaining >= {"outbox.db", "whalebridge.lock"}
