from __future__ import annotations

import pytest

from bridge.telemetry.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
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
def test_only_printable_characters_are_let_through(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert shown.isprintable()


def test_what_is_asked_for_is_kept() -> None:
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
