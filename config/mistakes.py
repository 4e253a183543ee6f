"""What is wrong with settings, in words. No value is ever repeated: it may be secret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from config import names, sinks
from config.sources import Path, Source, as_group, places

LONGEST_NAME = 60  # characters, of a name that nobody knows


def told(detail: ErrorDetails, model: type[BaseModel], sources: Sequence[Source]) -> str:
    """Return one mistake that validation found: where it is written, its path, and what is wrong with it."""
    path = tuple(map(str, detail["loc"]))
    shown = ".".join(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in path)
    where = " and ".join(places(path, sources))
    return ": ".join(part for part in (where, shown, _text(detail, path, model, sources)) if part)


def _text(detail: ErrorDetails, path: Path, model: type[BaseModel], sources: Sequence[Source]) -> str:  # noqa: PLR0911 (a table)
    written = detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            around = _model_at(path[:-1], model, sources)
            return f"there is no such setting; {names.advice(path[-1], around)}"
        case "missing":
            return "this setting is needed, and not there"
        case "value_error":
            return str(detail["ctx"]["error"])
        case "model_type" | "dict_type":
            return "this is a group of settings, it has no value of its own"
        case "sink_type":
            return detail["msg"]
        case _ if written is None:
            return "it has no value: write one, or leave the name out"
        case "string_type":
            return "write text, not a list or a group"
        case "tuple_type" if isinstance(written, Mapping) and any(map(str.isdecimal, written)):
            return "number the items from 0 on, without a gap"
        case "tuple_type":
            return "write a list: each item on a line of its own, after a dash"
        case "bool_parsing" | "bool_type":
            return "write true or false"
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return "write a whole number, in digits"
        case _:
            return detail["msg"][:1].lower() + detail["msg"][1:]


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
