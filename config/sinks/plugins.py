"""Sinks of plugins: packages with an entry point in the group ``whalebridge.sinks``.

The entry point's name is the type of the sink and the scheme of its URL. It refers to an object like ``Plugin``, such
as a module. A package is imported only if its sink is configured.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, Protocol

from config.sinks.common import BaseSinkSettings

GROUP = "whalebridge.sinks"


class Plugin(Protocol):
    """The interface of the object that an entry point refers to."""

    @property
    def Settings(self) -> type[BaseSinkSettings]:  # noqa: N802 (it is a class)
        """The settings, a subclass of ``BaseSinkSettings`` (or of ``EncodedSinkSettings``)."""

    def parse_url(self, rest: str) -> dict[str, Any]:
        """Return the settings that a URL stands for, by the text after its colon; ValueError if it is invalid."""

    def make(self, settings: Any) -> Any:
        """Return a ``bridge.core.ports.Sink`` with these settings, not yet started."""


def names() -> list[str]:
    """Return the types of sinks that plugins add."""
    return sorted(entry_points(group=GROUP).names)


def load(name: str) -> Plugin:
    """Import the plugin of a type of sink.

    Raises:
        ValueError: No package provides the type, or the package does not work.
    """
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise ValueError(f"no installed package provides the sink {name!r} (entry point group {GROUP}); install one")
    try:
        plugin: Plugin = found[0].load()
        valid = issubclass(plugin.Settings, BaseSinkSettings) and callable(plugin.parse_url) and callable(plugin.make)
    except Exception as error:  # a plugin may raise anything at import
        raise ValueError(f"the plugin of the sink {name!r} ({found[0].value}) cannot be loaded: {error!r}") from error
    if not valid:
        raise ValueError(
            f"the plugin of the sink {name!r} ({found[0].value}) must provide Settings, parse_url and make"
        )
    return plugin
