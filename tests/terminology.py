"""Refuse retired words in code, messages and documents: ``python -m tests.terminology [PATH...]``, in ``make lint``.

``terminology.toml`` has the words, each with what to write instead, and the exceptions, each with its reason. A word
matches as a whole word of text, and as one word of an identifier: ``lane`` is found in ``_lane_of`` and ``SinkLane``,
but not in ``planet``. An exception that no longer excuses anything is an error, too.
"""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_suffix(".toml")
ROOT = TABLE.parents[1]
_IDENTIFIER_BREAK = re.compile(r"_|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Exemption(NamedTuple):
    """Where a word is right: in files that match a glob, on lines that match a pattern."""

    words: tuple[str, ...]
    files: tuple[str, ...]
    line: re.Pattern[str]
    reason: str

    def covers(self, word: str, path: str, line: str) -> bool:
        """Return whether ``word`` is right on this line of this file."""
        return (
            word in self.words
            and any(fnmatch.fnmatch(path, pattern) for pattern in self.files)
            and self.line.search(line) is not None
        )


class Terminology:
    """The retired words and their exceptions, as ``terminology.toml`` has them."""

    def __init__(self, text: str) -> None:
        table = tomllib.loads(text)
        self.skipped: list[str] = table["skip"]
        self._instead: dict[str, str] = {
            word: instead for instead, words in table["retired"].items() for word in words.split(", ")
        }
        forms = sorted(self._instead, key=len, reverse=True)
        self._pattern = re.compile(rf"\b({'|'.join(re.escape(form) for form in forms)})\b", re.IGNORECASE)
        self._exemptions = [
            Exemption(
                tuple(each["words"]), tuple(each.get("files", ["*"])), re.compile(each.get("line", "")), each["reason"]
            )
            for each in table["allow"]
        ]
        self._used: set[Exemption] = set()

    def errors(self, path: str, text: str) -> Iterator[str]:
        """Yield a message for each retired word in the text of a file."""
        for number, line in enumerate(text.splitlines(), 1):
            words = {found[1].lower() for found in self._pattern.finditer(_IDENTIFIER_BREAK.sub(" ", line))}
            for word in sorted(words):
                exempt = [each for each in self._exemptions if each.covers(word, path, line)]
                self._used.update(exempt)
                if not exempt:
                    yield f"{path}:{number}: {word!r}: write {self._instead[word]}: {line.strip()[:100]}"

    def unused(self) -> Iterator[str]:
        """Yield a message for each exception that has excused nothing so far."""
        for each in self._exemptions:
            if each not in self._used:
                yield f"{TABLE.name}: exception for {', '.join(each.words)} ({each.reason}) is not needed; remove it"


def check(terminology: Terminology, paths: Iterable[str]) -> Iterator[str]:
    """Yield the errors in files of the repository."""
    for path in paths:
        if not any(fnmatch.fnmatch(path, pattern) for pattern in terminology.skipped):
            yield from terminology.errors(path, (ROOT / path).read_text(encoding="utf-8"))


def main(chosen: list[str]) -> int:
    """Check the chosen files, or all that git knows; print the errors, and return the exit status."""
    terminology = Terminology(TABLE.read_text(encoding="utf-8"))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    paths = [path for path in tracked if not chosen or any(path.startswith(prefix) for prefix in chosen)]
    errors = list(check(terminology, [path for path in paths if (ROOT / path).is_file()]))
    if not chosen:
        errors += terminology.unused()
    print("\n".join(errors) or f"{len(paths)} files: no retired word")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
