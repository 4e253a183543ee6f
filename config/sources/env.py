"""The environment as a source of settings: prefix ``WHALEBRIDGE_``, and ``__`` between the levels of nesting.

``WHALEBRIDGE_LOG__LEVEL=debug`` is ``log.level``, ``WHALEBRIDGE_SINKS__MAIN__TOPIC=t`` is ``sinks.main.topic``. Values
stay text: each field parses its own. pydantic-settings is not used, because it expects JSON for lists, stops at the
first invalid value, and silently ignores a misspelled name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from config import setting_paths
from config.sources import Path, Source, as_mapping

PREFIX = "WHALEBRIDGE_"
NESTING = "__"
_CUTOFF = 0.85  # similarity from which on a name is a misspelled setting


def source(model: type[BaseModel], environ: Mapping[str, str]) -> Source:
    """Return the settings in ``environ``.

    A name without ``__`` that is not a setting is ignored, unless it resembles one: Kubernetes adds such names
    (``WHALEBRIDGE_SERVICE_HOST``) to every pod next to a Service called whalebridge. Any other unknown name is kept,
    so that validation reports it.
    """
    values: dict[str, Any] = {}
    locations: dict[Path, str] = {}
    errors = []
    for name in sorted(environ):
        if not name.startswith(PREFIX):
            continue
        path = tuple(name.removeprefix(PREFIX).lower().split(NESTING))
        if len(path) > 1 or path[0] in model.model_fields:
            locations[path] = name
            if conflict := _put(values, path, environ[name]):
                errors.append(f"{name}: conflicts with {variable('.'.join(conflict))}; set one of them")
        elif hint := _misspelled(model, path[0]):
            errors.append(f"{name}: unknown setting; {hint}")
    return Source(values, locations, errors)


def variable(path: str) -> str:
    """Return the environment variable of the setting at ``path``, such as ``log.level``."""
    return PREFIX + path.replace(".", NESTING).upper()


def _misspelled(model: type[BaseModel], name: str) -> str | None:
    """Return a hint if ``name``, which contains no ``__``, resembles a setting."""
    paths = {path.replace(".", "_"): path for path, _ in setting_paths.iter_settings(model)}
    if near := setting_paths.nearest(name, paths, _CUTOFF):
        return f"did you mean {variable(paths[near])}?"
    if name.startswith("sinks_"):
        return f"separate levels by two underscores, as in {variable(f'sinks.{setting_paths.SINK_ID}.topic')}"
    if name.startswith("attributes_"):
        return f"separate levels by two underscores, as in {variable('attributes.cluster')}"
    return None


def _put(settings: dict[str, Any], path: Path, value: str) -> Path:
    """Store ``value`` at ``path``; return the path of a plain value that conflicts with it, else ``()``.

    The URL of a sink does not conflict: other settings of the sink are merged with it.
    """
    for depth, name in enumerate(path[:-1]):
        inner = settings.setdefault(name, {})
        if isinstance(inner, str) and path[0] == "sinks" and depth > 0:
            settings[name] = inner = as_mapping(inner)
        if not isinstance(inner, dict):
            return path[: depth + 1]
        settings = inner
    settings[path[-1]] = value
    return ()
