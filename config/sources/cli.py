"""The command line as a source of settings.

An option for a list may be repeated, and each value may be several items, separated by commas as in the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def source(options: Mapping[str, Any]) -> Source:
    """Return the settings that ``options`` set, nested by group; ``sinks`` may be a list of ``[ID=]URL``."""
    if isinstance(urls := options.get("sinks"), list):
        options = {**options, "sinks": SinkUrls(urls)}
    if isinstance(namespaces := options.get("namespaces"), Mapping):
        joined = {name: ",".join(globs) if isinstance(globs, list) else globs for name, globs in namespaces.items()}
        options = {**options, "namespaces": joined}
    flags = {tuple(path.split(".")): flag for path, flag in FLAGS.items()}
    all_flags = Source(options, flags)
    return all_flags._replace(locations={path: flag for path, flag in flags.items() if all_flags.get(path) is not None})
