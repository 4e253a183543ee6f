from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from bridge.telemetry.log_writer import NonBlockingWriter

LONG_LINE = "x" * 100_000  # more than a pipe holds


def read_all_lines(descriptor: int, count: int) -> list[str]:
    with open(os.dup(descriptor), encoding="utf-8") as file:
        return [file.readline().rstrip("\n") for _ in range(count)]


def test_log_writer_writes_lines_in_order(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = NonBlockingWriter(str, descriptor=file.fileno())
        for number in range(500):
            writer.write_line(f"line {number}")
        writer.close(seconds=60)
    assert (tmp_path / "log").read_text().splitlines() == [f"line {number}" for number in range(500)]


def test_log_writer_drops_and_counts_lines_when_reader_hangs(pipe: tuple[int, int]) -> None:
    writer = NonBlockingWriter(lambda count: f"{count} lines were dropped", descriptor=pipe[1], max_lines=3)
    writer.write_line(LONG_LINE)
    fill_buffer(writer)
    for number in range(7):
        writer.write_line(f"dropped {number}")
    lines = read_all_lines(pipe[0], 4)
    assert lines == [LONG_LINE, "kept", "kept", "kept"]
    writer.write_line("later")
    assert read_all_lines(pipe[0], 2) == ["7 lines were dropped", "later"]
    writer.close()


def fill_buffer(writer: NonBlockingWriter) -> None:
    """Wait until the writer thread blocks on the first line, then fill the buffer."""
    with writer._changed:
        while writer._lines:
            writer._changed.wait(0.01)
    for _ in range(3):
        writer.write_line("kept")


def test_log_writer_close_is_bounded_and_final(pipe: tuple[int, int]) -> None:
    writer = NonBlockingWriter(str, descriptor=pipe[1])
    writer.write_line(LONG_LINE)
    writer.close(seconds=0.01)
    writer.write_line("too late")
    writer.close(seconds=0.01)
    assert read_all_lines(pipe[0], 1) == [LONG_LINE]  # unblocks the thread before the descriptor is closed
    writer.close(seconds=10)
    assert not any(thread is writer._thread for thread in threading.enumerate())


def test_log_writer_waits_for_nonblocking_descriptor(pipe: tuple[int, int]) -> None:
    fcntl.fcntl(pipe[1], fcntl.F_SETFL, os.O_NONBLOCK)
    writer = NonBlockingWriter(str, descriptor=pipe[1])
    writer.write_line(LONG_LINE)
    assert read_all_lines(pipe[0], 1) == [LONG_LINE]
    writer.close()


def test_log_writer_ignores_closed_pipe() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    writer = NonBlockingWriter(str, descriptor=write_end)
    writer.write_line("unread")
    writer.close(seconds=10)
    os.close(write_end)
    assert not writer._thread.is_alive()


def test_log_writer_escapes_unencodable_text(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = NonBlockingWriter(str, descriptor=file.fileno())
        writer.write_line("\udc80")
        writer.close(seconds=60)
    assert (tmp_path / "log").read_text() == "\\udc80\n"
