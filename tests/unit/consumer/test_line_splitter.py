from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.consumer.line_splitter import MAX_LINE_BYTES, LineSplitter


def data(lines: LineSplitter, *chunks: bytes) -> list[bytes]:
    return [each.data for chunk in chunks for each in lines.split(chunk)]


@given(st.lists(st.binary(max_size=6)), st.integers(1, 5))
def test_line_splitter_returns_whole_lines_for_any_chunks(wanted: list[bytes], size: int) -> None:
    wanted = [each.replace(b"\n", b"") for each in wanted]
    flow = b"".join(each + b"\n" for each in wanted)
    chunks = [flow[start : start + size] for start in range(0, len(flow), size)]
    lines = LineSplitter("here")
    assert data(lines, *chunks) == [each for each in wanted if each.strip()]
    assert lines.finish() == []


def test_line_splitter_returns_unterminated_line_at_end() -> None:
    lines = LineSplitter("here")
    assert data(lines, b"one\n\ntwo") == [b"one"]
    assert [(each.data, each.location, each.number) for each in lines.finish()] == [(b"two", "here", 2)]
    assert lines.finish() == []


def test_line_splitter_skips_rest_of_line_when_started_inside() -> None:
    lines = LineSplitter("here", within_line=True)
    assert data(lines, b"rest ", b"of one\ntwo\n") == [b"two"]
    lines = LineSplitter("here", within_line=True)
    assert data(lines, b"rest") == []
    assert lines.finish() == []


def test_line_splitter_truncates_overlong_line() -> None:
    lines = LineSplitter("here")
    assert data(lines, b"x" * MAX_LINE_BYTES) == []
    (cut,) = data(lines, b"xx")
    assert len(cut) < 10_000
    assert data(lines, b"x" * 100, b"xx\nnext\n") == [b"next"]
