"""The names of settings: all there are, and which of them a misspelt one is likely to mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from config.sinks import BUILT_IN

_PLAIN = re.compile("[A-Za-z0-9_.-]{0,60}")
ALL = "there are: "
ALIKE = 0.6  # difflib's own measure of what is worth showing to a person


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Return the settings of ``model`` and of the groups within, each with its path."""
    for name, field in model.model_fields.items():
        inner = group(field.annotation)
        if inner:
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def group(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a group of settings, also of one that may be missing; None for a plain value."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    inner = [each for each in get_args(annotation) if isinstance(each, type) and issubclass(each, BaseModel)]
    return inner[0] if len(inner) == 1 and type(None) in get_args(annotation) else None


def everything(model: type[BaseModel]) -> list[str]:
    """Return the paths of all settings, those of the first sink of each built-in type among them."""
    paths = dict.fromkeys(path for path, _ in fields(model))
    for sink in BUILT_IN.values():
        paths |= dict.fromkeys(path for path, _ in fields(sink, "sinks.0."))
    return list(paths)


def nearest(name: str, known: Iterable[str], alike: float = ALIKE) -> str | None:
    """Return which of ``known`` is most like ``name``, if any is at all."""
    found = get_close_matches(name, list(known), n=1, cutoff=alike)
    return found[0] if found else None


def shown(name: str) -> str:
    """Return as much of a name as may be shown: where a colon or a blank is in it, a value may have got into it."""
    plain = _PLAIN.match(name)
    known = plain[0] if plain else ""
    return name if known == name else f"{known}..."


def advice(name: str, model: type[BaseModel]) -> str:
    """Tell what ``name``, which is none of ``model``'s, may have been meant to be."""
    near = nearest(shown(name).lower(), model.model_fields)
    paths = [path for path, _ in fields(model)]
    deeper = [path for path in paths if path.rpartition(".")[2] == name]
    if name in paths:
        return f"write {name.replace('.', ': and below it, indented, ')}:"
    if near:
        return f"did you mean {near}?"
    if len(deeper) == 1:
        return f"did you mean {deeper[0]}?"
    return f"{ALL}{', '.join(model.model_fields)}"
