from __future__ import annotations

import json

import pytest

from bridge.cli import check, run
from bridge.cli.findings import Finding, tell
from bridge.core.errors import FatalError, NotFoundError, StateError, TransientError, UnreachableError

FINDINGS = [
    Finding("ok", "settings", "fine"),
    Finding("warning", "a\x1b[2J", "odd\nly", "mend it"),
    Finding("error", "main", "gone", status=3),
]


def test_a_line_each_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell(FINDINGS, as_json=False)
    assert capsys.readouterr().out == (
        "ok        settings: fine\nwarning   a\\x1b[2J: odd\\nly; mend it\nerror     main: gone\n"
    )


def test_colours_on_a_terminal() -> None:
    line = FINDINGS[2].line(colors=True)
    assert line.startswith("\x1b[31merror")
    assert line.endswith("main: gone")


def test_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    tell(FINDINGS, as_json=True, usable=[])
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
def test_what_errors_mean(error: FatalError | TransientError, status: int) -> None:
    assert Finding.of("x", error) == Finding("error", "x", "x", status=status)


def test_check_takes_the_options_of_run() -> None:
    assert set(check.check.__annotations__) - {"as_json"} == set(run.run.__annotations__)
