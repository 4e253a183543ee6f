from __future__ import annotations

import gc
import json
import logging
import os
import pty
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from bridge.telemetry import logs
from bridge.telemetry.log_writer import NonBlockingWriter

HOSTILE = "web\x1b]0;title\x07\x9b2J\r\n{}"
Configure = Callable[..., NonBlockingWriter]


@pytest.fixture
def configure() -> Iterator[Configure]:
    writers: list[NonBlockingWriter] = []
    handlers, level = logging.root.handlers[:], logging.root.level
    gc.disable()  # warnings about garbage of earlier tests must not reach these logs

    def configured(*args: Any, **kwargs: Any) -> NonBlockingWriter:
        writers.append(logs.configure(*args, **kwargs))
        return writers[-1]

    yield configured
    for writer in writers:
        writer.close()
    structlog.reset_defaults()
    logging.root.handlers[:], logging.root.level = handlers, level
    gc.enable()


def read(descriptor: int) -> str:
    return os.read(descriptor, 65536).decode()


def test_json_log_line_is_printable_and_has_standard_fields(pipe: tuple[int, int], configure: Configure) -> None:
    writer = configure("info", "json", descriptor=pipe[1])
    structlog.get_logger("bridge.watch").warning("Waiting.", containerd=HOSTILE, bytes=b"\xff")
    writer.close()
    (line,) = read(pipe[0]).splitlines()
    document = json.loads(line)
    assert list(document)[:3] == ["timestamp", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", document["timestamp"])
    assert (document["level"], document["event"], document["containerd"]) == ("warning", "Waiting.", HOSTILE)
    assert line.isprintable()


def test_console_log_escapes_control_characters(pipe: tuple[int, int], configure: Configure) -> None:
    writer = configure("info", "console", descriptor=pipe[1])
    structlog.get_logger().info(f"event {HOSTILE}", **{HOSTILE: HOSTILE}, nested={"x": HOSTILE}, count=3, none=None)
    writer.close()
    (line,) = read(pipe[0]).splitlines()
    assert line.isprintable()
    assert "count=3" in line
    assert r"web\x1b]0;title\x07\x9b2J\r\n{}" in line


def test_console_traceback_keeps_only_line_breaks(pipe: tuple[int, int], configure: Configure) -> None:
    writer = configure("info", "console", descriptor=pipe[1])
    structlog.get_logger().error("Failed.", exc_info=ValueError(HOSTILE))
    writer.close()
    lines = read(pipe[0]).splitlines()
    assert len(lines) > 1
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(("level", "line_count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_log_level_filters_messages(level: str, line_count: int, pipe: tuple[int, int], configure: Configure) -> None:
    writer = configure(level, "json", descriptor=pipe[1])
    log = structlog.get_logger()
    for method in (log.debug, log.info, log.warning, log.error):
        method("Connected.")
    writer.close()
    assert len(read(pipe[0]).splitlines()) == line_count


def test_auto_log_format_is_json_without_terminal(pipe: tuple[int, int], configure: Configure) -> None:
    writer = configure("info", "auto", descriptor=pipe[1])
    structlog.get_logger().info("Connected.")
    writer.close()
    assert json.loads(read(pipe[0]))["event"] == "Connected."


@pytest.mark.parametrize(("log_format", "no_color", "colored"), [("auto", "", True), ("auto", "1", False)])
def test_console_log_is_colored_on_terminal_unless_no_color(
    log_format: str, no_color: str, colored: bool, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    terminal_end, program_end = pty.openpty()
    try:
        writer = configure("info", log_format, descriptor=program_end)
        structlog.get_logger().info("Connected.", name="web")
        writer.close()
        line = read(terminal_end)
    finally:
        os.close(terminal_end)
        os.close(program_end)
    assert "Connected." in line
    assert ("\x1b[" in line) is colored


def test_console_log_has_no_color_without_terminal(pipe: tuple[int, int], configure: Configure) -> None:
    writer = configure("info", "console", descriptor=pipe[1])
    structlog.get_logger().info("Connected.", name="web")
    writer.close()
    assert "\x1b" not in read(pipe[0])


def test_library_logs_use_same_format_from_warning_level(pipe: tuple[int, int], configure: Configure) -> None:
    writer = configure("debug", "json", descriptor=pipe[1])
    library = logging.getLogger("grpc._channel")
    library.info("Details.")
    library.warning("Unexpected %s: %s", "header", HOSTILE)
    library.log(35, "Unusual level.")
    writer.close()
    first, second = map(json.loads, read(pipe[0]).splitlines())
    assert (first["event"], first["level"], first["logger"]) == (
        f"Unexpected header: {HOSTILE}",
        "warning",
        "grpc._channel",
    )
    assert (second["event"], second["level"]) == ("Unusual level.", "warning")


def test_library_log_with_bad_arguments_is_ignored(
    pipe: tuple[int, int], configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    writer = configure("info", "json", descriptor=pipe[1])
    logging.getLogger("library").warning("%d and %d", 1)  # noqa: PLE1206 (the test needs wrong arguments)
    writer.close()
    os.write(pipe[1], b"nothing more")
    assert read(pipe[0]) == "nothing more"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_dropped_log_lines_are_reported_in_same_format(
    log_format: str, pipe: tuple[int, int], configure: Configure
) -> None:
    writer = configure("info", log_format, descriptor=pipe[1])
    log = structlog.get_logger()
    writer._dropped = 7  # as if the reader had been slow
    log.info("Resumed.")
    writer.close()
    first, second = read(pipe[0]).splitlines()
    assert "log_lines_dropped" in first
    assert ('"lines": 7' if log_format == "json" else "lines=7") in first
    assert "Resumed." in second


def test_log_level_can_change_at_runtime(configure: Configure, capfd: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger()
    writer = configure("warning", "json")
    log.info("before")
    logs.set_level("info")
    log.info("after")
    writer.close()
    assert [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()] == ["after"]
