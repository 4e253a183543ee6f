"""Golden files: the exact texts of messages, stored only in tests/golden.

`pytest --update-golden` rewrites them. A file contains one text, or entries `## case` of a table of messages. To remove
entries of deleted tests, delete the file first.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

import pytest

from tests.naming import raises_naming

DIRECTORY: Final = Path(__file__).parent / "golden"

_E = TypeVar("_E", bound=BaseException)
_HEADING: Final = re.compile(r"^## (.*)\n", re.MULTILINE)


class Golden:
    """Compare texts with golden files, or write the files; in an entry, TMP stands for the test's directory."""

    def __init__(self, update: bool, directory: Path = DIRECTORY, tmp_path: Path | None = None) -> None:
        self._update = update
        self._directory = directory
        self._hidden = {} if tmp_path is None else {"TMP": tmp_path}

    def __call__(self, name: str, text: str) -> None:
        """Compare the text with the file `<name>.txt`; the caller normalizes paths, pids, ports and times."""
        path = self._path(name)
        text = _with_newline(text)
        if self._update:
            path.write_text(text)
            return
        _compare(path.read_text() if path.exists() else "", text, name)

    def entry(self, name: str, case: str, text: str, **hidden: object) -> None:
        """Compare the text with the entry `## case` of `<name>.txt`; an update keeps the file's other entries.

        Each name in `hidden` replaces its value, or the matches of its pattern: `PID=os.getpid()`.
        """
        path = self._path(name)
        for placeholder, value in (hidden | self._hidden).items():
            pattern = value if isinstance(value, re.Pattern) else re.escape(str(value))
            text = re.sub(pattern, placeholder, text)
        text = _with_newline(text)
        assert not _HEADING.search(text), "the text contains a heading of golden files"
        if self._update:
            with open(path, "a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # other xdist workers write other entries
                file.seek(0)
                entries = _entries(file.read()) | {case: text}
                file.truncate(0)
                file.write("\n".join(f"## {each}\n{entries[each]}" for each in sorted(entries)))
            return
        _compare(_entries(path.read_text() if path.exists() else "").get(case, ""), text, f"{name}, {case}")

    @contextlib.contextmanager
    def error(
        self, name: str, case: str, kind: type[_E], *named: object, **hidden: object
    ) -> Iterator[pytest.ExceptionInfo[_E]]:
        """Expect an error whose text equals an entry (see `entry`) and names each of `named`."""
        with raises_naming(kind, *named) as caught:
            yield caught
        self.entry(name, case, str(caught.value), **hidden)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.txt"


def _with_newline(text: str) -> str:
    return text.rstrip("\n") + "\n"


def _entries(text: str) -> dict[str, str]:
    """Return the entries of a file by their case."""
    parts = _HEADING.split(text)[1:]
    return {case: _with_newline(body) for case, body in zip(parts[::2], parts[1::2], strict=True)}


def _compare(expected: str, text: str, name: str) -> None:
    if expected == text:
        return
    diff = difflib.unified_diff(expected.splitlines(), text.splitlines(), "golden file", "actual text", lineterm="")
    message = f"the golden text of {name} differs; if the new text is right, run pytest --update-golden\n"
    raise AssertionError(message + "\n".join(diff))
