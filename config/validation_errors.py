"""What is wrong with settings, in words. No value is ever repeated: it may be secret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from config import names, sinks
from config.sources import Path, Source, as_group, places

_WORDS = {
    "missing": "this setting is needed, and not there",
    "model_type": "this is a group of settings, it has no value of its own",
    "dict_type": "this is a group of settings, it has no value of its own",
    "string_type": "write text, not a list or a group",
    "too_short": "it is empty",
    "tuple_type": "write a list: each item on a line of its own, after a dash",
    "bool_type": "write true or false",
    "bool_parsing": "write true or false",
    "int_type": "write a whole number, in digits",
    "int_parsing": "write a whole number, in digits",
    "int_parsing_size": "write a whole number, in digits",
    "int_from_float": "write a whole number, in digits",
}
"""What is said of the kinds of mistakes that pydantic finds; of others, what pydantic says."""

_LEFTOVER = "there is a name of no setting, without a value; inside of {}, a value with a comma is written in quotes"
"""Said of a name that may be the rest of a secret, and is not shown: ``{password: a,b}`` has the names password, b."""

_ABOUT_NOTHING = ("missing", "model_type", "dict_type", "sink_type")  # mistakes that do not come of a missing value


def told(detail: ErrorDetails, model: type[BaseModel], sources: Sequence[Source]) -> str:
    """Return one mistake that validation found: where it is written, its path, and what is wrong with it."""
    path = tuple(map(str, detail["loc"]))
    where, text = " and ".join(places(path, sources)), _text(detail, path, model, sources)
    if text == _LEFTOVER:
        path = path[:-1]
    shown = ".".join(map(names.shown, path))
    return ": ".join(part for part in (where, shown, text) if part)


def _text(detail: ErrorDetails, path: Path, model: type[BaseModel], sources: Sequence[Source]) -> str:
    kind, written = detail["type"], detail["input"]
    match kind:
        case "extra_forbidden":
            advice = names.advice(path[-1], _model_at(path[:-1], model, sources))
            unlike_any = advice.startswith(names.ALL)
            return _LEFTOVER if written is None and unlike_any else f"there is no such setting; {advice}"
        case "value_error":
            return str(detail["ctx"]["error"])
        case "tuple_type" if isinstance(written, Mapping) and any(map(str.isdecimal, written)):
            return "number the items from 0 on, without a gap"
        case _ if written is None and kind not in _ABOUT_NOTHING:
            return "it has no value: write one, or leave the name out"
        case _:
            return _WORDS.get(kind) or detail["msg"].replace("Input should", "it should", 1)


def _model_at(path: Path, model: type[BaseModel], sources: Sequence[Source]) -> type[BaseModel]:
    """Return the model of the group at ``path``; of a sink, the one of its type."""
    for depth, name in enumerate(path):
        if name.isdecimal() and path[:depth] == ("sinks",):
            model = sinks.model_of(_sink_type(path[: depth + 1], sources))
        elif name in model.model_fields:
            model = names.group(model.model_fields[name].annotation) or model
    return model


def _sink_type(path: Path, sources: Sequence[Source]) -> Any:
    for source in sources:
        written = as_group(source.get(path))
        if isinstance(written, Mapping) and "type" in written:
            return written["type"]
        if source.settles(path):
            break
    return None
