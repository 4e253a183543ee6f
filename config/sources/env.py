"""The environment as a source of settings: ``WHALEBRIDGE_`` in front, ``__`` between the levels of nesting.

``WHALEBRIDGE_LOG__LEVEL=debug`` is ``log.level``, ``WHALEBRIDGE_SINKS__0__TYPE=stdout`` is ``sinks.0.type``. Values
stay text: each field knows how to read its own. pydantic-settings' own source is not used, because it wants JSON for
lists, stops at the first value it cannot read, and silently passes over a misspelt name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic_settings import BaseSettings

from config import names
from config.sources import Path, Source, as_group

PREFIX = "WHALEBRIDGE_"
NESTING = "__"
_NEAR = 0.85  # how alike names are of which one is taken for the other, misspelt


def source(model: type[BaseSettings], environ: Mapping[str, str]) -> Source:
    """Return the settings that ``environ`` holds.

    A name with neither ``__`` in it nor a setting's name is left alone, unless it looks like one, misspelt: Kubernetes
    puts such names (``WHALEBRIDGE_SERVICE_HOST``) into every pod next to a Service called whalebridge. Any other
    unknown name comes along, so that validation can complain of it.
    """
    values: dict[str, Any] = {}
    places: dict[Path, str] = {}
    mistakes = []
    for name in sorted(environ):
        if not name.startswith(PREFIX):
            continue
        path = tuple(name.removeprefix(PREFIX).lower().split(NESTING))
        if len(path) > 1 or path[0] in model.model_fields:
            places[path] = name
            if in_the_way := _put(values, path, environ[name]):
                mistakes.append(f"{name}: {variable('.'.join(in_the_way))} has a value as a whole; set one of the two")
        elif meant := _misspelt(model, path[0]):
            mistakes.append(f"{name}: there is no such setting; did you mean {variable(meant)}?")
    return Source(model, values, places, mistakes)


def variable(path: str) -> str:
    """Return the name in the environment of the setting at ``path``, such as ``log.level``."""
    return PREFIX + path.replace(".", NESTING).upper()


def _misspelt(model: type[BaseSettings], name: str) -> str | None:
    """Return the path of the setting that ``name``, without any ``__``, is likely to mean."""
    flat = {path.replace(".", "_"): path for path in names.everything(model)}
    number = re.search(r"(?<=_)\d+(?=_)", name)
    near = names.nearest(re.sub(r"_\d+_", "_0_", name), flat, _NEAR)
    if near is None:
        return None
    return flat[near].replace(".0.", f".{number[0]}.") if number else flat[near]


def _put(settings: dict[str, Any], path: Path, value: str) -> Path:
    """Put ``value`` at ``path``; where a plain value is in the way, return where that is, else nothing.

    A sink's URL is not in the way: other settings of that sink join it.
    """
    for depth, name in enumerate(path[:-1]):
        inner = settings.setdefault(name, {})
        if isinstance(inner, str):
            settings[name] = inner = as_group(inner)
        if not isinstance(inner, dict):
            return path[: depth + 1]
        settings = inner
    settings[path[-1]] = value
    return ()
