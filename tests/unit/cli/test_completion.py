"""Test completion in a real bash with the Tab key."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Provide a directory with the program in bin/ and the completion script for bash."""
    program = tmp_path / "bin" / "whalebridge"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m bridge "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"_WHALEBRIDGE_COMPLETE": "source_bash"}
    process = subprocess.run([program], env=environment, capture_output=True, check=True)
    (tmp_path / "script").write_bytes(process.stdout)
    return tmp_path


class Bash:
    """An interactive bash in a terminal."""

    def __init__(self, home: Path) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            environment = {"PATH": f"{home}/bin:/usr/bin:/bin", "TERM": "dumb", "PS1": "", "HOME": str(home)}
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], environment)  # noqa: S606

    def type_(self, text: str, until: str) -> str:
        """Type text, and read output until `until` appears."""
        os.write(self.terminal, text.encode())
        output, deadline = "", time.monotonic() + 60
        while until not in output:
            assert time.monotonic() < deadline, output
            if select.select([self.terminal], [], [], 0.1)[0]:
                output += os.read(self.terminal, 4096).decode()
        return output

    def close(self) -> None:
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_and_options(home: Path) -> None:
    bash = Bash(home)
    try:
        bash.type_(f"PS1=; source {home}/script; echo sour''ced\n", "sourced")
        bash.type_("whalebridge insp\t", "inspect ")
        bash.type_("\x15whalebridge run --state\t", "--state-dir ")
        assert "doctor" in bash.type_("\x15whalebridge \t\t", "version")
    finally:
        bash.close()
