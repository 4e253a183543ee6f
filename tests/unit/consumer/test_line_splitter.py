from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.consumer.line_splitter import MAX_LINE_BYTES, LineSplitter


def data(lines: LineSplitter, *chunks: bytes) -> list[bytes]:
    return [message.data for chunk in chunks for message in lines.split(chunk)]


@given(st.lists(st.binary(max_size=6)), st.integers(1, 5))
def test_line_splitter_returns_complete_lines_for_any_chunks(expected: list[bytes], size: int) -> None:
    expected = [line.replace(b"\n", b"") for line in expected]
    stream = b"".join(line + b"\n" for line in expected)
    chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
    lines = LineSplitter("here")
    assert data(lines, *chunks) == [line for line in expected if line.strip()]
    assert lines.finish() == []


def test_line_splitter_returns_unterminated_line_at_end() -> None:
    lines = LineSplitter("here")
    assert data(lines, b"one\n\ntwo") == [b"one"]
    assert [(message.data, message.location, message.number) for message in lines.finish()] == [(b"two", "here", 2)]
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
    (truncated,) = data(lines, b"xx")
    assert len(truncated) < 10_000
    assert data(lines, b"x" * 100, b"xx\nnext\n") == [b"next"]
