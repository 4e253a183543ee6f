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


def blocks(text: str, language: str) -> list[str]:
    """The code blocks in a language; "" for those without."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[Command]:
    """All that a page says to type: the lines of its `sh` blocks, and those of `console` blocks that begin with `$`."""
    text = page.read_text().replace("\\\n", " ")
    lines = [line[2:] for block in blocks(text, "console") for line in block.splitlines() if line.startswith("$ ")]
    lines += [line for block in blocks(text, "sh") for line in block.splitlines() if line]
    return [Command(page.name, re.sub(r"\s+", " ", re.sub(r"\s+# .*", "", line)).strip()) for line in lines]
