"""Log lines on standard error: for people (console) or for programs (JSON).

``structlog.get_logger()`` gives a logger to every part of the program. Lines of the standard library's ``logging``,
which libraries use, come out in the same form, from level warning on.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog
from structlog.typing import Processor

from bridge.telemetry.log_writer import STDERR, NonBlockingWriter
from bridge.telemetry.text import printable

_MULTILINE_FIELDS = frozenset({"exception", "stack"})  # fields that are meant to have several lines


def configure(level: str, format_: str, *, descriptor: int = STDERR) -> NonBlockingWriter:
    """Set logging up for the whole process.

    Args:
        level: debug, info, warning or error.
        form: json, console, or auto, which is console on a terminal and json elsewhere.
        descriptor: Where lines go.

    Returns:
        What writes the lines. It is closed by itself as the interpreter ends.
    """
    terminal = os.isatty(descriptor)
    console = format_ == "console" or (format_ == "auto" and terminal)
    render = _console(colors=terminal and not os.environ.get("NO_COLOR")) if console else _json()
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
    """Change the least important level that is written."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))


def silence() -> None:
    """Have nothing logged, by us or by libraries: for commands that tell a person themselves what there is to tell."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.ReturnLoggerFactory(),
    )
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)


def _json() -> list[Processor]:
    return [*_common(), _standard_fields_first, structlog.processors.JSONRenderer(default=repr)]


def _console(*, colors: bool) -> list[Processor]:
    return [*_common(), _make_printable, structlog.dev.ConsoleRenderer(colors=colors)]


def _common() -> list[Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]


def _standard_fields_first(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put first what every line has."""
    return {name: event.pop(name) for name in ("timestamp", "level", "event")} | dict(event)


def _make_printable(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape what a terminal would obey, in keys and in values of any type."""
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


def _dropped_lines_message(render: list[Processor]) -> Callable[[int], str]:
    def line(count: int) -> str:
        event: Any = {"event": "log_lines_dropped", "lines": count, "reason": "standard error was not read"}
        for processor in render:
            event = processor(None, "warning", event)
        return str(event)

    return line


class _Logger:
    """The end of structlog's chain: hands each line to the writer."""

    def __init__(self, write_line: Callable[[str], None]) -> None:
        self.msg = self.debug = self.info = self.warning = self.error = self.critical = write_line


class _StdlibHandler(logging.Handler):
    """Lines of libraries, which know ``logging`` only."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = max(logging.DEBUG, min(record.levelno // 10 * 10, logging.CRITICAL))
            log = structlog.get_logger().bind(logger=record.name)
            log.log(level, record.getMessage(), exc_info=record.exc_info)
        except (TypeError, ValueError):  # arguments that do not fit the message
            self.handleError(record)
