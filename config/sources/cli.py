"""The command line as a source of settings.

An option for a list may be repeated, and each value may be several items, separated by commas as in the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_settings import BaseSettings

from config.sinks import SinkUrls
from config.sources import Source

FLAGS = {
    "containerd.address": "--containerd",
    "namespaces.include": "--namespace",
    "namespaces.exclude": "--exclude-namespace",
    "sinks": "--sink",
    "snapshot.interval": "--snapshot-interval",
    "state_dir": "--state-dir",
    "log.level": "--log-level",
    "log.format": "--log-format",
}
"""The option of a setting, by the setting's path."""


def source(model: type[BaseSettings], options: Mapping[str, Any]) -> Source:
    """Return the settings that ``options`` set, nested by group; ``sinks`` may be a list of ``[ID=]URL``."""
    if isinstance(urls := options.get("sinks"), list):
        options = {**options, "sinks": SinkUrls(urls)}
    if isinstance(namespaces := options.get("namespaces"), Mapping):
        joined = {name: ",".join(globs) if isinstance(globs, list) else globs for name, globs in namespaces.items()}
        options = {**options, "namespaces": joined}
    values = Source(model, options, {})
    locations = {tuple(path.split(".")): flag for path, flag in FLAGS.items()}
    return Source(model, options, {path: flag for path, flag in locations.items() if values.get(path) is not None})
