"""Messages for invalid settings. They never repeat a value, which may be secret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from config import setting_paths, sinks
from config.sources import Path, Source, as_mapping, locations

_TEXTS = {
    "missing": "required",
    "model_type": "expected a mapping",
    "dict_type": "expected a mapping",
    "string_type": "expected text, not a list or a mapping",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "tuple_type": "expected a list",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "int_type": "expected a whole number in digits",
    "int_parsing": "expected a whole number in digits",
    "int_parsing_size": "expected a whole number in digits",
    "int_from_float": "expected a whole number in digits",
}
"""Replaces pydantic's own message, by the type of the error."""

_LEFTOVER = "contains a name without a value; quote values that contain a comma inside of {}"
"""For a name that may be part of a secret: ``{password: a,b}`` contains the names password and b."""

_WITHOUT_INPUT = ("missing", "model_type", "dict_type", "sink_type")  # errors that no missing value causes


def format_error(detail: ErrorDetails, model: type[BaseModel], sources: Sequence[Source]) -> str:
    """Return the message for one validation error: its location, its path, and what is wrong."""
    path = tuple(str(part) for part in detail["loc"] if part != "[key]")
    location, text = " and ".join(locations(path, sources)), _text(detail, path, model, sources)
    if text == _LEFTOVER:
        path = path[:-1]
    shown = ".".join(map(setting_paths.redact, path))
    return ": ".join(part for part in (location, shown, text) if part)


def _text(detail: ErrorDetails, path: Path, model: type[BaseModel], sources: Sequence[Source]) -> str:
    kind, value = detail["type"], detail["input"]
    match kind:
        case "extra_forbidden":
            return _unknown(path[-1], value, _model_at(path[:-1], model, sources))
        case "value_error":
            return str(detail["ctx"]["error"])
        case "greater_than_equal":
            return f"out of range; use at least {detail['ctx']['ge']}"
        case "less_than_equal":
            return f"out of range; use at most {detail['ctx']['le']}"
        case _ if value is None and kind not in _WITHOUT_INPUT:
            return "no value; set one, or remove the name"
        case _:
            return _TEXTS.get(kind) or detail["msg"].replace("Input should be", "expected", 1)


def _unknown(name: str, value: object, model: type[BaseModel]) -> str:
    if near := setting_paths.suggest(name, model):
        return f"unknown setting; did you mean '{near}'?"
    return _LEFTOVER if value is None else f"unknown setting; expected one of {', '.join(model.model_fields)}"


def _model_at(path: Path, model: type[BaseModel], sources: Sequence[Source]) -> type[BaseModel]:
    """Return the model of the group at ``path``; for a sink, the model of its type."""
    if path[:1] == ("sinks",) and len(path) > 1:
        model, path = sinks.model_of(_sink_type(path[:2], sources)), path[2:]
    for name in path:
        model = setting_paths.group_model(model.model_fields[name].annotation) or model
    return model


def _sink_type(path: Path, sources: Sequence[Source]) -> Any:
    for source in sources:
        settings = as_mapping(source.get(path))
        if isinstance(settings, Mapping) and "type" in settings:
            return settings["type"]
        if source.overrides(path):
            break
    return None
