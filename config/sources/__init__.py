"""A source of settings: values, nested as the settings are, and where each of them is written.

pydantic-settings lays the sources over each other, groups by name and all else as a whole, the strongest first. So a
list replaces a list. But the environment can number single items (``WHALEBRIDGE_SINKS__0__SASL__USERNAME``): where a
stronger source did that, a weaker one numbers its items as well, and they are laid over each other one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from config.sinks import from_url

Path = tuple[str, ...]
"""The names and numbers that lead to a value: ``("sinks", "0", "topic")``."""

MOST_PLACES = 3  # that one mistake names


class Source(PydanticBaseSettingsSource):
    """What one place says; ``mistakes`` are those that could be seen without knowing the settings."""

    def __init__(
        self,
        model: type[BaseSettings],
        values: Mapping[str, Any],
        places: Mapping[Path, str],
        mistakes: Sequence[str] = (),
    ) -> None:
        super().__init__(model)
        self._values = values
        self._places = places
        self.mistakes = tuple(mistakes)

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """Return the value of one setting on the outermost level."""
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return all values, in a shape that those of the stronger sources can be laid over."""
        shaped: dict[str, Any] = _shaped(self._values, self.current_state)
        return shaped

    def places(self, path: Path) -> list[str]:
        """Return where the value at ``path`` is written; of a group that stands nowhere itself, where its parts are."""
        if path in self._places:
            return [self._places[path]]
        return [place for written, place in self._places.items() if written[: len(path)] == path]

    def get(self, path: Path) -> Any:
        """Return the value at ``path``, as it is written; None where there is none."""
        value, depth = _walk(self._values, path)
        return value if depth == len(path) else None

    def settles(self, path: Path) -> bool:
        """Tell whether weaker sources have no say at ``path``, because there is a value here, not a group."""
        value, depth = _walk(self._values, path)
        return value is not None and (depth < len(path) or not isinstance(value, Mapping))


def places(path: Path, sources: Sequence[Source]) -> list[str]:
    """Return where what is at ``path`` is written, or what is around it, or nothing where no source says anything."""
    heard = []
    for source in sources:
        heard.append(source)
        if source.settles(path):
            break
    for length in range(len(path), 0, -1):
        found = [place for source in heard for place in source.places(path[:length])]
        if found:
            return found[:MOST_PLACES] if length == len(path) else found[-1:]
    return []


def as_group(value: Any) -> Any:
    """Turn a sink's URL into the settings it stands for, so that others can join them; leave anything else alone."""
    try:
        return from_url(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _shaped(value: Any, stronger: Any) -> Any:
    if not isinstance(stronger, Mapping):
        return value
    if isinstance(value, str):
        value = as_group(value)
    if isinstance(value, list):
        value = {str(number): item for number, item in enumerate(value)}
    if isinstance(value, Mapping):
        return {name: _shaped(item, stronger.get(name)) for name, item in value.items()}
    return value


def _walk(value: Any, path: Path) -> tuple[Any, int]:
    """Follow ``path`` as far as it leads into ``value``: what is there, and how far that was.

    A name that a group does not have leads to None, at the end of the path.
    """
    for depth, name in enumerate(path):
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list | tuple):
            value = value[int(name)] if name.isdecimal() and int(name) < len(value) else None
        else:
            return value, depth
        if value is None:
            return None, len(path)
    return value, len(path)
