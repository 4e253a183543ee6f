"""All settings of whalebridge: defaults < file < environment < command line.

What is wrong is listed in full, each with where it is written and its path. See docs/configuration.md.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from config import environment, file, flags, mistakes
from config.fields import FolderPath, HostName, Section, setting
from config.sections import (
    ContainerdSettings,
    ContainersSettings,
    HeartbeatSettings,
    HttpSettings,
    LabelsSettings,
    LogSettings,
    NamespacesSettings,
    OutboxSettings,
    SnapshotSettings,
)
from config.sinks import Sinks, StdoutSettings
from config.sources import Source


class Settings(BaseSettings, Section):
    """All settings of whalebridge."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", title="whalebridge")

    host: HostName = setting(
        socket.gethostname,
        "What the node is called in every record.",
        reason="The host's name. In a container that is the container's: set it to the node's.",
    )
    containerd: ContainerdSettings = ContainerdSettings()
    namespaces: NamespacesSettings = NamespacesSettings()
    containers: ContainersSettings = ContainersSettings()
    labels: LabelsSettings = LabelsSettings()
    sinks: Sinks = setting(
        (StdoutSettings(),), "Where records go; each gets all of them.", reason="It is there without a broker."
    )
    snapshot: SnapshotSettings = SnapshotSettings()
    state_dir: FolderPath | None = setting(
        None,
        "Absolute path of a directory of whalebridge's own, on a local disk, for what must outlive the process: "
        "records on their way, and what is known of containers.",
        reason="It works without; then the next start's snapshot makes up for what was on its way.",
    )
    outbox: OutboxSettings = OutboxSettings()
    heartbeat: HeartbeatSettings = HeartbeatSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (the signature is pydantic-settings')
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of values, the strongest first: those that ``load`` hands over, and no others."""
        given: tuple[PydanticBaseSettingsSource, ...] | None = getattr(init_settings, "init_kwargs", {}).get("sources")
        return (init_settings,) if given is None else given


class SettingsError(Exception):
    """The settings are wrong; ``mistakes`` are all of them, each with its place and path in front."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = tuple(mistakes)


def load(given: Mapping[str, Any] | None = None, path: str | None = None) -> Settings:
    """Make the settings: ``given`` (nested by section) by flags, over the environment, over the file at ``path``.

    Without a ``path``, the file is the usual one, where it exists. Everything is read anew each time.

    Raises:
        SettingsError: Something is wrong with them.
    """
    try:
        sources = (
            flags.source(Settings, given or {}),
            environment.source(Settings, os.environ),
            file.source(Settings, path),
        )
    except file.UnreadableError as error:
        unreadable = str(error)
    else:
        return _settled(sources)
    raise SettingsError([unreadable])  # without context: it repeats lines of the file, of which some may be secret


def _settled(sources: Sequence[Source]) -> Settings:
    found = [mistake for source in reversed(sources) for mistake in source.mistakes]
    handed_over: dict[str, Any] = {"sources": tuple(sources)}
    try:
        settings = Settings(**handed_over)
    except ValidationError as error:
        # Without context and cause: both repeat the values, of which some may be secret.
        found += [mistakes.told(detail, Settings, sources) for detail in error.errors(include_url=False)]
    else:
        if not found:
            return settings
    raise SettingsError(found)
