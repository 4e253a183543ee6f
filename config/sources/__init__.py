"""Sources of settings: their values, nested as the settings are, and the location of each value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from config.sinks import SinkUrls, parse_url

Path = tuple[str, ...]
"""The names that lead to a value: ``("sinks", "main", "topic")``."""

MAX_LOCATIONS = 3  # in one message


class Source(NamedTuple):
    """The settings of one source; ``errors`` are those found while reading it."""

    values: Mapping[str, Any]
    locations: Mapping[Path, str]
    errors: Sequence[str] = ()

    def locate(self, path: Path) -> list[str]:
        """Return the location of the value at ``path``; for a group without one, the locations of its parts."""
        if path in self.locations:
            return [self.locations[path]]
        return [location for each, location in self.locations.items() if each[: len(path)] == path]

    def get(self, path: Path) -> Any:
        """Return the value at ``path``, as it is written; None if there is none."""
        value, depth = _walk(self.values, path)
        return value if depth == len(path) else None

    def overrides(self, path: Path) -> bool:
        """Return whether weaker sources are ignored at ``path``, because this one has a value there, not a group."""
        value, depth = _walk(self.values, path)
        return value is not None and (depth < len(path) or not isinstance(value, Mapping))


def merge(weaker: Mapping[str, Any], stronger: Mapping[str, Any], path: Path = ()) -> dict[str, Any]:
    """Return the values of two sources: groups are merged by name, all else is replaced as a whole.

    So a list replaces a list, and sinks are merged by id. The URL of a sink becomes a group if the stronger source sets
    parts of the sink.
    """
    merged = dict(weaker)
    for name, value in stronger.items():
        below = as_mapping(merged.get(name)) if path == ("sinks",) else merged.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = merge(below, value, (*path, name))  # noqa: PLW2901 (the merged one)
        merged[name] = value
    return merged


def locations(path: Path, sources: Sequence[Source]) -> list[str]:
    """Return where the value at ``path``, or a group around it, is written; the strongest source comes first."""
    merged = []
    for source in sources:
        merged.append(source)
        if source.overrides(path):
            break
    for length in range(len(path), 0, -1):
        matches = [location for source in merged for location in source.locate(path[:length])]
        if matches:
            return matches[:MAX_LOCATIONS] if length == len(path) else matches[-1:]
    return []


def as_mapping(value: Any) -> Any:
    """Return the settings that a sink's URL stands for, so that others can be merged; any other value unchanged."""
    try:
        return parse_url(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _walk(value: Any, path: Path) -> tuple[Any, int]:
    """Follow ``path`` into ``value`` until a plain value; return the value there, and the number of steps.

    For a name that a group does not contain, the value is None and the number of steps is that of the whole path.
    """
    for depth, name in enumerate(path):
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list | tuple) and not isinstance(value, SinkUrls):
            value = value[int(name)] if name.isdecimal() and int(name) < len(value) else None
        else:
            return value, depth
        if value is None:
            return None, len(path)
    return value, len(path)
