"""Log lines on standard error, for people (console) or for programs (JSON).

All modules log with ``structlog.get_logger()``. Lines of the standard library's ``logging``, which libraries use, are
written in the same format if their level is warning or higher.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from bridge.telemetry.log_writer import STDERR, NonBlockingWriter
from bridge.telemetry.safe_text import printable


@contextlib.contextmanager
def _without_rich() -> Iterator[None]:
    """Make ``import rich`` fail, unless it is imported already."""
    modules: dict[str, Any] = sys.modules
    hide = "rich" not in modules
    if hide:
        modules["rich"] = None
    try:
        yield
    finally:
        if hide:
            del modules["rich"]


with _without_rich():  # structlog would import it, and much with it, for tracebacks that are not used here
    import structlog

_MULTILINE_FIELDS = frozenset({"exception", "stack"})


def configure(level: str, format_: str, *, descriptor: int = STDERR) -> NonBlockingWriter:
    """Configure logging for the whole process.

    Args:
        level: debug, info, warning or error.
        format_: json, console, or auto (console on a terminal, otherwise json).
        descriptor: The file descriptor to write to.

    Returns:
        The writer of the lines; closed automatically when the interpreter exits.
    """
    terminal = os.isatty(descriptor)
    console = format_ == "console" or (format_ == "auto" and terminal)
    render = _renderers(console=console, colors=terminal and not os.environ.get("NO_COLOR"))
    writer = NonBlockingWriter(_dropped_lines_message(render), descriptor=descriptor)
    atexit.register(writer.close)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.StackInfoRenderer(), *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Logger(writer.write_line),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_StdlibHandler()], force=True)
    return writer


def set_level(level: str) -> None:
    """Change the minimum log level."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))


def silence() -> None:
    """Disable all logging, also that of libraries: for commands that report errors to the user themselves."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.ReturnLoggerFactory(),
    )
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)


def _renderers(*, console: bool, colors: bool) -> list[structlog.typing.Processor]:
    common: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if console:
        return [*common, _make_printable, structlog.dev.ConsoleRenderer(colors=colors)]
    return [*common, _standard_fields_first, structlog.processors.JSONRenderer(default=repr)]


def _standard_fields_first(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Move the fields that every line has to the front."""
    return {name: event.pop(name) for name in ("timestamp", "level", "event")} | dict(event)


def _make_printable(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters, which a terminal interprets, in keys and in values of any type."""
    return {
        printable(name): printable(_text(value), "\n" if name in _MULTILINE_FIELDS else "")
        if not isinstance(value, (bool, int, float, type(None)))
        else value
        for name, value in event.items()
    }


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else repr(value)


def _dropped_lines_message(render: list[structlog.typing.Processor]) -> Callable[[int], str]:
    def line(count: int) -> str:
        event: Any = {"event": "log_lines_dropped", "lines": count, "reason": "standard error was not read"}
        for processor in render:
            event = processor(None, "warning", event)
        return str(event)

    return line


class _Logger:
    """The end of structlog's chain: passes each line to the writer."""

    def __init__(self, write_line: Callable[[str], None]) -> None:
        self.msg = self.debug = self.info = self.warning = self.error = self.critical = write_line


class _StdlibHandler(logging.Handler):
    """Passes log records of libraries, which use ``logging``, to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = max(logging.DEBUG, min(record.levelno // 10 * 10, logging.CRITICAL))
            log = structlog.get_logger().bind(logger=record.name)
            log.log(level, record.getMessage(), exc_info=record.exc_info)
        except (TypeError, ValueError):  # the arguments do not match the message's format
            self.handleError(record)
