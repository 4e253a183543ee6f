"""The command line as a source of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_settings import BaseSettings

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
"""What sets a setting on the command line, by its path."""


def source(model: type[BaseSettings], given: Mapping[str, Any]) -> Source:
    """Return what flags have set: ``given``, nested by section."""
    places = {tuple(path.split(".")): flag for path, flag in FLAGS.items()}
    told = Source(model, given, {})
    return Source(model, given, {path: flag for path, flag in places.items() if told.get(path) is not None})
