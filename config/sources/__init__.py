"""Sources of settings: their values, nested as the settings are, and the location of each value.

pydantic-settings merges the sources: groups by name, all else as a whole, the strongest source first. So a list
replaces a list, and the sinks of a weaker source are merged by id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from config.sinks import SinkUrls, parse_url

Path = tuple[str, ...]
"""The names that lead to a value: ``("sinks", "main", "topic")``."""

MAX_LOCATIONS = 3  # in one message


class Source(PydanticBaseSettingsSource):
    """The settings of one source; ``errors`` are those found while reading it."""

    def __init__(
        self,
        model: type[BaseSettings],
        values: Mapping[str, Any],
        locations: Mapping[Path, str],
        errors: Sequence[str] = (),
    ) -> None:
        super().__init__(model)
        self._values = values
        self._locations = locations
        self.errors = tuple(errors)

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """Return the value of one setting on the outermost level."""
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return all values; the URL of a sink becomes a mapping if a stronger source sets parts of the sink."""
        values = dict(self._values)
        sinks, stronger = values.get("sinks"), self.current_state.get("sinks")
        if isinstance(sinks, Mapping) and isinstance(stronger, Mapping):
            values["sinks"] = {
                id_: as_mapping(sink) if isinstance(stronger.get(id_), Mapping) else sink for id_, sink in sinks.items()
            }
        return values

    def locations(self, path: Path) -> list[str]:
        """Return the location of the value at ``path``; for a group without one, the locations of its parts."""
        if path in self._locations:
            return [self._locations[path]]
        return [location for each, location in self._locations.items() if each[: len(path)] == path]

    def get(self, path: Path) -> Any:
        """Return the value at ``path``, as it is written; None if there is none."""
        value, depth = _walk(self._values, path)
        return value if depth == len(path) else None

    def overrides(self, path: Path) -> bool:
        """Return whether weaker sources are ignored at ``path``, because this one has a value there, not a group."""
        value, depth = _walk(self._values, path)
        return value is not None and (depth < len(path) or not isinstance(value, Mapping))


def locations(path: Path, sources: Sequence[Source]) -> list[str]:
    """Return where the value at ``path``, or a group around it, is written."""
    merged = []
    for source in sources:
        merged.append(source)
        if source.overrides(path):
            break
    for length in range(len(path), 0, -1):
        found = [location for source in merged for location in source.locations(path[:length])]
        if found:
            return found[:MAX_LOCATIONS] if length == len(path) else found[-1:]
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
