"""The workflows in .github/workflows, without running them: their syntax and expressions, and what they run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def release_steps() -> dict[str, Any]:
    (path,) = [each for each in WORKFLOWS if each.name == "release.yml"]
    steps = yaml.safe_load(path.read_text())["jobs"]["release"]["steps"]
    return {step["name"]: step for step in steps if "name" in step}


def test_release_passes_known_options_to_make_dist() -> None:
    command = release_steps()["Build the files of the release"]["run"]
    options = re.findall(r"--[a-z]+", command)
    assert options == ["--repository", "--image", "--helm"]
    program = (ROOT / "deploy" / "dist.py").read_text()
    assert [option for option in options if f'add_argument("{option}"' not in program] == []


@pytest.mark.parametrize(("tag", "status"), [(f"v{__version__}", 0), ("v99.0.0", 1), (__version__, 1)])
def test_release_checks_tag_and_reads_changelog(tag: str, status: int, tmp_path: Path) -> None:
    script = release_steps()["Check the version and the changelog"]["run"]
    environment = {
        "PATH": os.environ["PATH"],
        "GITHUB_REF_NAME": tag,
        "GITHUB_REPOSITORY": "Whales/Bridge",
        "GITHUB_REPOSITORY_OWNER": "Whales",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "RUNNER_TEMP": str(tmp_path),
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]  # as the runner does
    assert run(command, directory=ROOT, env=environment, check=False).returncode == status
    if status == 0:
        output = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
        assert output.pop("created")
        assert output == {
            "version": __version__, "image": "ghcr.io/whales/bridge", "charts": "ghcr.io/whales/charts"
        }  # fmt: skip
        notes = (tmp_path / "notes.md").read_text()
        assert "\n- " in notes
        assert "## [" not in notes


def test_changelog_has_notes_for_release_of_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "\n- " in changelog.partition(f"\n## [{__version__}]")[2].partition("\n## ")[0]
