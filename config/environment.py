"""The environment as a source of settings: ``WHALEBRIDGE_`` in front, ``__`` between the levels of nesting.

``WHALEBRIDGE_LOG__LEVEL=debug`` is ``log.level``, ``WHALEBRIDGE_SINKS__0__TYPE=stdout`` is ``sinks.0.type``. Values
stay text: each field knows how to read its own. pydantic-settings' own source is not used, because it wants JSON for
lists, stops at the first value it cannot read, and silently passes over a misspelt name.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

PREFIX = "WHALEBRIDGE_"
NESTING = "__"


def from_environment(environ: Mapping[str, str], known: Container[str]) -> dict[str, Any]:
    """Return the settings that ``environ`` holds, nested; ``known`` are the names on the outermost level.

    A name with neither ``__`` in it nor a known setting in front is left alone: Kubernetes puts such names
    (``WHALEBRIDGE_SERVICE_HOST``) into every pod next to a Service called whalebridge. Any other unknown name comes
    along, so that validation can complain of it.
    """
    settings: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX):
            continue
        path = name.removeprefix(PREFIX).lower().split(NESTING)
        if len(path) > 1 or path[0] in known:
            _put(settings, path, environ[name])
    return settings


def _put(settings: dict[str, Any], path: list[str], value: str) -> None:
    """Put ``value`` at ``path``; where a plain value is in the way, under a name that validation complains of."""
    for depth, name in enumerate(path[:-1]):
        inner = settings.setdefault(name, {})
        if not isinstance(inner, dict):
            settings[NESTING.join(path[depth:])] = value
            return
        settings = inner
    settings[path[-1]] = value
