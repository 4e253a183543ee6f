"""Completion, asked for by a real bash with a real Tab."""

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
    """A folder with the program in bin/, and the script for bash."""
    program = tmp_path / "bin" / "whalebridge"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m bridge "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"_WHALEBRIDGE_COMPLETE": "source_bash"}
    done = subprocess.run([program], env=environment, capture_output=True, check=True)
    (tmp_path / "script").write_bytes(done.stdout)
    return tmp_path


class Bash:
    """A bash at a terminal."""

    def __init__(self, home: Path) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            environment = {"PATH": f"{home}/bin:/usr/bin:/bin", "TERM": "dumb", "PS1": "", "HOME": str(home)}
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], environment)  # noqa: S606

    def type_(self, text: str, until: str) -> str:
        """Type, and read on until `until` is there."""
        os.write(self.terminal, text.encode())
        seen, deadline = "", time.monotonic() + 20
        while until not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([self.terminal], [], [], 0.1)[0]:
                seen += os.read(self.terminal, 4096).decode()
        return seen

    def close(self) -> None:
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_options(home: Path) -> None:
    bash = Bash(home)
    try:
        bash.type_(f"PS1=; source {home}/script; echo sour''ced\n", "sourced")
        bash.type_("whalebridge insp\t", "inspect ")
        bash.type_("\x15whalebridge run --state\t", "--state-dir ")
        assert "doctor" in bash.type_("\x15whalebridge \t\t", "version")
    finally:
        bash.close()
