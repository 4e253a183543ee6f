"""Foreign text on its way to a person's terminal.

Names and labels come from whoever may start a container. Escape sequences in them could rewrite what the terminal
shows or what it types, so nothing but printable characters is let through.
"""

from __future__ import annotations

import json
import re

_SHOWN = 300  # characters of a line: foreign texts nest, and carry what a stranger wrote
_LONG_ID = re.compile(r"(?<![0-9a-f])([0-9a-f]{12})[0-9a-f]{52}(?![0-9a-f])")


def printable(text: str, keep: str = "") -> str:
    """Return ``text`` with every character that is not printable, nor in ``keep``, written as a backslash escape.

    That covers control characters (new lines, ANSI escapes, C1), invisible and direction-changing ones, lone
    surrogates, and separators other than the blank.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else _escape(character) for character in text
    )


def printable_json(document: str) -> str:
    """Return the same JSON document with every character that is not printable escaped; its line feeds stay.

    JSON allows DEL, the C1 set, invisible and direction-changing characters in its strings as they are.
    """
    if document.isprintable():
        return document
    return "".join(
        character if character.isprintable() or character == "\n" else _escaped_in_json(character)
        for character in document
    )


def one_line(text: object) -> str:
    """Return a foreign text fit for a log line: one line, printable, bounded."""
    line = " ".join(str(text).split())
    return "".join(character if character.isprintable() else "?" for character in line[:_SHOWN])


def shorten_ids(text: str) -> str:
    """Return ``text`` with each id of 64 digits in it cut to the 12 that people go by."""
    return _LONG_ID.sub(r"\1", text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _escaped_in_json(character: str) -> str:
    return json.dumps(character)[1:-1]  # within a string: outside of strings JSON has no such characters
