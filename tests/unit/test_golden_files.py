"""Test the helper for golden files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import Golden


def test_golden_stores_complete_text(tmp_path: Path) -> None:
    Golden(update=True, directory=tmp_path)("a", "one\ntwo")
    Golden(update=False, directory=tmp_path)("a", "one\ntwo\n")


def test_golden_failure_shows_diff_and_option(tmp_path: Path) -> None:
    Golden(update=True, directory=tmp_path)("a", "one\ntwo\n")
    for name in ("a", "missing"):
        with pytest.raises(AssertionError) as caught:
            Golden(update=False, directory=tmp_path)(name, "one\nthree\n")
        assert "--update-golden" in str(caught.value)
        assert "\n+three" in str(caught.value)


def test_golden_update_keeps_other_entries(tmp_path: Path) -> None:
    writer = Golden(update=True, directory=tmp_path)
    for case, text in (("second", "2"), ("first", "1"), ("second", "two\n\nlines")):
        writer.entry("table", case, text)
    assert (tmp_path / "table.txt").read_text() == "## first\n1\n\n## second\ntwo\n\nlines\n"
    reader = Golden(update=False, directory=tmp_path)
    reader.entry("table", "first", "1")
    reader.entry("table", "second", "two\n\nlines")
    with pytest.raises(AssertionError):
        reader.entry("table", "third", "3")
