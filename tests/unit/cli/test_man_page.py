"""The man page, compared with the help of the commands."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from bridge.cli import execute
from tests.documentation import ROOT


def test_man_page_has_all_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    script = [sys.executable, str(ROOT / "deploy" / "man_page.py")]
    process = subprocess.run(
        script, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    page = process.stdout.replace("\\-", "-")
    commands = re.findall(r'^\.SS "whalebridge (.*)"$', page, re.MULTILINE)
    execute(["--help"])
    listed = capsys.readouterr().out.partition("\nCommands:\n")[2]
    assert {each.split()[0] for each in commands} == set(re.findall(r"^  ([a-z]+) ", listed, re.MULTILINE))
    for command in commands:
        assert execute([*command.split(), "--help"]) == 0
        output = capsys.readouterr().out
        section = page.partition(f'.SS "whalebridge {command}"')[2].partition("\n.S")[0]
        options = set(re.findall(r"^  (--[a-z-]+)", output, re.MULTILINE)) - {"--help"}
        assert set(re.findall(r"^\\fB(--[a-z-]+)\\fR", section, re.MULTILINE)) == options, command
