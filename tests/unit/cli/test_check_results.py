from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.cli import execute
from bridge.cli.check_results import CheckResult, print_results
from bridge.cli.commands import check, run
from bridge.core.errors import FatalError, NotFoundError, StateError, TransientError, UnreachableError

RESULTS = [
    CheckResult("ok", "settings", "fine"),
    CheckResult("warning", "a\x1b[2J", "odd\nly", "fix it"),
    CheckResult("error", "main", "gone", exit_status=3),
]


def test_check_results_are_printed_one_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(RESULTS, as_json=False)
    assert capsys.readouterr().out == (
        "ok        settings: fine\nwarning   a\\x1b[2J: odd\\nly; fix it\nerror     main: gone\n"
    )


def test_check_results_are_colored_on_terminal() -> None:
    line = RESULTS[2].to_line(colors=True)
    assert line.startswith("\x1b[31merror")
    assert line.endswith("main: gone")


def test_check_results_are_printed_as_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(RESULTS, as_json=True, usable=[])
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["usable", "results"]
    assert document["results"][0] == {"status": "ok", "check": "settings", "message": "fine", "hint": None}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TransientError("x"), 3),
        (UnreachableError("x"), 3),
        (FatalError("x"), 1),
        (StateError("x"), 1),
        (NotFoundError("x"), 1),
    ],
)
def test_check_result_status_depends_on_error(error: FatalError | TransientError, status: int) -> None:
    assert CheckResult.from_error("x", error) == CheckResult("error", "x", "x", exit_status=status)


def test_check_of_settings_only_connects_to_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = tmp_path / "state"
    options = ["--containerd", "/nonexistent/c.sock", "--sink", "kafka://127.0.0.1:1/t", "--state-dir", str(state)]
    assert execute(["check", "--settings-only", *options]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("ok        settings: ")
    assert not state.exists()


def test_check_takes_same_options_as_run() -> None:
    assert set(check.check.__annotations__) - {"as_json", "settings_only"} == set(run.run.__annotations__)
