"""Test the check for retired words."""

from __future__ import annotations

import pytest

from tests.terminology import Terminology

TABLE = """
skip = []
[retired]
"sink queue" = "lane, lanes"
"indefinitely" = "for ever"
[[allow]]
words = ["lane"]
files = ["docs/*"]
line = "bowling"
reason = "a bowling lane"
"""


@pytest.mark.parametrize(
    "line",
    [
        "The lane is empty.",
        "def _lane_of(sink):",
        "class SinkLane:",
        "LANES = 3",
        "It waits for ever; nothing ends it.",
    ],
)
def test_retired_word_is_found_in_text_and_identifiers(line: str) -> None:
    (error,) = Terminology(TABLE).errors("bridge/pump.py", f"fine\n{line}\n")
    assert error.startswith("bridge/pump.py:2: ")
    assert "write sink queue" in error or "write indefinitely" in error


def test_word_containing_retired_word_is_allowed() -> None:
    assert not list(Terminology(TABLE).errors("bridge/pump.py", "planet = airplanes"))


@pytest.mark.parametrize(
    ("path", "line", "error_count"),
    [
        ("docs/a.md", "a bowling lane", 0),
        ("docs/a.md", "a lane", 1),
        ("bridge/a.py", "a bowling lane", 1),
    ],
)
def test_terminology_exception_applies_to_listed_lines_only(path: str, line: str, error_count: int) -> None:
    assert len(list(Terminology(TABLE).errors(path, line))) == error_count


def test_terminology_exception_is_reported_when_unused() -> None:
    terminology = Terminology(TABLE)
    assert len(list(terminology.unused())) == 1
    list(terminology.errors("docs/a.md", "a bowling lane"))
    assert not list(terminology.unused())
