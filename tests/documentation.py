"""README.md and docs/ as tests read them: what they tell people to type, and their examples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))


class Command(NamedTuple):
    """A command line of a document, without what is only for the reader's eye."""

    page: str
    text: str


def code_blocks(text: str, language: str) -> list[str]:
    """The code blocks in a language; "" for those without."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for its, block in found if its == language]


def shell_commands(text: str, language: str) -> list[str]:
    """What the blocks in `sh` or `console` say to type; in the latter, it begins with `$`."""
    lines = [line for block in code_blocks(text.replace("\\\n", " "), language) for line in block.splitlines() if line]
    if language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [re.sub(r"\s+", " ", re.sub(r"\s+# .*", "", line)).strip() for line in lines]


def page_commands(page: Path) -> list[Command]:
    """All that a page says to type."""
    return [
        Command(page.name, text)
        for language in ("console", "sh")
        for text in shell_commands(page.read_text(), language)
    ]
