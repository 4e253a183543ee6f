"""Check that docs/logs.md lists every log event with its level, and that log calls pass details as fields."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
LEVELS = {level: level for level in ("debug", "info", "warning", "error", "critical")} | {"exception": "error"}
UNDETECTED_EVENTS = {("log_lines_dropped", "warning")}  # logged where structlog is configured
FORWARDING_METHODS = {"_warn_once", "_try"}  # take an event and log a warning


def log_calls() -> Iterator[tuple[ast.Call, str, list[ast.expr]]]:
    """Yield each log call, its level, and its arguments from the event on."""
    for directory in ("bridge", "sinks", "config"):
        for path in (ROOT / directory).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield from log_calls_in(node, node.func)


def log_calls_in(node: ast.Call, function: ast.Attribute) -> Iterator[tuple[ast.Call, str, list[ast.expr]]]:
    if isinstance(function.value, ast.Name) and function.value.id == "_log" and function.attr in LEVELS:
        yield node, LEVELS[function.attr], node.args
    elif function.attr == "log" and isinstance(node.args[0], ast.Attribute):
        yield node, node.args[0].attr, node.args[2:]
    elif function.attr in FORWARDING_METHODS:
        yield node, "warning", node.args


def logged_events() -> Iterator[tuple[str, str]]:
    for _, level, arguments in log_calls():
        event = arguments[0]
        if isinstance(event, ast.Constant):
            assert isinstance(event.value, str)
            yield event.value, level
        else:
            assert ast.unparse(event) == "event", ast.unparse(event)  # passed through


def test_documentation_lists_every_log_event_with_level() -> None:
    documented = re.findall(r"^\| `(\w+)` \| (\w+) \|", (ROOT / "docs" / "logs.md").read_text(), re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == set(logged_events()) | UNDETECTED_EVENTS


def test_log_events_are_constant_names() -> None:
    assert [event for event, _ in logged_events() if not re.fullmatch(r"[a-z]+(_[a-z]+)*", event)] == []
    assert [
        ast.unparse(node)
        for node, _, arguments in log_calls()
        if len(arguments) > 1 and not any(name in ast.unparse(node) for name in FORWARDING_METHODS)
    ] == []


def test_log_lines_contain_no_labels_or_settings() -> None:
    fields = {keyword.arg for node, _, _ in log_calls() for keyword in node.keywords if keyword.arg}
    assert not fields & {"labels", "metadata", "settings", "password", "token", "record", "data"}
