"""The commands, examples and settings in README.md and docs/, for tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from config.setting_paths import SINK_ID, iter_settings
from config.settings import Settings
from config.sinks import BUILT_IN

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))

ProjectionFunction = Callable[[Iterable[dict[str, Any]]], dict[tuple[str, str], dict[str, dict[str, Any]]]]


class Command(NamedTuple):
    """A command line in a document, without comments and line breaks."""

    page: str
    text: str


def code_blocks(text: str, language: str) -> list[str]:
    """Return the code blocks in a language; "" selects blocks without a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for block_language, block in blocks if block_language == language]


def documented_fold() -> ProjectionFunction:
    """Return the function `fold` of docs/events.md: from records to the running containers by source and id."""
    (code,) = code_blocks((ROOT / "docs" / "events.md").read_text(), "python")
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 (the project's own code)
    return names["fold"]  # type: ignore[no-any-return]


def setting_paths() -> set[str]:
    """Return the paths of all settings, including those of the built-in types of sinks (``sinks.ID.topic``)."""
    paths = {path for path, _ in iter_settings(Settings)}
    return paths | {path for sink in BUILT_IN.values() for path, _ in iter_settings(sink, f"sinks.{SINK_ID}.")}


def shell_commands(text: str, language: str) -> list[str]:
    """Return the commands in `sh` or `console` blocks; in `console` blocks, they start with `$`."""
    lines = [line for block in code_blocks(text.replace("\\\n", " "), language) for line in block.splitlines() if line]
    if language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [re.sub(r"\s+", " ", re.sub(r"\s+# .*", "", line)).strip() for line in lines]


def page_commands(page: Path) -> list[Command]:
    """Return all commands of a page."""
    return [
        Command(page.name, text)
        for language in ("console", "sh")
        for text in shell_commands(page.read_text(), language)
    ]
