from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.fleet.lines import LONGEST, Lines


def data(lines: Lines, *chunks: bytes) -> list[bytes]:
    return [each.data for chunk in chunks for each in lines.of(chunk)]


@given(st.lists(st.binary(max_size=6)), st.integers(1, 5))
def test_however_it_comes_lines_are_whole(wanted: list[bytes], size: int) -> None:
    wanted = [each.replace(b"\n", b"") for each in wanted]
    flow = b"".join(each + b"\n" for each in wanted)
    chunks = [flow[start : start + size] for start in range(0, len(flow), size)]
    lines = Lines("here")
    assert data(lines, *chunks) == [each for each in wanted if each.strip()]
    assert lines.rest() == []


def test_what_stands_behind_the_last_line_feed_comes_at_the_end() -> None:
    lines = Lines("here")
    assert data(lines, b"one\n\ntwo") == [b"one"]
    assert [(each.data, each.place, each.number) for each in lines.rest()] == [(b"two", "here", 2)]
    assert lines.rest() == []


def test_the_rest_of_a_line_is_passed_over() -> None:
    lines = Lines("here", within_line=True)
    assert data(lines, b"rest ", b"of one\ntwo\n") == [b"two"]
    lines = Lines("here", within_line=True)
    assert data(lines, b"rest") == []
    assert lines.rest() == []


def test_what_goes_on_for_ever_is_cut() -> None:
    lines = Lines("here")
    assert data(lines, b"x" * LONGEST) == []
    (cut,) = data(lines, b"xx")
    assert len(cut) < 10_000
    assert data(lines, b"x" * 100, b"xx\nnext\n") == [b"next"]
