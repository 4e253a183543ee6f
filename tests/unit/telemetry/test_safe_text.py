from __future__ import annotations

import json

import pytest

from bridge.telemetry.safe_text import one_line, printable, printable_json


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("web-1 größe 容器", "web-1 größe 容器"),
        ("", ""),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("safe\u202egpj.exe", r"safe\u202egpj.exe"),
        ("zero\u200bwidth", r"zero\u200bwidth"),
        ("line\u2028end", r"line\u2028end"),
        ("\udc80", r"\udc80"),
        ("\U000e0041", r"\U000e0041"),
        ("no\u00a0break", r"no\xa0break"),
    ],
)
def test_printable_escapes_unprintable_characters(text: str, escaped: str) -> None:
    assert printable(text) == escaped
    assert escaped.isprintable()


def test_printable_keeps_requested_characters() -> None:
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


@pytest.mark.parametrize("text", ["plain", "größe 容器", "\x1b\x9b\x7f", "\u202e\u2028", "\U000e0041", 'q"\\'])
def test_printable_json_keeps_document_value(text: str) -> None:
    document = json.dumps({text: text}, ensure_ascii=False, indent=2)
    escaped = printable_json(document)
    assert json.loads(escaped) == {text: text}
    assert all(line.isprintable() for line in escaped.split("\n"))
    assert escaped.count("\n") == document.count("\n")


def test_printable_json_leaves_printable_text_unchanged() -> None:
    document = json.dumps({"name": "größe 容器"}, ensure_ascii=False)
    assert printable_json(document) is document


def test_foreign_error_text_is_shortened_to_one_line() -> None:
    assert one_line("a\r\n b\x1b[31m" + "x" * 1000) == "a b?[31m" + "x" * 292
