"""All settings of whalebridge: defaults < file < environment < command line.

All errors are reported together, each with its location and path. See docs/configuration.md.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, ValidationError

from config.fields import Attributes, DirectoryPath, HostName, SettingsModel, field
from config.setting_groups import (
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
from config.sources import Source, cli, env, merge, yaml
from config.validation_errors import format_error


class Settings(SettingsModel):
    """All settings of whalebridge."""

    model_config = ConfigDict(title="whalebridge", validate_default=True)

    host: HostName = field(
        socket.gethostname,
        "Host name in every record.",
        reason="In a container, the default is the container's host name: set it to the node's.",
    )
    attributes: Attributes = field(
        {},
        "Attributes of every record, such as cluster: prod-1. They are CloudEvents attributes, too, so names have "
        "up to 20 lowercase letters and digits, and names of CloudEvents' own are not allowed. Values have up to 128 "
        "printable characters. There can be 16.",
        unit="mapping of names to text",
    )
    containerd: ContainerdSettings = ContainerdSettings()
    namespaces: NamespacesSettings = NamespacesSettings()
    containers: ContainersSettings = ContainersSettings()
    labels: LabelsSettings = LabelsSettings()
    sinks: Sinks = field(
        lambda: {"stdout": StdoutSettings()},
        "Sinks by id; each receives all records. The id identifies the sink in the outbox, in metrics and in logs. It "
        "consists of lowercase letters, digits, - and _, and starts with a letter. The value is a group of settings "
        "with a type, or a URL.",
        reason="Standard output needs no broker.",
    )
    snapshot: SnapshotSettings = SnapshotSettings()
    state_dir: DirectoryPath | None = field(
        None,
        "Absolute path of a dedicated directory on a local disk for state that survives restarts: undelivered records "
        "and the known containers.",
        reason="Without one, undelivered records are lost at a restart; the next snapshot lists only what runs then.",
    )
    outbox: OutboxSettings = OutboxSettings()
    heartbeat: HeartbeatSettings = HeartbeatSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    reload_on_change: bool = field(
        False,
        "Reload the configuration file within 10 s of a change, as SIGHUP does; also from a ConfigMap that is mounted "
        "as a directory.",
        reason="If the file is edited in place, an unfinished change could take effect.",
    )


class SettingsError(Exception):
    """The settings are invalid; ``errors`` lists all errors, each starting with its location and path."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("; ".join(errors))
        self.errors = tuple(errors)


def load(given: Mapping[str, Any] | None = None, path: str | None = None) -> Settings:
    """Load the settings: ``given`` by options (nested by group), over the environment, over the file at ``path``.

    Without a ``path``, the file is the default one, if it exists. All sources are read again with each call.

    Raises:
        SettingsError: The settings are invalid.
    """
    try:
        sources = cli.source(given or {}), env.source(Settings, os.environ), yaml.source(path)
    except yaml.UnreadableError as error:
        unreadable = str(error)
    else:
        return _validate(sources)
    raise SettingsError([unreadable])  # without context: it repeats lines of the file, which may contain secrets


def _validate(sources: Sequence[Source]) -> Settings:
    errors = [error for source in reversed(sources) for error in source.errors]
    values: dict[str, Any] = {}
    for source in sources:
        values = merge(source.values, values)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        # Without context and cause: both repeat the values, which may contain secrets.
        errors += [format_error(detail, Settings, sources) for detail in error.errors(include_url=False)]
    else:
        if not errors:
            return settings
    raise SettingsError(errors)
