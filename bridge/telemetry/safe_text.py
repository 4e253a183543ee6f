"""Makes untrusted text safe for terminals and logs.

Users who can start a container choose its names and labels. Escape sequences in them could change what a terminal
shows, or type commands in it, so all characters that are not printable are escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

_MAX_LINE_LENGTH = 300  # characters: error texts of other programs can be nested and contain untrusted text
_LONG_ID = re.compile(r"(?<![0-9a-f])([0-9a-f]{12})[0-9a-f]{52}(?![0-9a-f])")


def printable(text: str, keep: str = "") -> str:
    """Return ``text`` with a backslash escape for each character that is neither printable nor in ``keep``.

    This escapes control characters (line feeds, ANSI escapes, C1), invisible and direction-changing characters, lone
    surrogates, and separators other than the space.
    """
    return _escape(text, keep, lambda character: character.encode("unicode_escape", "surrogatepass").decode("ascii"))


def printable_json(document: str) -> str:
    """Return the same JSON document with each character that is not printable escaped, except line feeds.

    JSON allows DEL, C1, invisible and direction-changing characters in strings without an escape.
    """
    # By line, because a printable one needs no work. Without quotes: these characters occur only inside of strings.
    lines = document.split("\n")
    return "\n".join(_escape(line, "", lambda character: json.dumps(character)[1:-1]) for line in lines)


def one_line(text: object) -> str:
    """Return untrusted text as one printable line of limited length, for logs and error messages."""
    line = " ".join(str(text).split())
    return "".join(character if character.isprintable() else "?" for character in line[:_MAX_LINE_LENGTH])


def shorten_ids(text: str) -> str:
    """Return ``text`` with each id of 64 hexadecimal digits shortened to 12, as most tools show ids."""
    return _LONG_ID.sub(r"\1", text)


def _escape(text: str, keep: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else escape(each) for each in text)
