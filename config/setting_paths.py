"""Paths of all settings, and suggestions for misspelled names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_SAFE_NAME = re.compile("[A-Za-z0-9_.-]{0,60}")
MIN_SIMILARITY = 0.6  # difflib's default cutoff
SINK_ID = "ID"
"""Stands for the id of a sink in a path: ``sinks.ID.topic``."""


def iter_settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the settings of ``model`` and of its groups, each with its path."""
    for name, field in model.model_fields.items():
        group = group_model(field.annotation)
        if group:
            yield from iter_settings(group, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def group_model(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a group of settings, optional or not; None for a plain value."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    models = [each for each in get_args(annotation) if isinstance(each, type) and issubclass(each, BaseModel)]
    return models[0] if len(models) == 1 and type(None) in get_args(annotation) else None


def nearest(name: str, known: Iterable[str], cutoff: float = MIN_SIMILARITY) -> str | None:
    """Return the name in ``known`` that is most similar to ``name``; None if none is similar enough."""
    matches = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def suggest(name: str, model: type[BaseModel]) -> str | None:
    """Return the setting of ``model`` that ``name`` most likely means."""
    return nearest(redact(name).lower(), model.model_fields)


def redact(name: str) -> str:
    """Truncate a name at the first character that no setting's name contains, because a secret value may follow."""
    match = _SAFE_NAME.match(name)
    plain = match[0] if match else ""
    return name if plain == name else f"{plain}..."
