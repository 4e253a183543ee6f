"""Every log line of the program: its event is in docs/logs.md, at its level, and what it is about is in fields."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
LEVELS = ("debug", "info", "warning", "error", "critical")
ELSEWHERE = {("log_lines_dropped", "warning")}  # made where structlog is set up
HANDED_ON = {"_warn_once"}  # takes an event, and warns


def calls() -> Iterator[tuple[ast.Call, str, list[ast.expr]]]:
    """Each call that logs: the level, and the arguments from the event on."""
    for folder in ("bridge", "sinks", "config"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield from of_call(node, node.func)


def of_call(node: ast.Call, called: ast.Attribute) -> Iterator[tuple[ast.Call, str, list[ast.expr]]]:
    if isinstance(called.value, ast.Name) and called.value.id == "_log" and called.attr in LEVELS:
        yield node, called.attr, node.args
    elif called.attr == "say" and isinstance(node.args[0], ast.Attribute):
        yield node, node.args[0].attr, node.args[2:]
    elif called.attr in HANDED_ON:
        yield node, "warning", node.args


def events() -> Iterator[tuple[str, str]]:
    for _, level, arguments in calls():
        event = arguments[0]
        if isinstance(event, ast.Constant):
            assert isinstance(event.value, str)
            yield event.value, level
        else:
            assert ast.unparse(event) == "event", ast.unparse(event)  # handed on


def test_every_event_is_documented_with_its_level() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", (ROOT / "docs" / "logs.md").read_text(), re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == set(events()) | ELSEWHERE


def test_events_are_names_and_everything_else_is_a_field() -> None:
    assert [event for event, _ in events() if not re.fullmatch(r"[a-z]+(_[a-z]+)*", event)] == []
    assert [
        ast.unparse(node)
        for node, _, arguments in calls()
        if len(arguments) > 1 and "_warn_once" not in ast.unparse(node)
    ] == []


def test_no_line_has_labels_or_settings_in_it() -> None:
    fields = {keyword.arg for node, _, _ in calls() for keyword in node.keywords if keyword.arg}
    assert not fields & {"labels", "metadata", "settings", "password", "token", "record", "data"}
