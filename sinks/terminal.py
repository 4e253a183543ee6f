"""JSON on its way to a person's terminal.

JSON escapes most control characters, but not all that a terminal obeys or hides: DEL, the C1 set, invisible and
direction-changing ones may stand in its strings as they are.
"""

from __future__ import annotations

import json


def printable_json(document: str) -> str:
    """Return the same JSON document, with what is not printable in it escaped; its line feeds stay."""
    if document.isprintable():
        return document
    return "".join(
        character if character.isprintable() or character == "\n" else _escaped(character) for character in document
    )


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]  # these all stand within strings: outside of them JSON has no such characters
