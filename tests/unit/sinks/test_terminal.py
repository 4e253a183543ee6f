from __future__ import annotations

import json

import pytest

from sinks.terminal import printable_json


@pytest.mark.parametrize("text", ["plain", "größe 容器", "\x1b\x9b\x7f", "\u202e\u2028", "\U000e0041", 'q"\\'])
def test_the_document_stays_the_same_and_gets_printable(text: str) -> None:
    document = json.dumps({text: text}, ensure_ascii=False, indent=2)
    shown = printable_json(document)
    assert json.loads(shown) == {text: text}
    assert all(line.isprintable() for line in shown.split("\n"))
    assert shown.count("\n") == document.count("\n")


def test_what_is_printable_is_left_alone() -> None:
    document = json.dumps({"name": "größe 容器"}, ensure_ascii=False)
    assert printable_json(document) is document
