"""The workflows in .github/workflows, without running them: their syntax and expressions, and what they run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from bridge import __version__
from tests.documentation import ROOT
from tests.testbed.install import search_path
from tests.testbed.process import run

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_workflows_pass_actionlint(require: Callable[..., None]) -> None:
    require("actionlint")
    command = ["actionlint", "-shellcheck=", "-pyflakes=", *map(str, WORKFLOWS)]
    assert run(command, env={"PATH": search_path("actionlint")}, check=False).stdout == ""


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_actions_are_pinned_to_commits(path: Path) -> None:
    uses = re.findall(r"^ *(?:- )?uses: (.*)$", path.read_text(), re.MULTILINE)
    pinned = r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
    assert [each for each in uses if not re.fullmatch(pinned, each) and each != "./.github/workflows/ci.yml"] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_run_targets_and_arguments_exist(path: Path) -> None:
    text = path.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^ +(?:run: )?make ([a-z-]+)", text, re.MULTILINE)) <= targets
    arguments = set(re.findall(r"^ARG ([A-Z]+)", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE))
    steps = [step for job in yaml.safe_load(text)["jobs"].values() for step in job.get("steps", [])]
    passed = [line for step in steps for line in step.get("with", {}).get("build-args", "").splitlines()]
    assert {line.partition("=")[0] for line in passed} <= arguments
    assert bool(passed) == (path.name == "release.yml")


def test_changelog_has_notes_for_release_of_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "\n- " in changelog.partition(f"\n## [{__version__}]")[2].partition("\n## ")[0]
