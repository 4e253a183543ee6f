"""Sinks of third parties: packages that name themselves in the entry-point group ``whalebridge.sinks``.

The entry point's name is the sink's type and the scheme of its URL; it points to something that is like ``Plugin``,
such as a module. A package is imported only where its sink is asked for.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, Protocol

from config.sinks.common import SinkSection

GROUP = "whalebridge.sinks"


class Plugin(Protocol):
    """What an entry point has to offer."""

    @property
    def Settings(self) -> type[SinkSection]:  # noqa: N802 (it is a class)
        """Its settings, a subclass of ``SinkSection`` (or of ``EncodedSection``)."""

    def from_url(self, rest: str) -> dict[str, Any]:
        """Return the settings that a URL stands for, by what follows its colon; ValueError if for none."""

    def make(self, settings: Any) -> Any:
        """Return a ``bridge.core.ports.Sink`` for such settings, not yet started."""


def names() -> list[str]:
    """Return the types of sinks that third parties add."""
    return sorted(entry_points(group=GROUP).names)


def load(name: str) -> Plugin:
    """Import what adds this type of sink.

    Raises:
        ValueError: There is none, or it does not work.
    """
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise ValueError(f"there is no sink {name!r} in any installed package (entry points of {GROUP})")
    try:
        plugin: Plugin = found[0].load()
        sound = issubclass(plugin.Settings, SinkSection) and callable(plugin.from_url) and callable(plugin.make)
    except Exception as error:  # whatever a foreign package does as it is imported
        raise ValueError(f"the package of sink {name!r} ({found[0].value}) does not work: {error!r}") from error
    if not sound:
        raise ValueError(f"the package of sink {name!r} ({found[0].value}) does not offer Settings, from_url and make")
    return plugin
