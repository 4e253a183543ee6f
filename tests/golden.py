"""Golden files: the exact text of messages, kept in tests/golden and nowhere else.

`pytest --update-golden` rewrites them. A file holds one whole text, or entries `## case` of a table of messages.
"""

from __future__ import annotations

import difflib
import fcntl
import re
from pathlib import Path
from typing import Final

DIRECTORY: Final = Path(__file__).parent / "golden"

_HEADING: Final = re.compile(r"^## (.*)\n", re.MULTILINE)


class Golden:
    """Compares texts with golden files, or writes the files."""

    def __init__(self, update: bool, directory: Path = DIRECTORY) -> None:
        self._update = update
        self._directory = directory

    def __call__(self, name: str, text: str) -> None:
        """Compare the text with the whole file `<name>.txt`; the caller normalizes paths, pids, ports and times."""
        path = self._path(name)
        text = _ended(text)
        if self._update:
            path.write_text(text)
            return
        _compare(path.read_text() if path.exists() else "", text, name)

    def entry(self, name: str, case: str, text: str) -> None:
        """Compare the text with the entry `## case` of `<name>.txt`; an update keeps the file's other entries."""
        path = self._path(name)
        text = _ended(text)
        assert not _HEADING.search(text), "a heading of golden files inside of a text"
        if self._update:
            with open(path, "a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # tests of other xdist workers write other entries
                file.seek(0)
                entries = _entries(file.read()) | {case: text}
                file.truncate(0)
                file.write("\n".join(f"## {each}\n{entries[each]}" for each in sorted(entries)))
            return
        _compare(_entries(path.read_text() if path.exists() else "").get(case, ""), text, f"{name}, {case}")

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.txt"


def _ended(text: str) -> str:
    return text.rstrip("\n") + "\n"


def _entries(text: str) -> dict[str, str]:
    """Return the entries of a file by their case."""
    parts = _HEADING.split(text)[1:]
    return {case: _ended(body) for case, body in zip(parts[::2], parts[1::2], strict=True)}


def _compare(expected: str, text: str, name: str) -> None:
    if expected == text:
        return
    diff = difflib.unified_diff(expected.splitlines(), text.splitlines(), "golden file", "now", lineterm="")
    msg = f"the golden text of {name} differs; if the new text is right, run pytest --update-golden\n"
    raise AssertionError(msg + "\n".join(diff))
